"""Powers of a base: nearest in the logarithm, or rounded at random between powers of two."""

from dataclasses import dataclass
from math import log
from typing import ClassVar

import torch
from torch import Tensor

from fl_sim.quantizers.base import Facts, Quantizer
from fl_sim.quantizers.cell import Cell, resolvable_step
from fl_sim.quantizers.groups import Groups, Scope
from fl_sim.quantizers.packing import pack, packed_size
from fl_sim.quantizers.parameters import show, within
from fl_sim.quantizers.payload import PayloadError
from fl_sim.quantizers.wire import FLOAT, Reader, byte_planes, to_bytes
from fl_sim.updates import Layout, Update


@dataclass(frozen=True)
class Log(Quantizer):
    """Zero, or plus or minus ``m base^-k``, where ``m`` is the largest magnitude of the tensor.

    ``k`` runs from 0 to ``2^(bits-1) - 2``. The exponent nearest to that of ``x / m`` is
    sent; what lies half a power below the last one becomes zero. Codes ascend with the value:
    code ``2^(bits-1) - 1`` is zero.
    """

    name: ClassVar[str] = "log"
    facts: ClassVar[Facts] = Facts(
        bits="b d + 32 a tensor",
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
        """Return the codes and 4 bytes a scale."""
        return Groups.of(layout, self.scope).count * FLOAT + packed_size(layout.size, self.bits)

    def _encode(self, update: Update, generator: torch.Generator) -> bytes:
        del generator
        groups = Groups.of(update.layout, self.scope)
        largest = groups.largest_magnitude(update.vector)
        share = update.vector.abs() / groups.expand(torch.where(largest > 0, largest, 1))
        exponent = (share.log() / -log(self.base)).round_().clamp_(0, self._powers)
        rank = self._powers - exponent
        codes = (rank * update.vector.sign() + self._powers).int()
        packed = pack(codes.to(torch.uint8) if self.bits <= 8 else codes, self.bits)
        return to_bytes(largest, packed)

    def _read(self, body: bytes, layout: Layout) -> tuple[Tensor, Tensor]:
        """Return the scale of each element, and its signed rank: 0 for zero."""
        groups = Groups.of(layout, self.scope)
        reader = Reader(body)
        scale = groups.expand(reader.magnitudes(groups.count))
        codes = reader.codes(layout.size, 2 * self._powers + 1)
        return scale, codes.int() - self._powers

    def _power(self, rank: Tensor) -> Tensor:
        return torch.exp((rank - self._powers) * log(self.base)).float()

    def _decode(self, body: bytes, layout: Layout) -> Tensor:
        scale, rank = self._read(body, layout)
        return rank.sign() * self._power(rank.abs().double()) * scale

    def _cell(self, body: bytes, layout: Layout) -> Cell:
        scale, rank = self._read(body, layout)
        center = self._decode(body, layout)
        size = rank.abs().double()
        inner = torch.where(rank == 0, -1, self._power(size - 0.5)) * scale
        outer = self._power(size + 0.5).clamp_max(1) * scale
        inner = torch.where(rank == 0, -outer, inner)
        lower = torch.where(rank < 0, -outer, inner)
        upper = torch.where(rank < 0, -inner, outer)
        step = resolvable_step(upper - lower, center, layout)
        return Cell(center, lower, upper, step, layout.sizes)

    def _symbols(self, body: bytes, layout: Layout) -> bytes:
        scales = Groups.of(layout, self.scope).count * FLOAT
        _, rank = self._read(body, layout)
        return body[:scales] + to_bytes(*byte_planes(rank + self._powers, 1 << self.bits))


@dataclass(frozen=True)
class Natural(Quantizer):
    """Round to the power of two below or above at random, without bias: sign and exponent.

    The fraction of a float32 is exactly the probability to round up, subnormal numbers included;
    the largest exponent, which has nothing above it, rounds down.
    """

    name: ClassVar[str] = "natural"
    facts: ClassVar[Facts] = Facts(
        "9 d", True, "E L2(e)^2 <= L2(x)^2 / 8", "Horvath et al. 2019, arXiv 1905.10988"
    )

    def body_size(self, layout: Layout) -> int:
        """Return 9 bits an element, in bytes."""
        return packed_size(layout.size, 9)

    def _encode(self, update: Update, generator: torch.Generator) -> bytes:
        bits = update.vector.contiguous().view(torch.int32)
        below = (bits >> 23) & 0xFF
        chance = torch.randint(
            1 << 23, bits.shape, generator=generator, device=bits.device, dtype=torch.int32
        )
        exponent = (below + (chance < (bits & 0x7FFFFF))).clamp_max(254)
        return to_bytes(pack(exponent | ((bits < 0).int() << 8), 9))

    def _read(self, body: bytes, layout: Layout) -> tuple[Tensor, Tensor]:
        """Return the sign, +1 or -1, and the exponent field of each element."""
        codes = Reader(body).codes(layout.size, 1 << 9)
        exponent = codes & 0xFF
        if bool((exponent == 255).any()):
            raise PayloadError("The payload holds a value that is not finite.")
        return 1 - 2 * (codes >> 8), exponent

    def _decode(self, body: bytes, layout: Layout) -> Tensor:
        sign, exponent = self._read(body, layout)
        return sign * (exponent << 23).view(torch.float32)

    def _cell(self, body: bytes, layout: Layout) -> Cell:
        sign, exponent = self._read(body, layout)
        magnitude = (exponent << 23).view(torch.float32)
        above = ((exponent + 1) << 23).view(torch.float32)  # infinite above the last
        below = ((exponent - 1).clamp_min(0) << 23).view(torch.float32)
        below = torch.where(exponent == 0, -above, below)
        center = sign * magnitude
        step = resolvable_step(magnitude, center, layout)
        return Cell(
            center=center,
            lower=torch.where(sign < 0, -above, below),
            upper=torch.where(sign < 0, -below, above),
            step=step,
            sizes=layout.sizes,
            noise="triangular",
        )

    def _symbols(self, body: bytes, layout: Layout) -> bytes:
        return to_bytes(*byte_planes(Reader(body).codes(layout.size, 1 << 9), 1 << 9))
