"""Clipping as the first step of a client's pipeline: it bounds what any update can reveal."""

from dataclasses import dataclass, field, replace
from math import inf
from typing import ClassVar

import torch
from torch import Tensor

from fl_sim.coding.cell import Cell
from fl_sim.coding.transforms import Chain, ClipToNorm
from fl_sim.privacy.accountant import Guarantee
from fl_sim.quantizers.base import Quantizer, QuantizerFacts
from fl_sim.quantizers.floats import Identity
from fl_sim.specs import NOT_A_PARAMETER, positive
from fl_sim.updates.local_update import Layout, Update


@dataclass(frozen=True)
class Clip(Quantizer):
    """Scale the update to an L2 norm of at most ``norm``, then send it as it is.

    ``clip:norm=1+Q`` encodes the clipped update by quantizer ``Q``. The norm is public: attackers
    clip their candidates too, so that a clipped update is known up to its scale.
    """

    name: ClassVar[str] = "clip"
    facts: ClassVar[QuantizerFacts] = QuantizerFacts(
        "32 d, or as Q",
        False,
        "L2(e) = max(0, L2(x) - norm)",
        "Abadi et al. 2016, arXiv 1607.00133",
    )

    norm: float
    then: Quantizer = field(default=Identity(), metadata=NOT_A_PARAMETER)

    def __post_init__(self) -> None:
        positive("norm", self.norm)

    @property
    def spec(self) -> str:
        """Own parameters, then ``+`` and the quantizer of the clipped update."""
        return super().spec + (f"+{self.then.spec}" if self.then != Identity() else "")

    @property
    def version(self) -> int:
        """Version of the format of what follows."""
        return self.then.version

    @property
    def noise_deviation(self) -> float | None:
        """That of what follows."""
        return self.then.noise_deviation

    def guarantee(self, size: int, norm: float = inf) -> Guarantee | None:
        """Return that of what follows, on updates of the smaller norm."""
        return self.then.guarantee(size, min(norm, self.norm))

    def body_size(self, layout: Layout) -> int:
        """Return the bytes of what follows."""
        return self.then.body_size(layout)

    def encode_body(self, update: Update, generator: torch.Generator) -> bytes:
        """Return the body of the clipped update."""
        clipped = ClipToNorm(self.norm)(update.vector)
        return self.then.encode_body(Update(clipped, update.layout), generator)

    def decode_body(self, body: bytes, layout: Layout) -> Tensor:
        """Return what follows decodes."""
        return self.then.decode_body(body, layout)

    def body_cell(self, body: bytes, layout: Layout) -> Cell:
        """Return the cell of what follows, with the clipping before its transform."""
        cell = self.then.body_cell(body, layout)
        return replace(cell, transform=Chain.of(ClipToNorm(self.norm), cell.transform))

    def body_symbols(self, body: bytes, layout: Layout) -> bytes:
        """Return the symbols of what follows."""
        return self.then.body_symbols(body, layout)
