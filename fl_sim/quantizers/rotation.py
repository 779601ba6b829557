"""Quantizers behind a public random rotation, after which every element is nearly Gaussian."""

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import sqrt
from typing import ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from fl_sim.coding.cell import Cell, usable_step, width_of
from fl_sim.coding.memory import empty
from fl_sim.coding.packing import pack, packed_size, unpack
from fl_sim.coding.tables import find_codes, look_up
from fl_sim.coding.wire import (
    FLOAT,
    Reader,
    byte_planes,
    codes_buffer,
    refuse_nonfinite,
    to_bytes,
)
from fl_sim.quantizers.base import Facts, Quantizer
from fl_sim.quantizers.sign import half_lines
from fl_sim.specs import within
from fl_sim.updates.local_update import Layout, Update

_SEED = 4  # bytes of the seed on the wire


@dataclass(frozen=True, eq=False)
class Rotation:
    """Random signs, then the orthonormal Hartley transform: the randomized Hadamard of any length.

    The Hartley transform (Bracewell 1983) is real, its own inverse and as fast as an FFT. Unlike
    Hadamard's it exists for every length; zeros are appended up to `fast_length`, a percent or so
    where the next power of two can be twice as far.

    Attributes
    ----------
    signs : Tensor
        ``(..., n)`` of +1 and -1; leading dimensions index payloads.
    """

    signs: Tensor

    @classmethod
    def of(cls, seed: int, size: int, device: torch.device | str = "cpu") -> "Rotation":
        """Return the rotation a seed stands for, the same on every device."""
        # NumPy keeps this legacy stream frozen, and anyone can write it: MT19937, 4 bytes a word.
        coins = np.random.RandomState(seed).bytes(-(-size // 8))
        bits = unpack(torch.from_numpy(np.frombuffer(coins, np.uint8).copy()), 1, 8 * len(coins))
        signs = empty(bits.numel(), torch.float32).copy_(bits)
        return cls(signs.mul_(2).sub_(1)[:size].to(device))

    def __call__(self, update: Tensor) -> Tensor:
        """Rotate ``(..., n)`` to ``(..., fast_length(n))``."""
        signed = update * self.signs.to(update.device)
        size = signed.shape[-1]
        return hartley(torch.nn.functional.pad(signed, (0, fast_length(size) - size)))

    def invert(self, rotated: Tensor) -> Tensor:
        """Rotate ``(..., fast_length(n))`` back to ``(..., n)``."""
        return hartley(rotated)[..., : self.signs.shape[-1]] * self.signs.to(rotated.device)

    def stack(self, others: Sequence["Rotation"]) -> "Rotation":
        """Return the rotations of several payloads, stacked."""
        return Rotation(torch.stack([other.signs for other in others]))


@lru_cache(maxsize=64)
def fast_length(size: int) -> int:
    """Return the smallest product of powers of 2, 3, 5 and 7 that is at least ``size``.

    A Fourier transform of a length with a large prime factor takes many times as long.
    """
    products = [1]
    for prime in (3, 5, 7):
        exponents = range(size.bit_length())
        products = [p * prime**e for p in products for e in exponents if p * prime**e < 2 * size]
    # The power of two that lifts a product to at least the size.
    return min(p << max(0, -(-size // p) - 1).bit_length() for p in products)


def hartley(x: Tensor) -> Tensor:
    """Orthonormal discrete Hartley transform of the last dimension: real minus imaginary part."""
    half = torch.fft.rfft(x, norm="ortho")
    # The other half of a real signal's spectrum is the conjugate of this one, in reverse.
    mirrored = (half.real + half.imag)[..., 1 : (x.shape[-1] + 1) // 2].flip(-1)
    return torch.cat([half.real - half.imag, mirrored], dim=-1)


class Rotated(Quantizer):
    """Draws a seed, rotates the whole update, quantizes with one codebook for all elements."""

    floats: ClassVar[int]

    @property
    @abstractmethod
    def code_width(self) -> int:
        """Bits of a code."""

    @abstractmethod
    def _quantize(self, rotated: Tensor) -> tuple[Tensor, Tensor]:
        """Return the side information, ``(floats,)``, and uint8 codes."""

    @abstractmethod
    def _tables(self, side: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return center, lower and upper bound of what each code stands for."""

    def body_size(self, layout: Layout) -> int:
        """Return seed, scales and codes, in bytes."""
        return _SEED + self.floats * FLOAT + packed_size(fast_length(layout.size), self.code_width)

    def _encode(self, update: Update, generator: torch.Generator) -> bytes:
        device = update.vector.device
        seed = torch.randint(1 << 31, (1,), generator=generator, device=device).int()
        side, codes = self._quantize(
            Rotation.of(int(seed), update.layout.size, device)(update.vector)
        )
        return to_bytes(seed, side, pack(codes, self.code_width))

    def _read(self, body: bytes, layout: Layout) -> tuple[Rotation, Tensor, Tensor]:
        """Return rotation, side information and codes."""
        reader = Reader(body)
        seed = reader.integer()
        side = reader.magnitudes(self.floats)
        codes = reader.codes(fast_length(layout.size), 1 << self.code_width)
        return Rotation.of(seed, layout.size), side, codes

    def _decode(self, body: bytes, layout: Layout) -> Tensor:
        rotation, side, codes = self._read(body, layout)
        return refuse_nonfinite(rotation.invert(look_up(self._tables(side)[0], codes)))

    def _cell(self, body: bytes, layout: Layout) -> Cell:
        rotation, side, codes = self._read(body, layout)
        center, lower, upper = (look_up(table, codes) for table in self._tables(side))
        step = usable_step(width_of(center, lower, upper))
        return Cell(center, lower, upper, step, (center.numel(),), transform=rotation)

    def _symbols(self, body: bytes, layout: Layout) -> bytes:
        _, side, codes = self._read(body, layout)
        return body[:_SEED] + to_bytes(side, *byte_planes(codes, 1 << self.code_width))


@dataclass(frozen=True)
class Drive(Rotated):
    """One bit an element after rotation, and the scale that makes the estimate unbiased.

    ``scale=biased`` sends the mean magnitude instead, of least squared error.
    """

    name: ClassVar[str] = "drive"
    facts: ClassVar[Facts] = Facts(
        "d + 32 + 32 for the seed",
        True,
        "E L2(e)^2 / L2(x)^2 = pi/2 - 1 (1 - 2/pi with scale=biased)",
        "Vargaftik et al. 2021, arXiv 2105.08339",
    )
    floats: ClassVar[int] = 1

    scale: Literal["unbiased", "biased"] = "unbiased"

    @property
    def code_width(self) -> int:
        """Bits of a code."""
        return 1

    def _quantize(self, rotated: Tensor) -> tuple[Tensor, Tensor]:
        total = torch.linalg.vector_norm(rotated, 1)
        energy = torch.linalg.vector_norm(rotated) ** 2
        unbiased = torch.where(total > 0, energy / total, 0)
        scale = unbiased if self.scale == "unbiased" else total / rotated.numel()
        return scale.view(1), (rotated >= 0).view(torch.uint8)

    def _tables(self, side: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        center = torch.cat([-side, side])
        return center, *half_lines(center)


@dataclass(frozen=True)
class Eden(Rotated):
    """The Lloyd-Max codebook of a Gaussian after rotation, scaled to be unbiased."""

    name: ClassVar[str] = "eden"
    facts: ClassVar[Facts] = Facts(
        "b d + 64 + 32 for the seed",
        True,
        "E L2(e)^2 / L2(x)^2 = 0.571 / 0.133 / 0.0358 / 0.0096 for b = 1 / 2 / 3 / 4",
        "Vargaftik et al. 2022, arXiv 2108.08842",
    )
    floats: ClassVar[int] = 2  # the unbiased scale, then the root mean square

    bits: int

    def __post_init__(self) -> None:
        within("bits", self.bits, 1, 8)

    @property
    def code_width(self) -> int:
        """Bits of a code."""
        return self.bits

    def _quantize(self, rotated: Tensor) -> tuple[Tensor, Tensor]:
        book, edges = (part.to(rotated.device) for part in lloyd_max(self.bits))
        size = torch.linalg.vector_norm(rotated)
        unit = size / sqrt(max(1, rotated.numel()))
        codes = codes_buffer(rotated.numel(), 1 << self.bits, rotated.device)
        find_codes(rotated, edges * unit, codes)
        agreement = rotated @ look_up(book, codes)
        scale = torch.where(agreement > 0, size**2 / agreement, 0)
        return torch.stack([scale, unit]), codes

    def _tables(self, side: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        book, edges = lloyd_max(self.bits)
        scale, unit = side
        far = edges.new_tensor([torch.inf])
        lower = torch.cat([-far, edges * unit])
        upper = torch.cat([edges * unit, far])
        # The unbiased scale is a little above the unit; on vectors of a few elements it can push
        # an estimate over the edge of its own cell, where no update it could stand for lies.
        return torch.clamp(book * scale, lower, upper), lower, upper


@lru_cache(maxsize=8)
def lloyd_max(bits: int) -> tuple[Tensor, Tensor]:
    """Return the ``2**bits`` centroids and the edges between them of a standard Gaussian.

    Lloyd's iteration in closed form, from the companding density of Panter and Dite (1951).
    """
    levels = 1 << bits
    share = (torch.arange(levels, dtype=torch.float64) + 0.5) / levels
    book = sqrt(3) * torch.special.ndtri(share)
    outside = torch.tensor([torch.inf], dtype=torch.float64)
    for _ in range(2000):
        edges = torch.cat([-outside, (book[1:] + book[:-1]) / 2, outside])
        density = torch.exp(-(edges**2) / 2) / sqrt(2 * torch.pi)
        book = -density.diff() / torch.special.ndtr(edges).diff()
    return book.float(), edges[1:-1].float()
