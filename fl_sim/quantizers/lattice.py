"""Base of the quantizers whose codes are points of an evenly spaced lattice per group."""

from abc import abstractmethod
from typing import ClassVar

import torch
from torch import Tensor

from fl_sim.coding.cell import Cell, nonzero_step
from fl_sim.coding.groups import Groups
from fl_sim.coding.packing import code_bits, pack, packed_size
from fl_sim.coding.payload import PayloadError
from fl_sim.coding.vectors import empty
from fl_sim.coding.wire import FLOAT, Reader, byte_planes, codes_buffer, to_bytes
from fl_sim.quantizers.base import Quantizer
from fl_sim.updates.local_update import Layout, Update

MAX_BITS = 16  # float32 arithmetic does not resolve finer lattices
_LARGEST = float(torch.finfo(torch.float32).max)


class Lattice(Quantizer):
    """Codes ``0 .. levels - 1`` are ``anchor + step * (code - shift)``, one lattice per group.

    A subclass says which elements form a group, what it sends of the lattice (``side`` float32
    values per group) and how these become anchor and step. The encoder uses the values that it
    sends, so it agrees with the decoder to the last bit. The anchor itself is decoded exactly.
    """

    side: ClassVar[int]
    stochastic: ClassVar[bool] = False

    @property
    @abstractmethod
    def code_levels(self) -> int:
        """Number of lattice points."""

    @property
    def shift(self) -> int:
        """Code of the anchor."""
        return 0

    @abstractmethod
    def _groups(self, layout: Layout) -> Groups:
        """Return which elements share a lattice."""

    @abstractmethod
    def _measure(self, vector: Tensor, groups: Groups) -> Tensor:
        """Return the side information, ``(groups.count, side)`` float32."""

    @abstractmethod
    def _lattice(self, side: Tensor) -> tuple[Tensor, Tensor]:
        """Return anchor and step of each group, ``(count,)`` float32; a step may be 0."""

    def body_size(self, layout: Layout) -> int:
        """Return side information plus codes, in bytes."""
        return self._side_size(layout) + self._codes_size(layout.size)

    def _codes_size(self, count: int) -> int:
        return packed_size(count, code_bits(self.code_levels))

    def _pack(self, codes: Tensor) -> Tensor:
        return pack(codes, code_bits(self.code_levels))

    def _unpack(self, reader: Reader, count: int) -> Tensor:
        return reader.codes(count, self.code_levels)

    def _side_size(self, layout: Layout) -> int:
        return self._groups(layout).count * self.side * FLOAT

    def encode_body(self, update: Update, generator: torch.Generator) -> bytes:
        """Return the side information, then the codes."""
        groups = self._groups(update.layout)
        side = self._measure(update.vector, groups)
        anchor, step = self._lattice(side)
        if self._overflows(anchor, step):
            raise ValueError("The update's range is too wide for a lattice of float32 values.")
        # A step of 0 gets the reciprocal 0: every code of a constant group is then the anchor's.
        per_step = torch.where(step > 0, step.reciprocal(), 0).clamp_max(_LARGEST)
        codes = codes_buffer(update.layout.size, self.code_levels, update.vector.device)
        for tile in groups.tiles():
            x = update.vector[tile.span].view(tile.rows, -1)
            place = (x - anchor[tile.groups, None]).mul_(per_step[tile.groups, None])
            place = self._round(place, generator).add_(self.shift).clamp_(0, self.code_levels - 1)
            codes[tile.span] = place.view(-1)
        return to_bytes(side, self._pack(codes))

    def _round(self, place: Tensor, generator: torch.Generator) -> Tensor:
        if not self.stochastic:
            return place.round_()
        below = place.floor()
        chance = torch.rand(place.shape, generator=generator, device=place.device)
        return below.add_(chance < place.sub_(below))

    def _read(self, body: bytes, layout: Layout) -> tuple[Tensor, Tensor]:
        """Return checked side information ``(groups, side)`` and codes ``(layout.size,)``."""
        reader = Reader(body)
        side = reader.floats(self._groups(layout).count, self.side)
        self._check_side(side)
        if self._overflows(*self._lattice(side)):
            raise PayloadError("The payload's lattice leaves the range of float32.")
        return side, self._unpack(reader, layout.size)

    def _overflows(self, anchor: Tensor, step: Tensor) -> bool:
        last = anchor + step * (self.code_levels - 1 - self.shift)
        return not bool(torch.stack([step, last]).isfinite().all())

    def _check_side(self, side: Tensor) -> None:
        """Raise `PayloadError` on side information that no encoder sends."""

    def decode_body(self, body: bytes, layout: Layout) -> Tensor:
        """Return the lattice point of each code."""
        side, codes = self._read(body, layout)
        return self._values(side, codes, layout)

    def _values(self, side: Tensor, codes: Tensor, layout: Layout) -> Tensor:
        anchor, step = self._lattice(side)
        vector = empty(layout.size, torch.float32)
        for tile in self._groups(layout).tiles():
            values = vector[tile.span].view(tile.rows, -1)
            values.copy_(codes[tile.span].view(tile.rows, -1))
            values.sub_(self.shift).mul_(step[tile.groups, None]).add_(anchor[tile.groups, None])
        return vector

    def body_cell(self, body: bytes, layout: Layout) -> Cell:
        """Return bounds half a step to either side; with random rounding, a whole step."""
        side, codes = self._read(body, layout)
        expand = self._groups(layout).expand
        center = self._values(side, codes, layout)
        anchor, step = self._lattice(side)
        width = expand(step)
        reach = width if self.stochastic else width / 2
        lower, upper = self._support(side, anchor, step)
        # Rounding can put the center outside the support by its last bit; then extend the bounds.
        return Cell(
            center=center,
            lower=torch.maximum(center - reach, torch.minimum(expand(lower), center)),
            upper=torch.minimum(center + reach, torch.maximum(expand(upper), center)),
            step=nonzero_step(width),
            sizes=layout.sizes,
            noise="triangular" if self.stochastic else "none",
        )

    @abstractmethod
    def _support(self, side: Tensor, anchor: Tensor, step: Tensor) -> tuple[Tensor, Tensor]:
        """Return the bounds ``(groups,)`` on every element that the side information implies."""

    def body_symbols(self, body: bytes, layout: Layout) -> bytes:
        """Return the side information, then the codes as bytes."""
        side, codes = self._read(body, layout)
        return to_bytes(side, *byte_planes(codes, self.code_levels))


class Symmetric(Lattice):
    """A lattice around an exact zero whose ends are plus and minus one sent magnitude."""

    side: ClassVar[int] = 1

    @property
    def code_levels(self) -> int:
        """Number of lattice points."""
        return 2 * self.shift + 1

    def _check_side(self, side: Tensor) -> None:
        if bool((side < 0).any()):
            raise PayloadError("The payload holds a negative scale.")

    def _lattice(self, side: Tensor) -> tuple[Tensor, Tensor]:
        return torch.zeros_like(side[:, 0]), side[:, 0] / self.shift

    def _support(self, side: Tensor, anchor: Tensor, step: Tensor) -> tuple[Tensor, Tensor]:
        del anchor, step
        return -side[:, 0], side[:, 0]
