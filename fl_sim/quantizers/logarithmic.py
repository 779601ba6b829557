"""Powers of a base: the nearest by logarithm, or a random one of the two powers of two beside."""

from dataclasses import dataclass
from math import log
from typing import ClassVar

import torch
from torch import Tensor

from fl_sim.coding.cell import Cell, resolvable_step
from fl_sim.coding.groups import Groups, Scope
from fl_sim.coding.packing import pack, packed_size
from fl_sim.coding.vectors import empty, look_up, spans
from fl_sim.coding.wire import (
    FLOAT,
    Reader,
    byte_planes,
    codes_buffer,
    refuse_nonfinite,
    to_bytes,
)
from fl_sim.quantizers.base import Quantizer, QuantizerFacts
from fl_sim.specs import show, within
from fl_sim.updates.local_update import Layout, Update

_EXPONENT = 0xFF << 23  # of a float32's bits
_LAST = 254 << 23  # the largest finite exponent


@dataclass(frozen=True)
class Log(Quantizer):
    """Zero, or plus or minus ``m base^-k``, where ``m`` is the largest magnitude of the tensor.

    ``k`` is 0 to ``2^(bits-1) - 2``. The exponent nearest to that of ``x / m`` is sent. Elements
    more than half a power below the smallest power become zero. Codes ascend with the value; code
    ``2^(bits-1) - 1`` is zero.
    """

    name: ClassVar[str] = "log"
    facts: ClassVar[QuantizerFacts] = QuantizerFacts(
        bits="b d + 32 per tensor",
        unbiased=False,
        error="relative <= sqrt(base) - 1 above m base^-(2^(b-1) - 3/2); absolute below",
        source="Miyashita et al. 2016, arXiv 1603.01025",
    )

    base: float
    bits: int = 6
    scope: Scope = "tensor"

    def __post_init__(self) -> None:
        if not 1 < self.base <= 256:
            raise ValueError(f"base={show(self.base)} is not allowed; give above 1, up to 256.")
        within("bits", self.bits, 2, 16)

    @property
    def _powers(self) -> int:
        return (1 << (self.bits - 1)) - 1

    def body_size(self, layout: Layout) -> int:
        """Return the size of the codes, and 4 bytes per scale."""
        return Groups.of(layout, self.scope).count * FLOAT + packed_size(layout.size, self.bits)

    def encode_body(self, update: Update, generator: torch.Generator) -> bytes:
        """Return the scales, then the codes."""
        del generator
        groups = Groups.of(update.layout, self.scope)
        largest = groups.largest_magnitude(update.vector)
        divisor = torch.where(largest > 0, largest, 1)
        codes = codes_buffer(update.layout.size, 1 << self.bits, update.vector.device)
        for tile in groups.tiles():
            x = update.vector[tile.span].view(tile.rows, -1)
            share = x.abs().div_(divisor[tile.groups, None])
            exponent = share.log_().mul_(-1 / log(self.base)).round_().clamp_(0, self._powers)
            rank = exponent.neg_().add_(self._powers).mul_(x.sign())
            codes[tile.span] = rank.add_(self._powers).view(-1)
        return to_bytes(largest, pack(codes, self.bits))

    def _read(self, body: bytes, layout: Layout) -> tuple[Groups, Tensor, Tensor]:
        """Return the groups, the scale of each, and the code of each element."""
        groups = Groups.of(layout, self.scope)
        reader = Reader(body)
        scale = reader.magnitudes(groups.count)
        return groups, scale, reader.codes(layout.size, 2 * self._powers + 1)

    def _tables(self) -> tuple[Tensor, Tensor]:
        """Return the value of each code and the edges around the codes, for a scale of 1."""
        ranks = torch.arange(1, self._powers + 1, dtype=torch.float64)
        powers = torch.exp((ranks - self._powers) * log(self.base))
        edges = torch.exp((ranks - 0.5 - self._powers) * log(self.base))
        one = powers[-1:]
        values = torch.cat([-powers.flip(0), torch.zeros_like(one), powers])
        return values.float(), torch.cat([-one, -edges.flip(0), edges, one]).float()

    def decode_body(self, body: bytes, layout: Layout) -> Tensor:
        """Return the power of each code times its scale."""
        groups, scale, codes = self._read(body, layout)
        values, _ = self._tables()
        vector = look_up(values, codes)
        for tile in groups.tiles():
            vector[tile.span].view(tile.rows, -1).mul_(scale[tile.groups, None])
        return vector

    def body_cell(self, body: bytes, layout: Layout) -> Cell:
        """Return bounds half a power to either side."""
        groups, scales, codes = self._read(body, layout)
        _, edges = self._tables()
        scale, which = groups.expand(scales), codes.long()
        center = self.decode_body(body, layout)
        lower, upper = edges[which] * scale, edges[which + 1] * scale
        step = resolvable_step(upper - lower, center, layout)
        return Cell(center, lower, upper, step, layout.sizes)

    def body_symbols(self, body: bytes, layout: Layout) -> bytes:
        """Return the scales, then the codes as bytes."""
        _, scale, codes = self._read(body, layout)
        return to_bytes(scale, *byte_planes(codes, 1 << self.bits))


