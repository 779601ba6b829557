"""Floating-point formats: float32 itself and narrower ones."""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from fl_sim.coding.cell import Cell, resolvable_step, width_of
from fl_sim.coding.groups import Groups, Scope
from fl_sim.coding.vectors import empty, spans
from fl_sim.coding.wire import FLOAT, Reader, refuse_nonfinite, to_bytes
from fl_sim.quantizers.base import Quantizer, QuantizerFacts
from fl_sim.updates.local_update import Layout, Update


@dataclass(frozen=True)
class Identity(Quantizer):
    """Send float32 as it is: the baseline."""

    name: ClassVar[str] = "none"
    facts: ClassVar[QuantizerFacts] = QuantizerFacts("32 d", True, "0", "the baseline")

    def body_size(self, layout: Layout) -> int:
        """Return 4 bytes per element."""
        return layout.size * FLOAT

    def encode_body(self, update: Update, generator: torch.Generator) -> bytes:
        """Return the elements themselves."""
        del generator
        return to_bytes(update.vector)

    def decode_body(self, body: bytes, layout: Layout) -> Tensor:
        """Return the elements themselves."""
        return Reader(body).floats(layout.size)

    def body_cell(self, body: bytes, layout: Layout) -> Cell:
        """Return cells without width."""
        center = self.decode_body(body, layout)
        step = resolvable_step(torch.zeros_like(center), center, layout)
        return Cell(center, center, center, step, layout.sizes)


class Half(Quantizer):
    """Round to the nearest (even) number of a 16-bit format; saturate at its largest."""

    dtype: ClassVar[torch.dtype]

    def body_size(self, layout: Layout) -> int:
        """Return 2 bytes per element."""
        return layout.size * 2

    def encode_body(self, update: Update, generator: torch.Generator) -> bytes:
        """Return the rounded elements, saturated at the largest number."""
        del generator
        numbers = empty(update.layout.size, self.dtype, update.vector.device)
        for span in spans(update.layout.size):
            numbers[span] = cast_saturating(update.vector[span], self.dtype)
        return to_bytes(numbers)

    def decode_body(self, body: bytes, layout: Layout) -> Tensor:
        """Return the elements as float32."""
        numbers = Reader(body).take(layout.size * 2).view(self.dtype)
        return refuse_nonfinite(empty(layout.size, torch.float32).copy_(numbers))

    def body_cell(self, body: bytes, layout: Layout) -> Cell:
        """Return the interval that is rounded to each element."""
        center = self.decode_body(body, layout)
        lower, upper = rounding_interval(center.to(self.dtype))
        step = resolvable_step(width_of(center, lower, upper), center, layout)
        return Cell(center, lower, upper, step, layout.sizes)

    def body_symbols(self, body: bytes, layout: Layout) -> bytes:
        """Return the low bytes, then the high ones."""
        del layout
        return body[0::2] + body[1::2]


@dataclass(frozen=True)
class Fp16(Half):
    """IEEE half precision: 5 bits of exponent, 10 of mantissa."""

    name: ClassVar[str] = "fp16"
    facts: ClassVar[QuantizerFacts] = QuantizerFacts(
        "16 d", False, "relative <= 2^-11 from 2^-14 to 65504", "IEEE 754 binary16"
    )
    dtype: ClassVar[torch.dtype] = torch.float16


@dataclass(frozen=True)
class Bf16(Half):
    """Brain float: the exponent of float32, 7 bits of mantissa."""

    name: ClassVar[str] = "bf16"
    facts: ClassVar[QuantizerFacts] = QuantizerFacts(
        "16 d", False, "relative <= 2^-8 above 2^-126", "Kalamkar et al. 2019, arXiv 1905.12322"
    )
    dtype: ClassVar[torch.dtype] = torch.bfloat16


