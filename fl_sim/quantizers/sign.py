"""One bit an element: its sign, alone or with the mean magnitude of its tensor."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from fl_sim.coding.cell import Cell, usable_step
from fl_sim.coding.groups import Groups, Scope
from fl_sim.coding.memory import empty
from fl_sim.coding.packing import pack, packed_size
from fl_sim.coding.wire import FLOAT, Reader, to_bytes
from fl_sim.quantizers.base import Facts, Quantizer
from fl_sim.updates.local_update import Layout, Update


@dataclass(frozen=True)
class Sign(Quantizer):
    """+1 or -1; zero becomes +1. No magnitude is sent."""

    name: ClassVar[str] = "sign"
    facts: ClassVar[Facts] = Facts(
        "d", False, "unbounded: only the sign is kept", "Bernstein et al. 2018, arXiv 1802.04434"
    )

    def body_size(self, layout: Layout) -> int:
        """Return one bit an element, in bytes."""
        return packed_size(layout.size, 1)

    def _encode(self, update: Update, generator: torch.Generator) -> bytes:
        del generator
        return to_bytes(pack_signs(update.vector))

    def _decode(self, body: bytes, layout: Layout) -> Tensor:
        return read_signs(Reader(body), layout.size)

    def _cell(self, body: bytes, layout: Layout) -> Cell:
        center = self._decode(body, layout)
        lower, upper = half_lines(center)
        return Cell(center, lower, upper, torch.ones_like(center), layout.sizes, scale_free=True)


@dataclass(frozen=True)
class ScaledSign(Quantizer):
    """The sign times the mean magnitude of the tensor, the scale of least squared error."""

    name: ClassVar[str] = "scaled_sign"
    facts: ClassVar[Facts] = Facts(
        "d + 32 a tensor",
        False,
        "L2(e)^2 = (1 - L1(x)^2 / (d L2(x)^2)) L2(x)^2 where no element is 0",
        "Karimireddy et al. 2019, arXiv 1901.09847",
    )

    scope: Scope = "tensor"

    def body_size(self, layout: Layout) -> int:
        """Return one bit an element and 4 bytes a scale, in bytes."""
        return Groups.of(layout, self.scope).count * FLOAT + packed_size(layout.size, 1)

    def _encode(self, update: Update, generator: torch.Generator) -> bytes:
        del generator
        groups = Groups.of(update.layout, self.scope)
        return to_bytes(groups.mean_magnitude(update.vector), pack_signs(update.vector))

    def _decode(self, body: bytes, layout: Layout) -> Tensor:
        groups = Groups.of(layout, self.scope)
        reader = Reader(body)
        scale = reader.magnitudes(groups.count)
        vector = read_signs(reader, layout.size)
        for tile in groups.tiles():
            vector[tile.span].view(tile.rows, -1).mul_(scale[tile.groups, None])
        return vector

    def _cell(self, body: bytes, layout: Layout) -> Cell:
        groups = Groups.of(layout, self.scope)
        scale = groups.expand(Reader(body).magnitudes(groups.count))
        center = self._decode(body, layout)
        lower, upper = half_lines(center)
        return Cell(center, lower, upper, usable_step(scale), layout.sizes)


def pack_signs(vector: Tensor) -> Tensor:
    """Pack one bit an element: 1 where it is not negative."""
    signs = empty(vector.numel(), torch.bool, vector.device)
    return pack(torch.ge(vector, 0, out=signs).view(torch.uint8), 1)


def read_signs(reader: Reader, count: int) -> Tensor:
    """Return ``(count,)`` values +1 and -1."""
    return empty(count, torch.float32).copy_(reader.codes(count, 2)).mul_(2).sub_(1)


def half_lines(center: Tensor) -> tuple[Tensor, Tensor]:
    """Return the bounds of all values with the sign of ``center``; (0, 0) where it is 0."""
    zero = torch.zeros_like(center)
    lower = zero.masked_fill(center < 0, -torch.inf)
    return lower, zero.masked_fill(center > 0, torch.inf)
