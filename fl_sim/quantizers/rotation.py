"""Quantizers that apply a public random rotation first: then every element is nearly Gaussian."""

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import pi, sqrt
from typing import ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from fl_sim.coding.cell import Cell, nonzero_step, width_of
from fl_sim.coding.packing import pack, packed_size
from fl_sim.coding.vectors import TILE, empty, find_codes, look_up, spans
from fl_sim.coding.wire import (
    FLOAT,
    Reader,
    byte_planes,
    codes_buffer,
    refuse_nonfinite,
    to_bytes,
)
from fl_sim.quantizers.base import Quantizer, QuantizerFacts
from fl_sim.quantizers.sign import half_lines, pack_signs
from fl_sim.specs import within
from fl_sim.updates.local_update import Layout, Update

_SEED = 4  # bytes of the seed on the wire
_CACHED = 1 << 20  # elements up to which a vector and its transform fit the caches


@dataclass(frozen=True, eq=False)
class Rotation:
    """Random signs, then `mix`: the randomized Hadamard transform, for any length.

    Attributes
    ----------
    signs : Tensor
        ``(..., n)`` int8, +1 and -1; leading dimensions index payloads.
    """

    signs: Tensor

    @classmethod
    def of(cls, seed: int, size: int, device: torch.device | str = "cpu") -> "Rotation":
        """Return the rotation of a seed, the same on every device."""
        # NumPy never changes this stream, and it is simple to write again: MT19937, 4-byte words.
        coins = np.random.RandomState(seed).bytes(-(-size // 8))
        bits = np.unpackbits(np.frombuffer(coins, np.uint8), count=size, bitorder="little")
        return cls(torch.from_numpy(bits.view(np.int8)).mul_(2).sub_(1).to(device))

    def __call__(self, update: Tensor) -> Tensor:
        """Rotate ``(..., n)`` to ``(..., padded_length(n))``."""
        length = padded_length(update.shape[-1])
        return mix(_multiply(update, self.signs.to(update.device), length))

    def invert(self, rotated: Tensor) -> Tensor:
        """Rotate ``(..., padded_length(n))`` back to ``(..., n)``."""
        size = self.signs.shape[-1]
        return _multiply(mix(rotated)[..., :size], self.signs.to(rotated.device), size)

    def stack(self, others: Sequence["Rotation"]) -> "Rotation":
        """Return the rotations of several payloads, stacked."""
        return Rotation(torch.stack([other.signs for other in others]))


def _multiply(values: Tensor, signs: Tensor, length: int) -> Tensor:
    """Return the product of ``(..., n)`` tensors, padded with zeros to ``length``."""
    size = values.shape[-1]
    if signs.dim() > 1 or not _is_large(values):
        return torch.nn.functional.pad(values * signs, (0, length - size))
    product = empty(length, values.dtype)
    for span in spans(size):
        torch.mul(values[span], signs[span], out=product[span])
    product[size:] = 0
    return product


def padded_length(size: int) -> int:
    """Return the length to which `Rotation` pads: at most 64, or up to 3 % longer than ``size``.

    The next power of two, which a Hadamard transform alone takes, can be twice as long.
    """
    rows = _rows(size)
    return -(-size // rows) * rows


def _rows(size: int) -> int:
    """Return the largest power of two, or 1, that leaves rows of 33 to 64 elements."""
    return 1 << max(0, (size - 1).bit_length() - 6)


def mix(x: Tensor) -> Tensor:
    """Multiply ``(..., n)`` by an orthonormal, symmetric matrix without large elements.

    With ``n = q * 2**k`` and odd ``q``, that is the Kronecker product of Sylvester's Hadamard
    matrix of order ``2**k`` and the Hartley transform of order ``q`` (Bracewell 1983): a
    Walsh-Hadamard transform of each ``x[r::q]``, then a Hartley transform of each ``q``
    consecutive elements. No element is above ``sqrt(2 / n)`` and the matrix is its own inverse.
    ``n`` is a `padded_length`; the cost is O(n log n).
    """
    rows = _rows(x.shape[-1])
    width = x.shape[-1] // rows
    matrix = _row_matrix(width).to(x)
    if not _is_large(x):
        return _walsh(x.reshape(*x.shape[:-1], rows, width) @ matrix).flatten(-2)
    # The same in two passes over pieces that stay in cache: neighbouring rows, then distant ones.
    mixed = empty(x.numel(), x.dtype)
    near = TILE // 64
    blocks = x.view(-1, near, width), mixed.view(-1, near, width)
    for block, target in zip(*blocks, strict=True):
        target.copy_(_walsh(block @ matrix))
    distant = rows // near
    for columns in torch.split(mixed.view(distant, -1), max(1, TILE // distant), dim=1):
        columns.copy_(_walsh(columns))
    return mixed


def _is_large(x: Tensor) -> bool:
    """Tell whether a vector is beyond the caches, and no gradient of what comes of it is asked."""
    plain = x.dim() == 1 and x.device.type == "cpu" and not x.requires_grad
    return plain and x.numel() > _CACHED


def _walsh(x: Tensor) -> Tensor:
    """Walsh-Hadamard transform of the columns of ``(..., rows, width)``, four bits at a time."""
    done = 1
    *leading, rows, width = x.shape
    while done < rows:
        order = min(16, rows // done)
        x = x.reshape(*leading, rows // done // order, order, done * width)
        x = hadamard(order).to(x) @ x
        done *= order
    return x.reshape(*leading, rows, width)


@lru_cache(maxsize=8)
def hadamard(order: int) -> Tensor:
    """Return Sylvester's orthonormal Hadamard matrix; ``order`` is a power of two."""
    signs = torch.ones(1, 1)
    while len(signs) < order:
        signs = torch.kron(torch.tensor([[1.0, 1.0], [1.0, -1.0]]), signs)
    return signs / sqrt(order)


@lru_cache(maxsize=64)
def _row_matrix(width: int) -> Tensor:
    """Return what `mix` does to ``width`` elements, ``(width, width)``."""
    power = width & -width
    odd = torch.arange(width // power, dtype=torch.float64)
    angle = torch.outer(odd, odd) * (2 * pi / len(odd))
    hartley = (angle.cos() + angle.sin()) / sqrt(len(odd))
    return torch.kron(hadamard(power).double(), hartley).float()


class Rotated(Quantizer):
    """Draw a seed, rotate the whole update, quantize all elements with one codebook."""

    floats: ClassVar[int]

    @property
    def version(self) -> int:
        """2: version 1 used one Hartley transform over the whole update."""
        return 2

    @property
    @abstractmethod
    def code_width(self) -> int:
        """Bits of a code."""

    @abstractmethod
    def _quantize(self, rotated: Tensor) -> tuple[Tensor, bytes]:
        """Return the side information, ``(floats,)``, and packed codes."""

    @abstractmethod
    def _tables(self, side: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return center, lower and upper bound of what each code stands for."""

    def body_size(self, layout: Layout) -> int:
        """Return the size of seed, scales and codes."""
        return (
            _SEED + self.floats * FLOAT + packed_size(padded_length(layout.size), self.code_width)
        )

    def encode_body(self, update: Update, generator: torch.Generator) -> bytes:
        """Return the seed, the side information and the codes."""
        device = update.vector.device
        seed = torch.randint(1 << 31, (1,), generator=generator, device=device).int()
        rotation = Rotation.of(int(seed), update.layout.size, device)
        side, codes = self._quantize(rotation(update.vector))
        return to_bytes(seed, side) + codes

    def _read(self, body: bytes, layout: Layout) -> tuple[Rotation, Tensor, Tensor]:
        """Return rotation, side information and codes."""
        reader = Reader(body)
        seed = reader.integer()
        side = reader.magnitudes(self.floats)
        codes = reader.codes(padded_length(layout.size), 1 << self.code_width)
        return Rotation.of(seed, layout.size), side, codes

    def decode_body(self, body: bytes, layout: Layout) -> Tensor:
        """Return the values of the codes, rotated back."""
        rotation, side, codes = self._read(body, layout)
        return refuse_nonfinite(rotation.invert(look_up(self._tables(side)[0], codes)))

    def body_cell(self, body: bytes, layout: Layout) -> Cell:
        """Return the cell of the rotated elements, with the rotation as its transform."""
        rotation, side, codes = self._read(body, layout)
        center, lower, upper = (look_up(table, codes) for table in self._tables(side))
        step = nonzero_step(width_of(center, lower, upper))
        return Cell(center, lower, upper, step, (center.numel(),), transform=rotation)

    def body_symbols(self, body: bytes, layout: Layout) -> bytes:
        """Return the seed, the side information and the codes as bytes."""
        _, side, codes = self._read(body, layout)
        return body[:_SEED] + to_bytes(side, *byte_planes(codes, 1 << self.code_width))


@dataclass(frozen=True)
class Drive(Rotated):
    """One bit per element after rotation, and the scale that makes the estimate unbiased.

    ``scale=biased`` sends the mean magnitude instead, of least squared error.
    """

    name: ClassVar[str] = "drive"
    facts: ClassVar[QuantizerFacts] = QuantizerFacts(
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

    def _quantize(self, rotated: Tensor) -> tuple[Tensor, bytes]:
        total = torch.linalg.vector_norm(rotated, 1)
        energy = torch.linalg.vector_norm(rotated) ** 2
        unbiased = torch.where(total > 0, energy / total, 0)
        scale = unbiased if self.scale == "unbiased" else total / rotated.numel()
        return scale.view(1), pack_signs(rotated)[0]

    def _tables(self, side: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        center = torch.cat([-side, side])
        return center, *half_lines(center)


@dataclass(frozen=True)
class Eden(Rotated):
    """The Lloyd-Max codebook of a Gaussian after rotation, scaled to be unbiased."""

    name: ClassVar[str] = "eden"
    facts: ClassVar[QuantizerFacts] = QuantizerFacts(
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

    def _quantize(self, rotated: Tensor) -> tuple[Tensor, bytes]:
        book, edges = (part.to(rotated.device) for part in lloyd_max(self.bits))
        size = torch.linalg.vector_norm(rotated)
        unit = size / sqrt(max(1, rotated.numel()))
        codes = codes_buffer(rotated.numel(), 1 << self.bits, rotated.device)
        find_codes(rotated, edges * unit, codes)
        agreement = rotated @ look_up(book, codes)
        scale = torch.where(agreement > 0, size**2 / agreement, 0)
        return torch.stack([scale, unit]), to_bytes(pack(codes, self.bits))

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
