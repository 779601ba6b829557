"""Groups of elements that share a scale: those of a tensor, of a block, or all."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from fl_sim.coding.vectors import TILE, spans
from fl_sim.updates.local_update import Layout

Scope = Literal["tensor", "global"]
SCOPES: tuple[Scope, ...] = ("tensor", "global")
_SMALL = 1 << 15  # elements up to which a call of torch takes longer than its work


class Tile(NamedTuple):
    """A piece of the vector that stays in cache, as ``rows`` with elements of one group each.

    ``groups`` tells the group of each row. A row is a whole group, a part of one, or one element.
    """

    span: slice
    groups: slice | Tensor
    rows: int


@dataclass(frozen=True)
class Groups:
    """Consecutive runs of equal groups: ``(rows, width)`` is ``rows`` groups of ``width``."""

    runs: tuple[tuple[int, int], ...]

    @classmethod
    @lru_cache(maxsize=64)
    def of(cls, layout: Layout, scope: Scope) -> "Groups":
        """Return one group per tensor (empty tensors have none), or one for all elements."""
        sizes = layout.sizes if scope == "tensor" else (layout.size,)
        return cls(tuple((1, size) for size in sizes if size))

    @classmethod
    @lru_cache(maxsize=64)
    def blocks(cls, layout: Layout, width: int) -> "Groups":
        """Return blocks of ``width`` elements of the whole vector; the last may be shorter."""
        rows, rest = divmod(layout.size, width)
        return cls(tuple(run for run in ((rows, width), (1, rest)) if run[0] and run[1]))

    @cached_property
    def count(self) -> int:
        """Number of groups."""
        return sum(rows for rows, _ in self.runs)

    def views(self, vector: Tensor) -> tuple[Tensor, ...]:
        """View a ``(n,)`` vector as one ``(rows, width)`` matrix per run."""
        pieces = torch.split(vector, [rows * width for rows, width in self.runs])
        return tuple(p.view(run) for p, run in zip(pieces, self.runs, strict=True))

    def minimum(self, vector: Tensor) -> Tensor:
        """Smallest element of each group, ``(count,)``."""
        return torch.cat([view.amin(dim=-1) for view in self.views(vector)])

    def maximum(self, vector: Tensor) -> Tensor:
        """Largest element of each group, ``(count,)``."""
        return torch.cat([view.amax(dim=-1) for view in self.views(vector)])

    def largest_magnitude(self, vector: Tensor) -> Tensor:
        """Largest magnitude of each group, ``(count,)``."""
        return torch.maximum(self.maximum(vector), -self.minimum(vector))

    def mean_magnitude(self, vector: Tensor) -> Tensor:
        """Mean magnitude of each group, ``(count,)``."""
        views = self.views(vector)
        return torch.cat([torch.linalg.vector_norm(v, 1, dim=-1) / v.shape[1] for v in views])

    def expand(self, values: Tensor) -> Tensor:
        """Repeat the value of each group, ``(count,)``, for all its elements, ``(n,)``."""
        widths = [torch.full((rows,), width) for rows, width in self.runs]
        repeats = torch.cat(widths).to(values.device)
        return values.repeat_interleave(repeats)

    @cached_property
    def _size(self) -> int:
        return sum(rows * width for rows, width in self.runs)

    @cached_property
    def _group_of_each(self) -> Tensor:
        return self.expand(torch.arange(self.count))

    def tiles(self) -> Iterator[Tile]:
        """Cut the vector into pieces for which several operations in a row stay in cache.

        A small vector is a single piece with one element per row, as several pieces cost more.
        """
        if len(self.runs) > 1 and self._size <= _SMALL:
            yield Tile(slice(0, self._size), self._group_of_each, self._size)
            return
        start = group = 0
        for rows, width in self.runs:
            at_once = max(1, TILE // width)
            for row in range(0, rows, at_once):
                height = min(at_once, rows - row)
                groups = slice(group + row, group + row + height)
                first, last = start + row * width, start + (row + height) * width
                for span in spans(last - first):
                    yield Tile(slice(first + span.start, first + span.stop), groups, height)
            start, group = start + rows * width, group + rows
