"""Fixed-point numbers: one lattice for every update, nothing sent beside the codes."""

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from fl_sim.coding.cell import Cell
from fl_sim.coding.groups import Groups
from fl_sim.quantizers.base import QuantizerFacts
from fl_sim.quantizers.lattice import MAX_BITS, Lattice
from fl_sim.specs import within
from fl_sim.updates.local_update import Layout


@dataclass(frozen=True)
class FixedPoint(Lattice):
    """``round(x 2^fraction) 2^-fraction`` in the range of a ``bits``-bit two's complement."""

    name: ClassVar[str] = "fixed_point"
    facts: ClassVar[QuantizerFacts] = QuantizerFacts(
        bits="b d",
        unbiased=False,
        error="abs <= 2^-(f+1) inside [-2^(b-1-f), 2^(b-1-f) - 2^-f], saturates outside",
        source="Gupta et al. 2015, arXiv 1502.02551",
    )
    side: ClassVar[int] = 0

    bits: int
    fraction: int

    def __post_init__(self) -> None:
        within("bits", self.bits, 1, MAX_BITS)
        within("fraction", self.fraction, -64, 64)

    @property
    def code_levels(self) -> int:
        """Number of lattice points."""
        return 1 << self.bits

    @property
    def shift(self) -> int:
        """Code of zero."""
        return 1 << (self.bits - 1)

    def _groups(self, layout: Layout) -> Groups:
        return Groups.of(layout, "global")

    def _measure(self, vector: Tensor, groups: Groups) -> Tensor:
        return vector.new_empty(groups.count, 0)

    def _lattice(self, side: Tensor) -> tuple[Tensor, Tensor]:
        return side.new_zeros(len(side)), side.new_full((len(side),), 2.0**-self.fraction)

    def body_cell(self, body: bytes, layout: Layout) -> Cell:
        """Return the cell; at either end of the range it is open, as values beyond saturate."""
        cell = super().body_cell(body, layout)
        _, codes = self._read(body, layout)
        return replace(
            cell,
            lower=cell.lower.masked_fill(codes == 0, -torch.inf),
            upper=cell.upper.masked_fill(codes == self.code_levels - 1, torch.inf),
        )

    def _support(self, side: Tensor, anchor: Tensor, step: Tensor) -> tuple[Tensor, Tensor]:
        del side, step
        return anchor - torch.inf, anchor + torch.inf