@dataclass(frozen=True)
class Fp8(Quantizer):
    """8-bit floats, scaled so that a tensor's largest magnitude is the format's largest number."""

    name: ClassVar[str] = "fp8"
    facts: ClassVar[QuantizerFacts] = QuantizerFacts(
        "8 d + 32 per tensor",
        False,
        "relative <= 2^-4 (e4m3), 2^-3 (e5m2) in the normal range",
        "Micikevicius et al. 2022, arXiv 2209.05433",
    )

    format: Literal["e4m3", "e5m2"]
    scope: Scope = "tensor"

    @property
    def dtype(self) -> torch.dtype:
        """The torch type of the format."""
        return torch.float8_e4m3fn if self.format == "e4m3" else torch.float8_e5m2

    def body_size(self, layout: Layout) -> int:
        """Return 1 byte per element and 4 per scale."""
        return layout.size + Groups.of(layout, self.scope).count * FLOAT

    def encode_body(self, update: Update, generator: torch.Generator) -> bytes:
        """Return the scales, then one byte per element."""
        del generator
        groups = Groups.of(update.layout, self.scope)
        largest = groups.largest_magnitude(update.vector)
        scale = largest / torch.finfo(self.dtype).max
        divisor = torch.where(scale > 0, scale, 1)
        numbers = empty(update.layout.size, self.dtype, update.vector.device)
        for tile in groups.tiles():
            x = update.vector[tile.span].view(tile.rows, -1) / divisor[tile.groups, None]
            numbers[tile.span] = cast_saturating(x, self.dtype).view(-1)
        return to_bytes(scale, numbers)

    def _read(self, body: bytes, layout: Layout) -> tuple[Groups, Tensor, Tensor]:
        """Return the groups, their scales, and each element as a number of the format."""
        groups = Groups.of(layout, self.scope)
        reader = Reader(body)
        scale = reader.magnitudes(groups.count)
        return groups, scale, reader.take(layout.size).view(self.dtype)

    def decode_body(self, body: bytes, layout: Layout) -> Tensor:
        """Return the elements times their scales."""
        groups, scale, numbers = self._read(body, layout)
        vector = empty(layout.size, torch.float32).copy_(numbers)
        for tile in groups.tiles():
            vector[tile.span].view(tile.rows, -1).mul_(scale[tile.groups, None])
        return refuse_nonfinite(vector)

    def body_cell(self, body: bytes, layout: Layout) -> Cell:
        """Return the interval that is rounded to each element."""
        center = self.decode_body(body, layout)
        groups, scales, numbers = self._read(body, layout)
        scale = groups.expand(scales)
        largest = torch.finfo(self.dtype).max
        lower, upper = (bound.clamp(-largest, largest) for bound in rounding_interval(numbers))
        width = (upper - lower) * scale
        step = resolvable_step(width, center, layout)
        return Cell(center, lower * scale, upper * scale, step, layout.sizes)


def cast_saturating(values: Tensor, dtype: torch.dtype) -> Tensor:
    """Round to nearest even; values beyond the largest finite number become that number."""
    largest = torch.finfo(dtype).max
    return values.clamp(-largest, largest).to(dtype)


def rounding_interval(numbers: Tensor) -> tuple[Tensor, Tensor]:
    """Return the float32 midpoints to the next numbers below and above; infinite past the last."""
    integer = torch.int16 if numbers.element_size() == 2 else torch.int8
    sign = -(1 << (8 * numbers.element_size() - 1))
    bits = numbers.view(integer).int()
    rank = torch.where(bits < 0, sign - bits, bits)  # ascending with the number, both zeros at 0
    bounds = []
    for move in (-1, 1):
        next_rank = rank + move
        next_bits = torch.where(next_rank < 0, sign - next_rank, next_rank).to(integer)
        neighbour = next_bits.view(numbers.dtype).float()
        bounds.append((numbers.float() + neighbour) / 2)
    lower, upper = bounds
    return lower.nan_to_num(-torch.inf, neginf=-torch.inf), upper.nan_to_num(
        torch.inf, posinf=torch.inf
    )
