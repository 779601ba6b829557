"""A codebook fitted to each tensor: 1-D k-means by Lloyd's iteration."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from fl_sim.coding.cell import Cell, nonzero_step, width_of
from fl_sim.coding.groups import Groups, Scope
from fl_sim.coding.packing import code_bits, pack, packed_size
from fl_sim.coding.payload import PayloadError
from fl_sim.coding.vectors import TILE, find_codes, look_up, spans
from fl_sim.coding.wire import FLOAT, Reader, byte_planes, codes_buffer, to_bytes
from fl_sim.quantizers.base import Quantizer, QuantizerFacts
from fl_sim.specs import within
from fl_sim.updates.local_update import Layout, Update

_ITERATIONS = 100
_MANY = 1 << 20  # values above which sorting them takes longer than all the rest
_SAMPLE = 1 << 16  # values that choose the bins of a histogram
_BIN_BITS = 16
_BINS_PER_ENTRY = 64  # fewer, and edges between bins are too coarse: sort instead


@dataclass(frozen=True)
class KMeans(Quantizer):
    """Nearest of ``clusters`` values fitted to the tensor; the ascending codebook is sent.

    A tensor of fewer elements has one codebook entry per element. Above a million elements the
    codebook is fitted to a fine histogram. Up to 16 clusters, its error is then that of a fit to
    all values within 0.1 %, unless the two find different local minima, of which either may be
    the better one.
    """

    name: ClassVar[str] = "kmeans"
    facts: ClassVar[QuantizerFacts] = QuantizerFacts(
        bits="ceil(log2 k) d + 32 k per tensor",
        unbiased=False,
        error="a local minimum of L2(e)^2 over codebooks of k values",
        source="Lloyd 1982; Han et al. 2016, arXiv 1510.00149",
    )

    clusters: int
    scope: Scope = "tensor"

    def __post_init__(self) -> None:
        within("clusters", self.clusters, 2, 1 << 16)

    def body_size(self, layout: Layout) -> int:
        """Return the size of the codes, and 4 bytes per entry of the codebooks."""
        codes = packed_size(layout.size, code_bits(self.clusters))
        return sum(self._entries(layout)) * FLOAT + codes

    def _groups(self, layout: Layout) -> Groups:
        return Groups.of(layout, self.scope)

    def _entries(self, layout: Layout) -> list[int]:
        return [min(self.clusters, width) for _, width in self._groups(layout).runs]

    def encode_body(self, update: Update, generator: torch.Generator) -> bytes:
        """Return the codebooks, then the codes."""
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

    def decode_body(self, body: bytes, layout: Layout) -> Tensor:
        """Return the entry of each code."""
        return torch.cat([look_up(book, codes) for book, codes in self._read(body, layout)])

    def body_cell(self, body: bytes, layout: Layout) -> Cell:
        """Return bounds halfway to the neighbouring entries."""
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
        return Cell(*bounds, nonzero_step(width_of(*bounds)), layout.sizes)

    def body_symbols(self, body: bytes, layout: Layout) -> bytes:
        """Return the codebooks, then the codes as bytes."""
        books = sum(self._entries(layout)) * FLOAT
        codes = torch.cat([codes for _, codes in self._read(body, layout)])
        return body[:books] + to_bytes(*byte_planes(codes, self.clusters))


def fit_codebook(values: Tensor, entries: int) -> Tensor:
    """Return ``entries`` ascending float32 centroids of ``values`` ``(n,)``, ``entries <= n``.

    Lloyd's iteration runs on the sorted values, or, above a million values, on the means and
    counts of the bins of a fine `histogram`. A sum over a cluster is a difference of prefix sums,
    so an iteration costs a search of ``entries`` edges, whatever ``n``.
    """
    if values.device.type == "cpu" and values.numel() > _MANY:
        points, counts = histogram(values)
        if len(points) >= _BINS_PER_ENTRY * entries:
            return lloyd(points, counts, entries, 3 * _ITERATIONS)
    points = _sorted(values).double()
    return lloyd(points, torch.ones_like(points), entries, _ITERATIONS)


def lloyd(points: Tensor, counts: Tensor, entries: int, iterations: int) -> Tensor:
    """Return ``entries`` ascending float32 centroids of ascending weighted points.

    Parameters
    ----------
    points, counts : Tensor
        ``(m,)`` float64 with ``m >= entries``: positions and how many values each stands for.
    """
    sums = torch.nn.functional.pad((points * counts).cumsum(0), (1, 0))
    totals = torch.nn.functional.pad(counts.cumsum(0), (1, 0))
    starts = _first_clusters(points, counts, entries)
    book = _centroids(sums, totals, starts, points[starts[:-1].clamp_max(len(points) - 1)])
    for _ in range(iterations):
        inside = torch.searchsorted(points, midpoints(book), right=True)
        starts[1:-1] = inside
        book = _centroids(sums, totals, starts, book)
    return book.float()


def histogram(values: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and count of each non-empty bin, ascending, ``(m,)`` float64.

    With ``c`` the mean of the values and ``s`` their mean distance from it, the bins have equal
    widths around ``c`` and widths in proportion to ``|x - c|`` far from it: they are the leading
    bits of the float32 ``|x - c| + s``. At most 2^16 bins lie on either side, so a bin is less
    than a thousandth as wide as ``|x - c| + s`` unless the farthest value is 2^32 ``s`` away.
    """
    sample = values[:: max(1, values.numel() // _SAMPLE)].double()
    center = sample.mean().float()
    scale = (sample - center).abs().mean().float()
    farthest = torch.maximum(values.max() - center, center - values.min())
    lowest, highest = (int(_key(x)) for x in (scale, farthest + scale))
    shift = max(0, (highest - lowest).bit_length() - _BIN_BITS)
    side = (highest >> shift) - (lowest >> shift) + 1
    counts, sums = torch.zeros(2, 2 * side, dtype=torch.float64)
    ones = torch.ones(TILE, dtype=torch.float64)
    for span in spans(values.numel()):
        offset = values[span] - center
        bins = (_key(offset.abs() + scale) >> shift) - (lowest >> shift)
        # Bins of negative offsets run the other way: -1 - bin, by the sign bit of the offset.
        bins = (bins ^ (_key(offset) >> 31)).add_(side).long()
        counts.scatter_add_(0, bins, ones[: len(bins)])
        sums.scatter_add_(0, bins, values[span].double())
    filled = counts > 0
    return sums[filled] / counts[filled], counts[filled]


def _key(values: Tensor) -> Tensor:
    """View float32 as int32, which orders positive values as they are."""
    return values.view(torch.int32)


def _first_clusters(points: Tensor, counts: Tensor, entries: int) -> Tensor:
    """Return where clusters start so that entries lie as densely as the cube root of the values.

    That is the best density for many entries (Panter and Dite 1951); with a local density of
    count/gap it gives each gap a share of count^(1/3) gap^(2/3). Lloyd's iteration started at
    quantiles instead stalls far from the optimum on heavy tails.
    """
    between = (counts[1:] + counts[:-1]) / 2
    shares = points.diff().pow_(2 / 3).mul_(between.pow_(1 / 3))
    shares = torch.nn.functional.pad(shares.cumsum_(0), (1, 0))
    targets = torch.arange(entries + 1, device=points.device) * (shares[-1] / entries)
    starts = torch.searchsorted(shares, targets)
    # Each cluster starts with at least one point, in order.
    order = torch.arange(entries + 1, device=points.device)
    starts = (starts - order).cummax(0).values.clamp(0, len(points) - entries) + order
    starts[-1] = len(points)
    return starts


def _sorted(values: Tensor) -> Tensor:
    if values.device.type != "cpu":
        return values.sort().values
    return torch.from_numpy(np.sort(values.numpy()))  # vectorised, ten times faster than torch's


def midpoints(book: Tensor) -> Tensor:
    """Return the edges between neighbouring entries of a codebook."""
    return (book[1:] + book[:-1]) / 2


def _centroids(sums: Tensor, totals: Tensor, starts: Tensor, empty: Tensor) -> Tensor:
    counts = totals[starts].diff()
    means = sums[starts].diff() / counts.clamp_min(1)
    return torch.where(counts > 0, means, empty).cummax(0).values
