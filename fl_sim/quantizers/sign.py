"""One bit per element: its sign, alone or with the mean magnitude of its tensor."""

from dataclasses import dataclass
from math import isfinite
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from fl_sim.coding.cell import Cell, nonzero_step
from fl_sim.coding.groups import Groups, Scope
from fl_sim.coding.packing import pack, packed_size
from fl_sim.coding.vectors import TILE, empty, spans
from fl_sim.coding.wire import FLOAT, Reader, to_bytes
from fl_sim.quantizers.base import Quantizer, QuantizerFacts, refuse_nonfinite
from fl_sim.updates.local_update import Layout, Update


@dataclass(frozen=True)
class Sign(Quantizer):
    """+1 or -1; zero becomes +1. No magnitude is sent."""

    name: ClassVar[str] = "sign"
    facts: ClassVar[QuantizerFacts] = QuantizerFacts(
        "d", False, "unbounded: only the sign is kept", "Bernstein et al. 2018, arXiv 1802.04434"
    )
    checks_finite: ClassVar[bool] = True

    def body_size(self, layout: Layout) -> int:
        """Return the size of one bit per element."""
        return packed_size(layout.size, 1)

    def encode_body(self, update: Update, generator: torch.Generator) -> bytes:
        """Return one bit per element."""
        del generator
        return _checked_signs(update)

    def decode_body(self, body: bytes, layout: Layout) -> Tensor:
        """Return +1 and -1."""
        return read_signs(Reader(body), layout.size)

    def body_cell(self, body: bytes, layout: Layout) -> Cell:
        """Return half-lines, in units of the candidate's mean magnitude."""
        center = self.decode_body(body, layout)
        lower, upper = half_lines(center)
        return Cell(center, lower, upper, torch.ones_like(center), layout.sizes, scale_free=True)


@dataclass(frozen=True)
class ScaledSign(Quantizer):
    """The sign times the mean magnitude of the tensor: the scale of least squared error."""

    name: ClassVar[str] = "scaled_sign"
    facts: ClassVar[QuantizerFacts] = QuantizerFacts(
        "d + 32 per tensor",
        False,
        "L2(e)^2 = (1 - L1(x)^2 / (d L2(x)^2)) L2(x)^2 where no element is 0",
        "Karimireddy et al. 2019, arXiv 1901.09847",
    )
    checks_finite: ClassVar[bool] = True

    scope: Scope = "tensor"

    def body_size(self, layout: Layout) -> int:
        """Return the size of one bit per element, and 4 bytes per scale."""
        return Groups.of(layout, self.scope).count * FLOAT + packed_size(layout.size, 1)

    def encode_body(self, update: Update, generator: torch.Generator) -> bytes:
        """Return the scales, then one bit per element."""
        del generator
        groups = Groups.of(update.layout, self.scope)
        signs = _checked_signs(update)
        return to_bytes(groups.mean_magnitude(update.vector)) + signs

    def decode_body(self, body: bytes, layout: Layout) -> Tensor:
        """Return plus and minus the scale."""
        groups = Groups.of(layout, self.scope)
        reader = Reader(body)
        scale = reader.magnitudes(groups.count)
        vector = read_signs(reader, layout.size)
        for tile in groups.tiles():
            vector[tile.span].view(tile.rows, -1).mul_(scale[tile.groups, None])
        return vector

    def body_cell(self, body: bytes, layout: Layout) -> Cell:
        """Return half-lines, with the scale as their step."""
        groups = Groups.of(layout, self.scope)
        scale = groups.expand(Reader(body).magnitudes(groups.count))
        center = self.decode_body(body, layout)
        lower, upper = half_lines(center)
        return Cell(center, lower, upper, nonzero_step(scale), layout.sizes)


def pack_signs(vector: Tensor) -> tuple[bytes, float]:
    """Return one bit per element, 1 where it is not negative, and the sum of the elements.

    If the sum is finite, every element is. Both come from one pass over memory, as two passes
    would take nearly twice as long.
    """
    if vector.device.type != "cpu":
        return to_bytes(pack((vector >= 0).view(torch.uint8), 1)), float(vector.sum())
    values = vector.numpy()
    # One buffer for all pieces: a new one each time would cost page faults. And einsum adds up a
    # piece in a third of the time of sum, whose rounding is better than needed here.
    signs = np.empty(min(values.size, TILE), dtype=bool)
    total, packed = 0.0, []
    for span in spans(values.size):
        piece = values[span]
        total += float(np.einsum("i->", piece))
        bits = np.greater_equal(piece, 0, out=signs[: piece.size])
        packed.append(np.packbits(bits, bitorder="little").data)
    return b"".join(packed), total


def _checked_signs(update: Update) -> bytes:
    packed, total = pack_signs(update.vector)
    if not isfinite(total):
        refuse_nonfinite(update)
    return packed


def read_signs(reader: Reader, count: int) -> Tensor:
    """Return ``(count,)`` values +1 and -1."""
    return empty(count, torch.float32).copy_(reader.codes(count, 2)).mul_(2).sub_(1)


def half_lines(center: Tensor) -> tuple[Tensor, Tensor]:
    """Return the bounds of all values with the sign of ``center``; (0, 0) where it is 0."""
    zero = torch.zeros_like(center)
    lower = zero.masked_fill(center < 0, -torch.inf)
    return lower, zero.masked_fill(center > 0, torch.inf)
