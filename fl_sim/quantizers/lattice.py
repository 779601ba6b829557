"""The machinery of every quantizer whose codes are points of an evenly spaced lattice per group."""

from abc import abstractmethod
from typing import ClassVar

import torch
from torch import Tensor

from fl_sim.quantizers.base import Quantizer
from fl_sim.quantizers.cell import Cell, usable_step
from fl_sim.quantizers.groups import Groups
from fl_sim.quantizers.packing import code_bits, pack, packed_size
from fl_sim.quantizers.wire import FLOAT, Reader, to_bytes
from fl_sim.updates import Layout, Update

MAX_BITS = 16  # finer lattices would claim more than float32 arithmetic resolves
_LARGEST = float(torch.finfo(torch.float32).max)


class Lattice(Quantizer):
    """Codes ``0 .. levels - 1`` stand for ``origin + step * code``, one lattice a group.

    A subclass says which groups share a lattice, what it sends of it (``side``: float32 values a
    group) and how side information becomes origin and step; the encoder uses what the decoder
    will see, so both agree to the last bit.
    """

    side: ClassVar[int]
    stochastic: ClassVar[bool] = False
    saturates: ClassVar[bool] = False

    @property
    @abstractmethod
    def code_levels(self) -> int:
        """Number of lattice points."""

    @abstractmethod
    def _groups(self, layout: Layout) -> Groups:
        """Return which elements share a lattice."""

    @abstractmethod
    def _measure(self, vector: Tensor, groups: Groups) -> Tensor:
        """Return the side information, ``(groups.count, side)`` float32."""

    @abstractmethod
    def _lattice(self, side: Tensor) -> tuple[Tensor, Tensor]:
        """Return origin and step of each group, ``(count,)`` float32; a step may be 0."""

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

    def _encode(self, update: Update, generator: torch.Generator) -> bytes:
        groups = self._groups(update.layout)
        side = self._measure(update.vector, groups)
        origin, step = self._lattice(side)
        # The reciprocal of a step of 0 is set to 0: every code of a constant group is then 0.
        per_step = torch.where(step > 0, step.reciprocal(), 0).clamp_max(_LARGEST)
        codes = torch.empty(
            update.layout.size,
            dtype=torch.uint8 if self.code_levels <= 256 else torch.int32,
            device=update.vector.device,
        )
        for tile in groups.tiles():
            x = update.vector[tile.span].view(tile.rows, -1)
            position = (x - origin[tile.groups, None]).mul_(per_step[tile.groups, None])
            if self.stochastic:
                up = torch.rand(position.shape, generator=generator, device=position.device)
                position.add_(up)
            else:
                position.add_(0.5)
            position.clamp_(0, self.code_levels - 1)
            codes[tile.span] = position.view(-1)  # the cast drops the fraction
        return to_bytes(side, self._pack(codes))

    def _read(self, body: bytes, layout: Layout) -> tuple[Groups, Tensor, Tensor, Tensor, Tensor]:
        groups = self._groups(layout)
        reader = Reader(body)
        side = reader.floats(groups.count, self.side)
        self._check_side(side)
        codes = self._unpack(reader, layout.size)
        return groups, side, *self._lattice(side), codes

    def _check_side(self, side: Tensor) -> None:
        """Raise `PayloadError` on side information that no encoder sends."""

    def _decode(self, body: bytes, layout: Layout) -> Tensor:
        groups, _, origin, step, codes = self._read(body, layout)
        vector = torch.empty(layout.size)
        for tile in groups.tiles():
            values = vector[tile.span].view(tile.rows, -1)
            values.copy_(codes[tile.span].view(tile.rows, -1))
            values.mul_(step[tile.groups, None]).add_(origin[tile.groups, None])
        return vector

    def _cell(self, body: bytes, layout: Layout) -> Cell:
        groups, side, origin, step, codes = self._read(body, layout)
        center = self._decode(body, layout)
        width = groups.expand(step)
        reach = width if self.stochastic else width / 2
        lower, upper = self._support(side, origin, step)
        low, high = center - reach, center + reach
        if self.saturates:
            low = low.masked_fill(codes == 0, -torch.inf)
            high = high.masked_fill(codes == self.code_levels - 1, torch.inf)
        return Cell(
            center=center,
            lower=torch.maximum(low, groups.expand(lower)),
            upper=torch.minimum(high, groups.expand(upper)),
            step=usable_step(width),
            sizes=layout.sizes,
            noise="triangular" if self.stochastic else "none",
        )

    def _support(self, side: Tensor, origin: Tensor, step: Tensor) -> tuple[Tensor, Tensor]:
        """Return bounds on every element of each group that the side information proves."""
        del side
        last = origin + step * (self.code_levels - 1)
        return torch.minimum(origin, last), torch.maximum(origin, last)
