"""A codebook fitted to each tensor: 1-D k-means by Lloyd's iteration on sorted values."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from fl_sim.coding.cell import Cell, usable_step, width_of
from fl_sim.coding.groups import Groups, Scope
from fl_sim.coding.packing import code_bits, pack, packed_size
from fl_sim.coding.payload import PayloadError
from fl_sim.coding.tables import find_codes, look_up
from fl_sim.coding.wire import FLOAT, Reader, byte_planes, codes_buffer, to_bytes
from fl_sim.quantizers.base import Facts, Quantizer
from fl_sim.specs import within
from fl_sim.updates.local_update import Layout, Update

_ITERATIONS = 100


@dataclass(frozen=True)
class KMeans(Quantizer):
    """Nearest of ``clusters`` values fitted to the tensor; the ascending codebook is sent.

    A tensor of fewer elements has one codebook entry an element.
    """

    name: ClassVar[str] = "kmeans"
    facts: ClassVar[Facts] = Facts(
        bits="ceil(log2 k) d + 32 k a tensor",
        unbiased=False,
        error="a local minimum of L2(e)^2 over codebooks of k values",
        source="Lloyd 1982; Han et al. 2016, arXiv 1510.00149",
    )

    clusters: int
    scope: Scope = "tensor"

    def __post_init__(self) -> None:
        within("clusters", self.clusters, 2, 1 << 16)

    def body_size(self, layout: Layout) -> int:
        """Return the codes and 4 bytes an entry of the codebooks."""
        codes = packed_size(layout.size, code_bits(self.clusters))
        return sum(self._entries(layout)) * FLOAT + codes

    def _groups(self, layout: Layout) -> Groups:
        return Groups.of(layout, self.scope)

    def _entries(self, layout: Layout) -> list[int]:
        return [min(self.clusters, width) for _, width in self._groups(layout).runs]

    def _encode(self, update: Update, generator: torch.Generator) -> bytes:
        del generator
        books = []
        codes = codes_buffer(update.layout.size, self.clusters, update.vector.device)
        views = self._groups(update.layout).views(update.vector)
        start = 0
        for view, entries in zip(views, self._entries(update.layout), strict=True):
            book = fit_codebook(view[0], entries)
            books.append(book)
            find_codes(view[0], midpoints(book), codes[start : start + view.numel()])
            start += view.numel()
        return to_bytes(*books, pack(codes, code_bits(self.clusters)))

    def _read(self, body: bytes, layout: Layout) -> list[tuple[Tensor, Tensor]]:
        """Return codebook and codes of each tensor."""
        entries = self._entries(layout)
        reader = Reader(body)
        books = torch.split(reader.floats(sum(entries)), entries)
        codes = reader.codes(layout.size, self.clusters)
        widths = [width for _, width in self._groups(layout).runs]
        tensors = list(zip(books, torch.split(codes, widths), strict=True))
        for book, own in tensors:
            if bool((book.diff() < 0).any()) or int(own.max()) >= len(book):
                raise PayloadError("A codebook does not ascend, or a code lies outside it.")
        return tensors

    def _decode(self, body: bytes, layout: Layout) -> Tensor:
        return torch.cat([look_up(book, codes) for book, codes in self._read(body, layout)])

    def _cell(self, body: bytes, layout: Layout) -> Cell:
        center, lower, upper = [], [], []
        for book, own in self._read(body, layout):
            codes = own.int()
            edges = midpoints(book)
            below = torch.cat([edges.new_tensor([-torch.inf]), edges])
            above = torch.cat([edges, edges.new_tensor([torch.inf])])
            center.append(book[codes])
            lower.append(below[codes])
            upper.append(above[codes])
        bounds = torch.cat(center), torch.cat(lower), torch.cat(upper)
        return Cell(*bounds, usable_step(width_of(*bounds)), layout.sizes)

    def _symbols(self, body: bytes, layout: Layout) -> bytes:
        books = sum(self._entries(layout)) * FLOAT
        codes = torch.cat([codes for _, codes in self._read(body, layout)])
        return body[:books] + to_bytes(*byte_planes(codes, self.clusters))


def fit_codebook(values: Tensor, entries: int) -> Tensor:
    """Return ``entries`` ascending float32 centroids of ``values`` ``(n,)``, ``entries <= n``.

    Sums over a cluster are differences of prefix sums over the sorted values, so an iteration
    costs a search of ``entries`` edges, whatever ``n``.
    """
    ordered = _sorted(values).double()
    sums = torch.nn.functional.pad(ordered.cumsum(0), (1, 0))
    starts = _first_clusters(ordered, entries)
    book = _centroids(sums, starts, ordered[starts[:-1].clamp_max(len(ordered) - 1)])
    for _ in range(_ITERATIONS):
        inside = torch.searchsorted(ordered, midpoints(book), right=True)
        starts[1:-1] = inside
        book = _centroids(sums, starts, book)
    return book.float()


def _first_clusters(ordered: Tensor, entries: int) -> Tensor:
    """Return where clusters start so that entries lie as densely as the cube root of the values.

    That is the best density for many entries (Panter and Dite 1951); with a local density of
    1/gap it gives each gap a share of gap^(2/3). Lloyd's iteration started at quantiles instead
    stalls far from the optimum on heavy tails.
    """
    shares = torch.nn.functional.pad(ordered.diff().pow_(2 / 3).cumsum_(0), (1, 0))
    targets = torch.arange(entries + 1, device=ordered.device) * (shares[-1] / entries)
    starts = torch.searchsorted(shares, targets)
    # No cluster starts empty: each takes at least one value, in order.
    order = torch.arange(entries + 1, device=ordered.device)
    starts = (starts - order).cummax(0).values.clamp(0, len(ordered) - entries) + order
    starts[-1] = len(ordered)
    return starts


def _sorted(values: Tensor) -> Tensor:
    if values.device.type != "cpu":
        return values.sort().values
    return torch.from_numpy(np.sort(values.numpy()))  # vectorised, ten times faster than torch's


def midpoints(book: Tensor) -> Tensor:
    """Return the edges between neighbouring entries of a codebook."""
    return (book[1:] + book[:-1]) / 2


def _centroids(sums: Tensor, starts: Tensor, empty: Tensor) -> Tensor:
    counts = starts.diff()
    means = sums[starts].diff() / counts.clamp_min(1)
    return torch.where(counts > 0, means, empty).cummax(0).values