@dataclass(frozen=True)
class Natural(Quantizer):
    """Round to the power of two below or above at random, without bias: sign and exponent.

    The fraction of a float32 is exactly the probability to round up, also of subnormal numbers.
    Numbers with the largest exponent, which has none above it, round down.
    """

    name: ClassVar[str] = "natural"
    facts: ClassVar[QuantizerFacts] = QuantizerFacts(
        "9 d", True, "E L2(e)^2 <= L2(x)^2 / 8", "Horvath et al. 2019, arXiv 1905.10988"
    )

    def body_size(self, layout: Layout) -> int:
        """Return the size of 9 bits per element."""
        return packed_size(layout.size, 9)

    def encode_body(self, update: Update, generator: torch.Generator) -> bytes:
        """Return the codes: sign and exponent."""
        codes = codes_buffer(update.layout.size, 1 << 9, update.vector.device)
        for span in spans(update.layout.size):
            bits = update.vector[span].view(torch.int32)
            chance = torch.empty_like(bits).random_(1 << 23, generator=generator)
            up = (chance < (bits & 0x7FFFFF)).logical_and_((bits & _EXPONENT) < _LAST)
            codes[span] = (bits >> 23).bitwise_and_(0x1FF).add_(up)
        return to_bytes(pack(codes, 9))

    def decode_body(self, body: bytes, layout: Layout) -> Tensor:
        """Return the power of two of each code."""
        codes = Reader(body).codes(layout.size, 1 << 9)
        vector = empty(layout.size, torch.float32)
        for span in spans(layout.size):
            vector[span] = (codes[span] << 23).view(torch.float32)
        return refuse_nonfinite(vector)

    def body_cell(self, body: bytes, layout: Layout) -> Cell:
        """Return the powers below and above as bounds."""
        center = self.decode_body(body, layout)
        bits = center.abs().view(torch.int32)
        above = (bits + (1 << 23)).view(torch.float32)  # infinite above the last
        below = (bits - (1 << 23)).clamp_min(0).view(torch.float32)
        below = torch.where(bits == 0, -above, below)
        return Cell(
            center=center,
            lower=torch.where(center < 0, -above, below),
            upper=torch.where(center < 0, -below, above),
            step=resolvable_step(center.abs(), center, layout),
            sizes=layout.sizes,
            noise="triangular",
        )

    def body_symbols(self, body: bytes, layout: Layout) -> bytes:
        """Return the codes as bytes."""
        return to_bytes(*byte_planes(Reader(body).codes(layout.size, 1 << 9), 1 << 9))
