"""Integer noise and sums modulo a power of two: Skellam and the discrete Gaussian.

They are made for secure aggregation. Here each client sends its own sum modulo ``2**bits``, which
the server sees; each client's noise alone must protect it.
"""

from abc import abstractmethod
from dataclasses import dataclass
from functools import lru_cache
from math import ceil, inf, sqrt
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fl_sim.coding.cell import Cell
from fl_sim.coding.packing import pack, packed_size
from fl_sim.coding.transforms import Chain, ClipToNorm
from fl_sim.coding.wire import Reader, byte_planes, to_bytes
from fl_sim.privacy.accountant import Guarantee, RenyiGuarantee, skellam_divergence
from fl_sim.quantizers.base import Quantizer, QuantizerFacts
from fl_sim.quantizers.rotation import Rotation, padded_length
from fl_sim.specs import positive, within
from fl_sim.updates.local_update import Layout, Update

_SEED = 4  # bytes of the seed on the wire
_TAIL = 6.0  # deviations of the noise for which the range has room beside the clipped update
_TRIES = 100  # roundings whose norm is too large before the update is rounded towards zero


class Modular(Quantizer):
    """Clip, rotate, round at random to integers, add integer noise, send modulo ``2**bits``."""

    clip: float
    noise: float
    bits: int

    def __post_init__(self) -> None:
        positive("clip", self.clip)
        positive("noise", self.noise)
        within("bits", self.bits, 4, 16)
        if self.deviation < 0.5:
            raise ValueError(f"noise={self.noise:g} is below half a step of bits={self.bits}.")

    @property
    def grain(self) -> float:
        """Distance of two integers, in units of the update.

        The range holds every clipped update and 6 deviations of the noise.
        """
        return self.clip * (1 + _TAIL * self.noise) / (1 << (self.bits - 1))

    @property
    def deviation(self) -> float:
        """Standard deviation of the noise, in steps."""
        return self.noise * self.clip / self.grain

    @property
    @abstractmethod
    def _cumulative(self) -> NDArray[np.float64]:
        """Distribution function of the noise at ``-K .. K``."""

    @abstractmethod
    def _divergence(self, distance: float, absolute: float, order: float) -> float:
        """Return the Renyi divergence of integer vectors at an L2 and an L1 distance, in steps."""

    def _largest_norm(self, size: int, norm: float) -> float:
        """Bound on the norm of a rounded update of ``size`` elements, in steps.

        Of conditional rounding with beta = exp(-1/2) (Kairouz et al. 2021, proposition 22).
        """
        length = norm / self.grain
        usual = length**2 + size / 4 + length + sqrt(size) / 2
        return min(sqrt(usual), length + sqrt(size))

    def guarantee(self, size: int, norm: float = inf) -> Guarantee | None:
        """Return that of the noise of one client; rounding raises what it must hide."""
        padded = padded_length(size)
        reach = self._largest_norm(padded, min(norm, self.clip))

        def curve(distance: float, order: float) -> float:
            absolute = min(sqrt(padded) * distance, distance**2)
            return self._divergence(distance, absolute, order)

        return RenyiGuarantee(lambda a: curve(2 * reach, a), lambda a: curve(reach, a))

    def body_size(self, layout: Layout) -> int:
        """Return the size of seed and codes."""
        return _SEED + packed_size(padded_length(layout.size), self.bits)

    def encode_body(self, update: Update, generator: torch.Generator) -> bytes:
        """Return the seed of the rotation and the codes."""
        device = update.vector.device
        seed = torch.randint(1 << 31, (1,), generator=generator, device=device).int()
        rotation = Rotation.of(int(seed), update.layout.size, device)
        place = rotation(ClipToNorm(self.clip)(update.vector)).double() / self.grain
        whole = self._round(place, update.layout.size, generator)
        edges = torch.from_numpy(self._cumulative).to(device)
        chance = torch.rand(place.shape, generator=generator, device=device, dtype=torch.float64)
        noise = torch.searchsorted(edges, chance) - (len(edges) - 1) // 2
        codes = (whole.long() + noise) & ((1 << self.bits) - 1)
        kind = torch.uint8 if self.bits <= 8 else torch.int32
        return to_bytes(seed, pack(codes.to(kind), self.bits))

    def _round(self, place: Tensor, size: int, generator: torch.Generator) -> Tensor:
        limit = self._largest_norm(padded_length(size), self.clip)
        below = place.floor()
        for _ in range(_TRIES):
            chance = torch.rand(
                place.shape, generator=generator, device=place.device, dtype=torch.float64
            )
            rounded = below + (chance < place - below)
            if float(torch.linalg.vector_norm(rounded)) <= limit:
                return rounded
        return place.trunc()

    def _read(self, body: bytes, layout: Layout) -> tuple[Rotation, Tensor, Tensor]:
        """Return rotation, codes, and the values they stand for."""
        reader = Reader(body)
        rotation = Rotation.of(reader.integer(), layout.size)
        codes = reader.codes(padded_length(layout.size), 1 << self.bits)
        half = 1 << (self.bits - 1)
        signed = (codes.int() + half) % (2 * half) - half
        return rotation, codes, (signed.double() * self.grain).float()

    def decode_body(self, body: bytes, layout: Layout) -> Tensor:
        """Return the integers nearest to zero that have these codes, rotated back."""
        rotation, _, values = self._read(body, layout)
        return rotation.invert(values)

    def body_cell(self, body: bytes, layout: Layout) -> Cell:
        """Return Gaussian noise of the variance of noise and rounding around each element."""
        rotation, _, center = self._read(body, layout)
        anything = torch.full_like(center, torch.inf)
        deviation = sqrt(self.deviation**2 + 1 / 6) * self.grain
        return Cell(
            center,
            -anything,
            anything,
            torch.full_like(center, deviation),
            (center.numel(),),
            noise="gaussian",
            transform=Chain(ClipToNorm(self.clip), rotation),
        )

    def body_symbols(self, body: bytes, layout: Layout) -> bytes:
        """Return the seed, then the codes as bytes."""
        _, codes, _ = self._read(body, layout)
        return body[:_SEED] + to_bytes(*byte_planes(codes, 1 << self.bits))


