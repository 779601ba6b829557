"""Floating-point formats: float32 itself and narrower ones."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from fl_sim.quantizers.base import Facts, Quantizer
from fl_sim.quantizers.cell import Cell, resolvable_step
from fl_sim.quantizers.wire import FLOAT, Reader, to_bytes
from fl_sim.updates import Layout, Update


@dataclass(frozen=True)
class Identity(Quantizer):
    """Send float32 as it is: the baseline."""

    name: ClassVar[str] = "none"
    facts: ClassVar[Facts] = Facts("32 d", True, "0", "-")

    def body_size(self, layout: Layout) -> int:
        """Return 4 bytes an element."""
        return layout.size * FLOAT

    def _encode(self, update: Update, generator: torch.Generator) -> bytes:
        del generator
        return to_bytes(update.vector)

    def _decode(self, body: bytes, layout: Layout) -> Tensor:
        return Reader(body).floats(layout.size)

    def _cell(self, body: bytes, layout: Layout) -> Cell:
        center = self._decode(body, layout)
        step = resolvable_step(torch.zeros_like(center), center, layout)
        return Cell(center, center, center, step, layout.sizes)
