"""Images read from a bank of thresholds that a malicious server set in a model's weights."""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from scipy.cluster.hierarchy import fcluster, linkage
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from attacker.matching.problems import Problems
from attacker.readers.synthetic import synthetic_images
from fl_sim.coding.cell import Cell
from fl_sim.models import ModelSpec
from fl_sim.observed.evidence import HeldBack
from fl_sim.observed.observations import Observation
from fl_sim.plans.chain import Chain, find_chain
from fl_sim.plans.inputs import onto_pixels
from fl_sim.plans.thresholds import error_signals
from fl_sim.updates.local_update import LocalWork, flat_model

_SAME = 0.01  # share of pixels in which two rows of one image may differ
_FIRED = 0.002  # share of bits by which a row shows that an image passed its unit
_STEPS = 20  # until the diagonal of inner products is found
_DISAGREE = 0.05  # by which bounds of a pixel may miss each other
_FINE = 1e-3  # width of bounds that need no average
_WIDE = 0.2  # width of bounds that are no help
_GREYS = 257  # grey levels for which the mean feature is known
_WINDOW, _EXAMPLES = 9, 200  # side of the window, and images whose correlations count
_PASSES = 3  # of smoothing between bounds
_LEAST_SHARE = 0.01  # of the noise's variance that is taken to be contrast


