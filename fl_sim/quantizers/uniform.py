"""Min-max lattices, one per tensor or one for all, rounded to nearest or at random."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from fl_sim.coding.groups import Groups, Scope
from fl_sim.coding.payload import PayloadError
from fl_sim.quantizers.base import QuantizerFacts
from fl_sim.quantizers.lattice import MAX_BITS, Lattice
from fl_sim.specs import within
from fl_sim.updates.local_update import Layout


@dataclass(frozen=True)
class Uniform(Lattice):
    """Nearest of ``2**bits`` (or ``levels``) evenly spaced values between minimum and maximum."""

    name: ClassVar[str] = "uniform"
    facts: ClassVar[QuantizerFacts] = QuantizerFacts(
        bits="ceil(log2 L) d + 64 per tensor",
        unbiased=False,
        error="abs <= D/2, D = (max - min) / (L - 1)",
        source="min-max quantization, e.g. Gray and Neuhoff 1998",
    )
    side: ClassVar[int] = 2

    bits: int | None = None
    levels: int | None = None
    scope: Scope = "tensor"

    def __post_init__(self) -> None:
        if (self.bits is None) == (self.levels is None):
            raise ValueError("give exactly one of bits and levels.")
        if self.bits is not None:
            within("bits", self.bits, 1, MAX_BITS)
        if self.levels is not None:
            within("levels", self.levels, 2, 1 << MAX_BITS)

    @property
    def code_levels(self) -> int:
        """Number of lattice points."""
        return self.levels if self.levels is not None else 1 << (self.bits or 0)

    def _groups(self, layout: Layout) -> Groups:
        return Groups.of(layout, self.scope)

    def _measure(self, vector: Tensor, groups: Groups) -> Tensor:
        return torch.stack([groups.minimum(vector), groups.maximum(vector)], dim=1)

    def _check_side(self, side: Tensor) -> None:
        if bool((side[:, 0] > side[:, 1]).any()):
            raise PayloadError("A minimum lies above its maximum.")

    def _lattice(self, side: Tensor) -> tuple[Tensor, Tensor]:
        low, high = side.double().unbind(dim=1)  # a range may overflow float32
        return side[:, 0], ((high - low) / (self.code_levels - 1)).float()

    def _support(self, side: Tensor, anchor: Tensor, step: Tensor) -> tuple[Tensor, Tensor]:
        del anchor, step
        return side[:, 0], side[:, 1]


@dataclass(frozen=True)
class Stochastic(Uniform):
    """The same lattice, rounded up with a probability equal to the fraction: unbiased."""

    name: ClassVar[str] = "stochastic"
    facts: ClassVar[QuantizerFacts] = QuantizerFacts(
        bits="ceil(log2 L) d + 64 per tensor",
        unbiased=True,
        error="Var = D^2 u (1 - u), abs < D",
        source="Suresh et al. 2017, arXiv 1611.00429",
    )
    stochastic: ClassVar[bool] = True
