"""Magnitude pruning: send the largest elements, as they are or quantized by another."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from math import ceil, prod
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from fl_sim.coding.cell import Cell, Transform, nonzero_step
from fl_sim.coding.groups import Groups, Scope
from fl_sim.coding.packing import code_bits, pack, packed_size
from fl_sim.coding.payload import PayloadError
from fl_sim.coding.wire import Reader, to_bytes
from fl_sim.quantizers.base import Quantizer, QuantizerFacts
from fl_sim.quantizers.floats import Identity
from fl_sim.specs import NOT_A_PARAMETER, show
from fl_sim.updates.local_update import Layout, Segment, Update


@dataclass(frozen=True)
class TopK(Quantizer):
    """Keep the share ``keep`` of largest magnitude in each tensor (or of all), zero the rest.

    ``topk:keep=0.1+Q`` encodes what is kept by quantizer ``Q``, as an update whose tensors are the
    kept elements of each tensor. Positions are sent as a bitmap or as indices, whichever is
    smaller; the number kept, and hence which of the two, is public.
    """

    name: ClassVar[str] = "topk"
    facts: ClassVar[QuantizerFacts] = QuantizerFacts(
        "r d values + min(d, r d ceil(log2 d)) positions",
        False,
        "L2(e)^2 <= (1 - r) L2(x)^2",
        "Aji and Heafield 2017, arXiv 1704.05021",
    )

    keep: float
    scope: Scope = "tensor"
    then: Quantizer = field(default=Identity(), metadata=NOT_A_PARAMETER)

    def __post_init__(self) -> None:
        if not 0 < self.keep <= 1:
            raise ValueError(f"keep={show(self.keep)} is not allowed; give above 0, up to 1.")

    @property
    def spec(self) -> str:
        """Own parameters, then ``+`` and the quantizer of what is kept."""
        return super().spec + (f"+{self.then.spec}" if self.then != Identity() else "")

    @property
    def version(self) -> int:
        """Version of the format of what is kept."""
        return self.then.version

    def body_size(self, layout: Layout) -> int:
        """Return positions plus the body of what is kept, in bytes."""
        kept = self._kept_layout(layout)
        return self._positions_size(layout) + self.then.body_size(kept)

    def _groups(self, layout: Layout) -> Groups:
        return Groups.of(layout, self.scope)

    def _kept_layout(self, layout: Layout) -> Layout:
        # The small margin keeps 0.1 * 30 at 3 whatever its last binary digit.
        sizes = [width for _, width in self._groups(layout).runs]
        names = [segment.name for segment in layout.segments if prod(segment.shape)]
        return Layout(
            tuple(
                Segment(name, (max(1, ceil(self.keep * size - 1e-9)),))
                for name, size in zip(names, sizes, strict=self.scope == "tensor")
            )
        )

    def _positions_size(self, layout: Layout) -> int:
        count = self._kept_layout(layout).size
        return min(packed_size(layout.size, 1), packed_size(count, code_bits(layout.size)))

    def _as_bitmap(self, layout: Layout) -> bool:
        return self._positions_size(layout) == packed_size(layout.size, 1)

    def encode_body(self, update: Update, generator: torch.Generator) -> bytes:
        """Return the kept positions, then the body of what is kept."""
        kept_layout = self._kept_layout(update.layout)
        kept = self._choose(update, kept_layout)
        if self._as_bitmap(update.layout):
            bitmap = torch.zeros(update.layout.size, dtype=torch.uint8, device=kept.device)
            positions = pack(bitmap.index_fill_(0, kept, 1), 1)
        else:
            positions = pack(kept.int(), code_bits(update.layout.size))
        return to_bytes(positions) + self.then.encode_body(
            Update(update.vector[kept], kept_layout), generator
        )

    def _choose(self, update: Update, kept_layout: Layout) -> Tensor:
        chosen = []
        start = 0
        pieces = self._groups(update.layout).views(update.vector)
        for piece, count in zip(pieces, kept_layout.sizes, strict=True):
            chosen.append(largest_positions(piece[0].abs(), count) + start)
            start += piece.shape[1]
        return torch.cat(chosen)

    def _read(self, body: bytes, layout: Layout) -> tuple[Tensor, bytes, Layout]:
        """Return the sorted kept positions, the body of what was kept, and its layout."""
        kept_layout = self._kept_layout(layout)
        reader = Reader(body)
        if self._as_bitmap(layout):
            kept = reader.codes(layout.size, 2).nonzero().view(-1)
        else:
            kept = reader.codes(kept_layout.size, layout.size).long()
        if kept.numel() != kept_layout.size or bool((kept.diff() <= 0).any()):
            raise PayloadError("The kept positions are not in order, or not as many as agreed.")
        start = 0
        widths = [width for _, width in self._groups(layout).runs]
        for positions, width in zip(
            torch.split(kept, list(kept_layout.sizes)), widths, strict=True
        ):
            if int(positions[0]) < start or int(positions[-1]) >= start + width:
                raise PayloadError("A kept position lies in another tensor.")
            start += width
        return kept, body[self._positions_size(layout) :], kept_layout

    def decode_body(self, body: bytes, layout: Layout) -> Tensor:
        """Return what is kept in its place, and zeros."""
        kept, rest, kept_layout = self._read(body, layout)
        return torch.zeros(layout.size).index_copy_(
            0, kept, self.then.decode_body(rest, kept_layout)
        )

    def body_cell(self, body: bytes, layout: Layout) -> Cell:
        """Return the cell of what is kept; what was dropped is at most the least magnitude kept."""
        kept, rest, kept_layout = self._read(body, layout)
        inner = self.then.body_cell(rest, kept_layout)
        if inner.transform is not None or inner.likelihood is not None:
            # Nothing that was sent then bounds the dropped elements: only the kept ones have cells.
            return replace(inner, transform=KeptOnly(kept, layout.size, inner.transform))
        threshold = self._threshold(inner, kept_layout, layout)
        known = torch.where(threshold.isfinite(), threshold, inner.step.max())
        dropped = torch.ones(layout.size, dtype=torch.bool).index_fill_(0, kept, value=False)
        certain = dropped if inner.certain is None else _fill(dropped, kept, inner.certain)
        return replace(
            inner,
            center=_fill(torch.zeros(layout.size), kept, inner.center),
            lower=_fill(-threshold, kept, inner.lower),
            upper=_fill(threshold, kept, inner.upper),
            step=nonzero_step(_fill(known, kept, inner.step)),
            sizes=layout.sizes,
            certain=None if inner.noise == "none" else certain,
        )

    def body_symbols(self, body: bytes, layout: Layout) -> bytes:
        """Return the positions, then the symbols of what is kept."""
        _, rest, kept_layout = self._read(body, layout)
        return body[: self._positions_size(layout)] + self.then.body_symbols(rest, kept_layout)

    def _threshold(self, inner: Cell, kept_layout: Layout, layout: Layout) -> Tensor:
        """Bound on the magnitudes dropped, ``(layout.size,)``: the smallest one kept."""
        largest = torch.maximum(inner.lower.abs(), inner.upper.abs())
        least = Groups.of(kept_layout, "tensor").minimum(largest)
        return self._groups(layout).expand(least)


@dataclass(frozen=True, eq=False)
class KeptOnly:
    """Select the kept positions ``(..., k)`` of an update, then apply a transform, if any."""

    kept: Tensor
    size: int
    then: Transform | None

    def __call__(self, update: Tensor) -> Tensor:
        """Map ``(..., n)`` to the code domain of ``then``."""
        kept = self.kept.to(update.device)
        if kept.dim() == 1:
            chosen = update[..., kept]
        else:
            dims = max(update.dim(), kept.dim())
            chosen = torch.take_along_dim(_lift(update, dims), _lift(kept, dims), dim=-1)
        return chosen if self.then is None else self.then(chosen)

    def invert(self, codes: Tensor) -> Tensor:
        """Map the code domain of ``then`` back to ``(..., n)``, zero where not kept."""
        values = codes if self.then is None else self.then.invert(codes)
        return values.new_zeros(*values.shape[:-1], self.size).scatter(-1, self.kept, values)

    def stack(self, others: Sequence["KeptOnly"]) -> "KeptOnly":
        """Return the selections of several payloads, stacked."""
        then = [other.then for other in others if other.then is not None]
        kept = torch.stack([other.kept for other in others])
        return KeptOnly(kept, self.size, then[0].stack(then) if then else None)


def largest_positions(values: Tensor, count: int) -> Tensor:
    """Return the ascending positions of the ``count`` largest values; of equal ones the first."""
    if values.device.type == "cpu":  # several times as fast as torch's
        least = float(np.partition(values.numpy(), -count)[-count])
    else:
        least = float(values.topk(count, sorted=False).values.min())
    kept = values > least
    ties = (values == least).nonzero().view(-1)
    kept[ties[: count - int(kept.sum())]] = True
    return kept.nonzero().view(-1)


def _lift(tensor: Tensor, dims: int) -> Tensor:
    """Prepend dimensions of 1."""
    return tensor.view((1,) * (dims - tensor.dim()) + tensor.shape)


def _fill(whole: Tensor, kept: Tensor, values: Tensor) -> Tensor:
    return whole.index_copy(0, kept, values)