@dataclass(frozen=True, eq=False)
class _Bank:
    """What was planted: the levels, and the error signals.

    Attributes
    ----------
    chain : Chain
        The layers.
    levels : Tensor
        ``(L, C)`` of each colour, rising; they are those of the first L C channels.
    constant : int or None
        A channel that is as for a white pixel everywhere.
    gain : float
        Of the convolution.
    errors : Tensor
        ``(units, classes)`` of an image of each class, times the gain of the convolution.
    """

    chain: Chain
    levels: Tensor
    constant: int | None
    gain: float
    errors: Tensor

    @classmethod
    def of(cls, model: ModelSpec, work: LocalWork, weights: Tensor) -> "_Bank | None":
        """Recognise what the plan ``thresholds`` plants; None if these weights are others."""
        chain = find_chain(model)
        if chain is None or not chain.convolves:
            return None
        first = chain.first.weight, chain.first.bias
        tensors = flat_model(model).layout.unflatten(onto_pixels(weights, work, model, first))
        kernel, offset = (tensors[name] for name in first)
        colours, (height, width) = kernel.shape[1], kernel.shape[2:]
        live = int((kernel.flatten(1) != 0).any(dim=1).sum())
        gain = float(kernel.max())
        expected = torch.zeros_like(kernel)
        channel = torch.arange(live)
        expected[channel, channel % colours, height // 2, width // 2] = gain
        if not live or live % colours or not torch.allclose(kernel, expected, atol=0):
            return None
        constant = (offset[live:] > 0).nonzero().flatten().tolist()
        return cls(
            chain,
            -offset[:live].reshape(-1, colours) / gain,
            live + constant[0] if constant else None,
            gain,
            error_signals(tensors[chain.head.weight], tensors[chain.head.bias]) * gain,
        )


@dataclass(frozen=True, eq=False)
class _Found:
    """What was read off one payload, ordered by label.

    Attributes
    ----------
    images : Tensor
        ``(n, C, H, W)`` in [0, 1]; grey where none was found.
    labels : Tensor
        ``(n,)``.
    """

    images: Tensor
    labels: Tensor


def has_thresholds(model: ModelSpec, work: LocalWork, weights: Tensor) -> bool:
    """Tell whether clients were sent the weights that the plan ``thresholds`` plants."""
    return _Bank.of(model, work, weights) is not None


def can_read_thresholds(observation: Observation) -> bool:
    """Tell whether a client was sent a bank of thresholds."""
    return has_thresholds(observation.model, observation.work, observation.weights)


def read_thresholds(problems: Problems) -> Tensor:
    """Read the images of batches from the rows of the first fully connected layer.

    Each row of its gradient is an error signal times the features of the images that passed the
    unit. Rows of a single image are told apart from rows of several, and those of the same image
    are put together. Where only signs are left, a row says of each pixel between which levels it
    lies; where values are left, the number of levels exceeded is refined by by how much.

    Returns
    -------
    Tensor
        ``(B, n, C, H, W)`` in [0, 1], in the order of the labels; grey where no image was found.
    """
    return torch.stack([found.images for found in _read_all(problems)])


def read_labels(problems: Problems) -> Tensor:
    """Return the labels ``(B, n)`` of the images of `read_thresholds`, sorted in each row."""
    return torch.stack([found.labels for found in _read_all(problems)])


def _read_all(problems: Problems) -> list[_Found]:
    return [
        _read(problems.model, problems.work, problems.held_back, weights, cell)
        for weights, cell in zip(problems.sent_weights, problems.cells, strict=True)
    ]


@lru_cache(maxsize=4)
def _read(
    model: ModelSpec, work: LocalWork, held_back: HeldBack | None, weights: Tensor, cell: Cell
) -> _Found:
    bank = _Bank.of(model, work, weights)
    assert bank is not None
    seen = _Seen.of(bank, model, work, held_back, cell)
    images, labels = _from_signs(seen) if seen.signs else _from_values(seen)
    shape, count = model.shape, min(len(images), work.images)
    all_images = torch.full((work.images, *shape), 0.5)
    all_images[:count] = images[:count].reshape(-1, *shape)
    all_labels = torch.zeros(work.images, dtype=torch.int64)
    all_labels[:count] = labels[:count]
    order = all_labels.argsort(stable=True)
    return _Found(all_images[order].clamp(0, 1), all_labels[order])


@dataclass(frozen=True, eq=False)
class _Seen:
    """One payload, as far as it concerns the planted layers, in units of a mean gradient.

    Attributes
    ----------
    bank : _Bank
        What was planted.
    images : int
        Of the batch.
    slope : Tensor
        ``(units,)`` largest error signal of an image, as it enters the mean.
    rows, lower, upper : Tensor
        ``(units, channels, pixels)`` gradient of the first linear layer, and its bounds.
    shown : Tensor
        ``(units, channels, pixels)`` bool.
    counts : Tensor
        ``(units,)`` gradient of its bias.
    head : Tensor
        ``(classes, units)`` gradient of the last layer.
    noise : str
        As of `Cell`.
    size : tuple of int
        Height and width of an image.
    """

    bank: _Bank
    images: int
    slope: Tensor
    rows: Tensor
    lower: Tensor
    upper: Tensor
    shown: Tensor
    counts: Tensor
    head: Tensor
    noise: str
    size: tuple[int, int]

    @classmethod
    def of(
        cls,
        bank: _Bank,
        model: ModelSpec,
        work: LocalWork,
        held_back: HeldBack | None,
        cell: Cell,
    ) -> "_Seen":
        factor = work.reach
        chain, layout = bank.chain, flat_model(model).layout
        decoded = layout.unflatten(cell.decoded)
        units = len(decoded[chain.hidden.bias])
        own = cell.transform is None
        every = decoded[chain.hidden.weight]
        lower = (
            layout.unflatten(cell.lower)[chain.hidden.weight]
            if own
            else torch.full_like(every, -torch.inf)
        )
        upper = (
            layout.unflatten(cell.upper)[chain.hidden.weight]
            if own
            else torch.full_like(every, torch.inf)
        )
        shown = torch.ones_like(every, dtype=torch.bool)
        if held_back is not None and own:
            hidden = held_back.elements(layout, cell.sizes)
            shown = ~layout.unflatten(hidden)[chain.hidden.weight]
        pixels = every.shape[1] // len(decoded[chain.first.bias])
        return cls(
            bank,
            work.images,
            bank.errors.abs().amax(dim=1) / work.batch_size,
            every.reshape(units, -1, pixels) / factor,
            lower.reshape(units, -1, pixels) / factor,
            upper.reshape(units, -1, pixels) / factor,
            shown.reshape(units, -1, pixels),
            decoded[chain.hidden.bias] / factor,
            decoded[chain.head.weight] / factor,
            cell.noise if own else "gaussian",
            model.shape[1:],
        )

    @property
    def signs(self) -> bool:
        """Whether only signs are left."""
        one_sided = self.lower.isinf() ^ self.upper.isinf()
        return self.noise == "none" and bool(one_sided[self.shown].float().mean() > 0.5)


def _from_signs(seen: _Seen) -> tuple[Tensor, Tensor]:
    """Return images ``(k, C, pixels)`` and labels: what passed a unit alone, then what is left.

    The last layer tells the labels of what passed a unit: its gradient is negative for these only.
    """
    low, high = _intervals(seen)
    passed = seen.head < 0
    fired = low.flatten(1).float().mean(dim=1) > _FIRED
    single = (fired & (passed.sum(dim=0) <= 1)).nonzero().flatten()
    groups = [single[group] for group in _equal_rows(low[single], high[single])]
    groups = _without_unions(groups, low, high)
    groups = sorted(groups, key=len, reverse=True)[: seen.images]
    known = [
        _Pattern(
            low[group].amax(dim=0),
            high[group].amin(dim=0),
            int(seen.head[:, group].sum(1).argmin()),
        )
        for group in groups
    ]
    several = (fired & (passed.sum(dim=0) > 1)).nonzero().flatten().tolist()
    left = _left_of_unions(known, [(low[unit], high[unit], passed[:, unit]) for unit in several])
    found = [*known, *left][: seen.images]
    images = [_smoothest(*one.bounds(seen.bank.levels), seen.size) for one in found]
    shape = (0, *low.shape[1:])
    labels = torch.tensor([one.label for one in found], dtype=torch.int64)
    return torch.stack(images) if images else torch.zeros(shape), labels


@dataclass(frozen=True, eq=False)
class _Pattern:
    """An image between levels: numbers of the levels below and above, ``(C, pixels)``."""

    low: Tensor
    high: Tensor
    label: int

    def bounds(self, levels: Tensor) -> tuple[Tensor, Tensor]:
        """Return what the pixels are at least and at most; levels are ``(L, C)``."""
        ends = torch.zeros(1, levels.shape[1]), torch.ones(1, levels.shape[1])
        edges = torch.cat([ends[0], levels, ends[1]]).T
        return edges.gather(1, self.low), edges.gather(1, self.high)

    def meets(self, other: "_Pattern") -> bool:
        """Tell whether both may be of the same image."""
        apart = (self.low >= other.high) | (other.low >= self.high)
        return self.label == other.label and float(apart.float().mean()) < _SAME

    def within(self, high: Tensor) -> bool:
        """Tell whether the image may be below an upper bound everywhere."""
        return float((self.low >= high).float().mean()) < _SAME


def _left_of_unions(
    known: list[_Pattern], unions: list[tuple[Tensor, Tensor, Tensor]]
) -> list[_Pattern]:
    """Return what unions hold beside known images, the best known first.

    The pixels of a union are the largest of its images. Where known images do not reach them, they
    are those of the one that is left.
    """
    found: list[_Pattern] = []
    for low, high, labels in unions:
        inside = [one for one in known if labels[one.label] and one.within(high)]
        missing = set(labels.nonzero().flatten().tolist()) - {one.label for one in inside}
        if len(missing) != 1 or not inside:
            continue
        reached = torch.stack([one.high for one in inside]).amax(dim=0)
        own = low >= reached
        rest = _Pattern(torch.where(own, low, 0), high, missing.pop())
        same = next((one for one in found if one.meets(rest)), None)
        if same is not None:
            found.remove(same)
            most = torch.minimum(same.high, rest.high)
            least = torch.minimum(torch.maximum(same.low, rest.low), most - 1)
            rest = _Pattern(least, most, rest.label)
        found.append(rest)
    return sorted(found, key=lambda one: float((one.high - one.low).float().mean()))


def _smoothest(least: Tensor, most: Tensor, size: tuple[int, int]) -> Tensor:
    """Return the likely image ``(C, pixels)`` between two bounds.

    Rounding is taken for noise, and removed as such as far as the bounds allow.
    """
    image = (least + most) / 2
    variance = float((most - least).square().mean()) / 12
    for _ in range(_PASSES):
        clean = without_noise(image.reshape(-1, *size), variance).flatten(1)
        image = torch.minimum(torch.maximum(clean, least), most)
    return image


def _intervals(seen: _Seen) -> tuple[Tensor, Tensor]:
    """Return the numbers of the levels next below and above each pixel, ``(units, C, pixels)``."""
    count, colours = seen.bank.levels.shape
    live = count * colours
    exceeded = (seen.rows[:, :live] < 0) & seen.shown[:, :live]
    reached = (seen.rows[:, :live] >= 0) & seen.shown[:, :live]
    shape = (len(seen.rows), count, colours, -1)
    number = torch.arange(1, count + 1)[:, None, None]
    least = (exceeded.reshape(shape) * number).amax(dim=1)
    most = torch.where(reached.reshape(shape), number, count + 1).amin(dim=1)
    return least, torch.maximum(most, least + 1).clamp_max(count + 1)


def _equal_rows(low: Tensor, high: Tensor) -> list[Tensor]:
    """Group rows whose intervals meet in nearly every pixel."""
    low, high = low.flatten(1).to(torch.uint8), high.flatten(1).to(torch.uint8)
    left = torch.ones(len(low), dtype=torch.bool)
    groups = []
    for row in range(len(low)):
        if not left[row]:
            continue
        apart = ((low >= high[row]) | (low[row] >= high)).float().mean(dim=1)
        group = (left & (apart < _SAME)).nonzero().flatten()
        left[group] = False
        groups.append(group)
    return groups


def _without_unions(groups: list[Tensor], low: Tensor, high: Tensor) -> list[Tensor]:
    """Return the groups of rows that are not unions of smaller ones."""
    kept: list[tuple[Tensor, Tensor, Tensor]] = []
    for group in sorted(groups, key=lambda one: int(low[one[0]].sum())):
        least, most = low[group].amax(dim=0), high[group].amin(dim=0)
        inside = [one[2] for one in kept if (one[1] >= most).float().mean() < _SAME]
        union = torch.stack(inside).amax(dim=0) if inside else torch.zeros_like(most)
        if (least >= union.clamp_min(1)).float().mean() >= _SAME:
            kept.append((group, least, most))
    return [group for group, _, _ in kept]


def _from_values(seen: _Seen) -> tuple[Tensor, Tensor]:
    """Return images ``(k, C, pixels)`` of single rows that are alike, and their labels."""
    live = seen.bank.levels.numel()
    units, side = _of_one_image(seen) if seen.images == 1 else _of_single_images(seen)
    if not len(units):
        return torch.zeros(0, *seen.bank.levels.shape[1:], 1), torch.zeros(0, dtype=torch.int64)
    features = -(side / seen.slope[units])[:, None, None] * seen.rows[units, :live]
    shown = seen.shown[units, :live]
    images, labels = [], []
    for group in _alike(features * shown, seen.images):
        one = _Rows(seen, units[group], side[group], features[group], shown[group])
        images.append(one.pixels())
        labels.append(one.label())
    return torch.stack(images), torch.tensor(labels)


def _of_one_image(seen: _Seen) -> tuple[Tensor, Tensor]:
    """Return the units that see the only image, and the signs of their features.

    Which units these are depends on its class; the likeliest explains the largest sum.
    """
    seeing = -seen.bank.errors.sign() * (
        seen.bank.errors.abs() > seen.bank.errors.abs().amax(dim=1, keepdim=True) / 2
    )
    sums = seen.rows.sum(dim=(1, 2)) / seen.slope
    best = (-sums @ seeing).argmax()
    units = seeing[:, best].nonzero().flatten()
    return units, seeing[units, best]


def _of_single_images(seen: _Seen) -> tuple[Tensor, Tensor]:
    """Return the units that one image passed, and the signs of their features."""
    counts = _counts(seen)
    units = (counts.abs().round() == 1).nonzero().flatten()
    return units, counts[units].sign()


def _counts(seen: _Seen) -> Tensor:
    """Return how many images passed each unit, ``(units,)``, with the sign of the features."""
    if seen.bank.constant is None:
        return -seen.counts * seen.bank.gain / seen.slope
    rows, shown = seen.rows[:, seen.bank.constant], seen.shown[:, seen.bank.constant]
    return -(rows * shown).sum(dim=1) / shown.sum(dim=1).clamp_min(1) / seen.slope


def _alike(rows: Tensor, most: int) -> list[Tensor]:
    """Group noisy rows ``(m, ...)`` by the image that they show, at most ``most`` groups.

    The noise of different rows is independent: it is all in the diagonal of their inner products.
    What is left has as high a rank as there are images, and says what the diagonal would be without
    the noise (Zhang, Cai and Wu 2022, arXiv 1810.08316).
    """
    flat = rows.flatten(1)
    if most == 1 or len(flat) == 1:
        return [torch.arange(len(flat))]
    products = (flat @ flat.T).double() / flat.shape[1]
    rank = min(most, len(flat) - 1)
    products.fill_diagonal_(0)
    for _ in range(_STEPS):
        sizes, vectors = torch.linalg.eigh(products)
        places = vectors[:, -rank:] * sizes[-rank:].clamp_min(0).sqrt()
        products.diagonal().copy_(places.square().sum(dim=1))
    tree = linkage(places.numpy(), "average")
    number = torch.from_numpy(fcluster(tree, most, "maxclust"))
    return [(number == one).nonzero().flatten() for one in torch.unique(number)]


@dataclass(frozen=True, eq=False)
class _Rows:
    """Rows of one image.

    Attributes
    ----------
    seen : _Seen
        The payload.
    units, side : Tensor
        ``(m,)`` which rows, and the signs of their error signals, -1 for a positive one.
    features, shown : Tensor
        ``(m, L C, pixels)`` what they say of the features, and which elements are seen.
    """

    seen: _Seen
    units: Tensor
    side: Tensor
    features: Tensor
    shown: Tensor

    def label(self) -> int:
        """Return the class that fits the signs of the error signals, and the last layer best."""
        signs = -self.side[:, None] * self.seen.bank.errors[self.units].sign()
        size = self.seen.bank.errors[self.units].abs()
        fits = (signs * (size > size.amax(dim=1, keepdim=True) / 2)).mean(dim=0)
        possible = fits >= fits.max() - 0.5
        head = self.seen.head[:, self.units].mean(dim=1)
        return int(head.masked_fill(~possible, torch.inf).argmin())

    def pixels(self) -> Tensor:
        """Return the image ``(C, pixels)``: by its bounds, or where they are wide by averages."""
        least, most = self._bounds()
        middle = (least + most) / 2
        certain = self.seen.noise == "none" or bool((most - least).median() < _FINE)
        certain_here = (most - least < _WIDE) & (least - most < _DISAGREE)
        if certain and bool(certain_here.all()):
            low, high = torch.minimum(least, most), torch.maximum(least, most)
            return _smoothest(low, high, self.seen.size)
        average = self._average()
        low, high = torch.minimum(least, most), torch.maximum(least, most)
        average = torch.minimum(torch.maximum(average, low), high)
        return torch.where(certain_here, middle, average) if certain else average

    def _bounds(self) -> tuple[Tensor, Tensor]:
        """Return what the bounds of the rows leave of the pixels, ``(C, pixels)``."""
        levels, seen = self.seen.bank.levels[:, :, None], self.seen
        live, shape = levels.numel(), (*levels.shape[:2], -1)
        factor = -(self.side / seen.slope[self.units])[:, None, None]
        one, other = (
            (factor * bound[self.units, :live]).where(self.shown, sign * self.side[:, None, None])
            for bound, sign in ((seen.upper, -torch.inf), (seen.lower, torch.inf))
        )
        low = torch.minimum(one, other).amax(dim=0).reshape(shape)
        high = torch.maximum(one, other).amin(dim=0).reshape(shape)
        least = torch.where(low > 0, levels + low, 0).amax(dim=0)
        return least, (levels + high.clamp_min(0)).amin(dim=0).clamp_max(1)

    def _average(self) -> Tensor:
        """Return pixels whose mean feature is what the rows have on average, less their noise."""
        whole = self._mean_feature(slice(None))
        if len(self.units) > 1:
            halves = [self._mean_feature(slice(start, None, 2)) for start in (0, 1)]
            variance = float((halves[0] - halves[1]).square().mean()) / 4
        else:
            variance = self._constant_variance() * float(whole.mean().clamp(0, 1))
        colours, height, width = whole.shape[0], *self.seen.size
        clean = without_noise(whole.reshape(colours, height, width), variance).flatten(1)
        grey = torch.linspace(0, 1, _GREYS)
        told = (grey[:, None, None] - self.seen.bank.levels).relu().mean(dim=1)
        found = [np.interp(one, scale, grey) for one, scale in zip(clean, told.T, strict=True)]
        return torch.tensor(np.stack(found), dtype=whole.dtype)

    def _mean_feature(self, rows: slice) -> Tensor:
        """Return the mean over rows and levels, ``(C, pixels)``; hidden ones by neighbours."""
        shown = self.shown[rows]
        count = shown.sum(dim=0)
        mean = (self.features[rows] * shown).sum(dim=0) / count.clamp_min(1)
        known = (count > 0).float().reshape(-1, 1, *self.seen.size)
        near, there = (
            F.avg_pool2d(one, 3, stride=1, padding=1)
            for one in (mean.reshape(known.shape) * known, known)
        )
        filled = torch.where(known > 0, mean.reshape(known.shape), near / there.clamp_min(1e-6))
        return filled.reshape(*self.seen.bank.levels.shape, -1).mean(dim=0)

    def _constant_variance(self) -> float:
        channel = self.seen.bank.constant
        if channel is None:
            return 0.0
        rows, shown = (x[self.units, channel] for x in (self.seen.rows, self.seen.shown))
        values = (rows / self.seen.slope[self.units, None])[shown]
        return float(values.var()) / self.seen.bank.levels.shape[0]


def without_noise(image: Tensor, variance: float) -> Tensor:
    """Return the best linear estimate of an image with white noise (Wiener 1949).

    Its contrast is estimated, and its correlations are those of synthetic images.

    Parameters
    ----------
    image : Tensor
        ``(C, H, W)``.
    variance : float
        Of the noise.
    """
    colours = image.shape[0]
    side = min(_WINDOW, 2 * ((min(image.shape[1:]) - 1) // 2) + 1)
    mean = image.mean(dim=(1, 2), keepdim=True)
    contrast = max(float((image - mean).square().mean()) - variance, _LEAST_SHARE * variance)
    if variance <= 0 or contrast <= 0:
        return image
    covariance = _covariance(tuple(image.shape), side)
    noise = variance / contrast * torch.eye(len(covariance))
    middle = torch.arange(colours) * side**2 + side**2 // 2
    filters = torch.linalg.solve(covariance + noise, covariance[:, middle]).T
    margin = side // 2
    padded = F.pad((image - mean)[None], (margin,) * 4, mode="reflect")
    return mean + F.conv2d(padded, filters.reshape(colours, colours, side, side).float())[0]


@lru_cache(maxsize=4)
def _covariance(shape: tuple[int, int, int], side: int) -> Tensor:
    """Return the covariance of windows of synthetic images, ``(C side side)`` squared."""
    images = synthetic_images(shape, _EXAMPLES, seed=0)
    images = images - images.mean(dim=(2, 3), keepdim=True)
    images = images / images.square().mean().sqrt()
    windows = F.unfold(images, side, stride=3).transpose(1, 2).flatten(0, 1)
    return windows.T @ windows / len(windows)