@dataclass(frozen=True)
class Skellam(Modular):
    """Clip to L2 norm ``clip``, rotate, round, add Skellam noise of deviation ``noise * clip``.

    Sent modulo ``2**bits`` by each client, without secure aggregation.
    """

    name: ClassVar[str] = "skellam"
    facts: ClassVar[QuantizerFacts] = QuantizerFacts(
        "b d + 32 for the seed",
        False,
        "bias of clipping and of conditional rounding, then Var = (z C)^2 + D^2 u (1 - u)",
        "Agarwal et al. 2021, arXiv 2110.04995",
    )

    clip: float
    noise: float
    bits: int = 16

    @property
    def _cumulative(self) -> NDArray[np.float64]:
        return _skellam(self.deviation)

    def _divergence(self, distance: float, absolute: float, order: float) -> float:
        return skellam_divergence(distance, absolute, self.deviation**2, order)


@dataclass(frozen=True)
class DiscreteGaussian(Modular):
    """Clip to L2 norm ``clip``, rotate, round, add discrete Gaussian noise of ``noise * clip``.

    Sent modulo ``2**bits`` by each client, without secure aggregation.
    """

    name: ClassVar[str] = "discrete_gaussian"
    facts: ClassVar[QuantizerFacts] = QuantizerFacts(
        "b d + 32 for the seed",
        False,
        "bias of clipping and of conditional rounding, then Var = (z C)^2 + D^2 u (1 - u)",
        "Kairouz et al. 2021, arXiv 2102.06387",
    )

    clip: float
    noise: float
    bits: int = 16

    @property
    def _cumulative(self) -> NDArray[np.float64]:
        return _discrete_gaussian(self.deviation)

    def _divergence(self, distance: float, absolute: float, order: float) -> float:
        """Return a D^2 / (2 sigma^2) (Canonne et al. 2020, arXiv 2004.00010, theorem 14)."""
        del absolute
        return order * distance**2 / (2 * self.deviation**2)


@lru_cache(maxsize=8)
def _discrete_gaussian(deviation: float) -> NDArray[np.float64]:
    places = _places(deviation)
    return _summed(np.exp(-(places**2) / (2 * deviation**2)))


@lru_cache(maxsize=8)
def _skellam(deviation: float) -> NDArray[np.float64]:
    """Skellam noise is the difference of two Poisson numbers of mean ``deviation**2 / 2``."""
    from scipy.special import ive  # noqa: PLC0415 - slow to import

    return _summed(ive(np.abs(_places(deviation)), deviation**2))


def _places(deviation: float) -> NDArray[np.float64]:
    reach = ceil(12 * deviation) + 30
    return np.arange(-reach, reach + 1, dtype=np.float64)


def _summed(mass: NDArray[np.float64]) -> NDArray[np.float64]:
    cumulative: NDArray[np.float64] = np.cumsum(mass) / mass.sum()
    cumulative[-1] = 1.0
    return cumulative
