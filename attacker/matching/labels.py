"""How an attack learns the labels of a batch: from the update itself, or along with the images."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import log, pi
from typing import Literal

import torch
from torch import Tensor
from torch.func import vjp, vmap
from torch.special import log_ndtr

from attacker.matching.label_regression import LabelRegression, PublicBatches
from attacker.matching.problems import Problems
from attacker.readers import thresholds
from attacker.readers.imprints import ares
from attacker.readers.synthetic import synthetic_images
from fl_sim.coding.cell import Cell, Transform
from fl_sim.data.public_images import PublicImages
from fl_sim.updates.layers import Layer, find_head
from fl_sim.updates.local_update import clipped

LabelStrategy = Literal["joint", "analytic"]

_FEW_WRONG = 0.05  # share of the labels of held-out public batches
_FEWEST_EXAMPLES, _MOST_EXAMPLES = 8, 64
_LEAST_VARIANCE = (
    1e-3  # relative to the mean variance, for elements in which the examples do not differ
)
_NARROW = 1e-3  # in standard deviations
_MOST_ELEMENTS = 4096  # of an update
_MOST_FLOATS = 2**26  # of updates held at once


def recover_labels(problems: Problems, public: PublicImages | None = None) -> Tensor:
    """Recover the labels of every batch, as counts.

    The gradient of the head's bias is the mean of (predicted probability - one-hot label), so class
    c occurs n (p_c - b_c) times; without a bias it is read from the weight's. For n = 1 only the
    true class can be negative (iDLG, Zhao et al. 2020). For larger batches p is guessed as the mean
    prediction at synthetic images, and labels are handed out one by one to the class with the
    largest remaining count (after Geng et al. 2021). Where the quantizer is too coarse to tell n
    labels from n + 1 in this bias, or where there is no bias, the whole payload decides: one label
    at a time is exchanged for another as long as that makes the payload more likely. With public
    images, a regression (`PublicBatches.learn`) counts them instead where it counts those of other
    public images better: it does at trained weights. Where the server planted a bank of thresholds,
    its units tell the labels of single images. Labels that are known are returned as they are.

    Parameters
    ----------
    problems : Problems
        The batches.
    public : PublicImages, optional
        Images that anyone has, with their labels.

    Returns
    -------
    Tensor
        ``(B, n)`` int64, sorted in each row.
    """
    if problems.known_labels is not None:
        return problems.known_labels
    return problems.by_weights(lambda alike: _recovered(alike, public))


def _recovered(problems: Problems, public: PublicImages | None) -> Tensor:
    """Recover the labels of batches that share weights."""
    facts = problems.model, problems.work, problems.weights
    if thresholds.has_thresholds(*facts):
        return thresholds.read_labels(problems)
    head = find_head(problems.model)
    classes = problems.model.classes
    if problems.work.images == 1 and head is not None:
        return _errors(problems, head).argmin(dim=1, keepdim=True)
    if ares.has_separation(*facts):
        return ares.read_labels(problems)
    counter = _Counter(problems)
    found = counter.counts(problems)
    batches = PublicBatches.of(problems, public)
    if batches is not None:
        found = _counted_best(problems, counter, batches, found)
    return torch.stack([torch.arange(classes).repeat_interleave(row.long()) for row in found])


def _counted_best(
    problems: Problems, counter: "_Counter", batches: PublicBatches, found: Tensor
) -> Tensor:
    """Return the counts of what counts the labels of held-out public batches best.

    A regression is learned only where `counter` leaves more than `_FEW_WRONG` of them wrong, and
    where enough batches can be computed.
    """
    trial, truth = batches.held_out()

    def hits(counts: Tensor) -> float:
        return float(torch.minimum(counts, truth).sum())

    told, guessed = hits(counter.counts(trial)), hits(counter.even.expand_as(truth))
    if told >= (1 - _FEW_WRONG) * float(truth.sum()):
        return found

    def taught(regression: LabelRegression, batches: Problems) -> Tensor:
        return _handed_out(regression.shares(batches.cell.decoded), problems.work.images)

    if batches.teach:
        best = max(batches.learn(), key=lambda one: hits(taught(one, trial)))
        if hits(taught(best, trial)) > max(told, guessed):
            return taught(best, problems)
    return found if told >= guessed else counter.even.expand_as(found)


class _Counter:
    """Counts labels by what the model answers to synthetic images.

    Parameters
    ----------
    problems : Problems
        Those it is made for; it counts any with the same weights, work and quantizer.
    """

    def __init__(self, problems: Problems) -> None:
        self.problems, self.head = problems, find_head(problems.model)
        affordable = _MOST_FLOATS // problems.weights.numel()
        count = max(_FEWEST_EXAMPLES, min(affordable, _MOST_EXAMPLES))
        self.examples = synthetic_images(problems.model.shape, count, seed=0)
        self.log_prediction = _log_predictions(problems, self.examples)

    @cached_property
    def even(self) -> Tensor:
        """Counts ``(classes,)`` of who knows nothing."""
        images, classes = self.problems.work.images, self.problems.model.classes
        return _handed_out(torch.full((1, classes), images / classes), images)[0]

    @cached_property
    def expected(self) -> "_Expected":
        return _Expected.of(self.problems, self.examples, self.log_prediction)

    def counts(self, problems: Problems) -> Tensor:
        """Return the counts ``(B, classes)`` of some batches."""
        images, head = problems.work.images, self.head
        found = self.even.repeat(len(problems), 1)
        coarse = torch.ones(len(problems), dtype=torch.bool)
        if head is not None:
            shares = images * (self.log_prediction.exp().mean(dim=0) - _errors(problems, head))
            found = _handed_out(shares, images)
            coarse = _resolution(problems, head) > 1 / (2 * images)
        if problems.work.example_clip:  # a clipped error does not add up to its label
            coarse = torch.ones(len(problems), dtype=torch.bool)
        for row in coarse.nonzero().squeeze(1).tolist():
            likelihood = self.expected.likelihood(problems.cells[row])
            found[row] = _most_likely((found[row], self.even), likelihood)
        return found


def _errors(problems: Problems, head: Layer) -> Tensor:
    """Return the mean of (predicted probability - one-hot label), ``(B, classes)``."""
    if head.bias is not None:
        return problems.decoded(head.bias)
    assert head.weight is not None
    return _rows_told(problems, problems.decoded(head.weight).flatten(2), head.weight)


def _rows_told(problems: Problems, rows: Tensor, weight: str) -> Tensor:
    """Read the errors, up to a scale, from the head's weight gradient ``(B, classes, F)``.

    Each row is an error times the features. For one image, the direction of the features is the
    first singular vector; its sign is the one for which a single class has a negative error. Where
    both signs are possible, and for more images, the features of synthetic images decide.
    """
    usual = _usual_features(problems, weight)
    errors = rows @ usual / usual.square().sum()
    if problems.work.images > 1:
        return errors
    left, sizes, _ = torch.linalg.svd(rows, full_matrices=False)
    only = left[:, :, 0] * sizes[:, :1]
    excess = ((only < 0).sum(dim=1) - 1).abs() - ((only > 0).sum(dim=1) - 1).abs()
    agrees = (only * errors).sum(dim=1) >= 0
    kept = (excess < 0) | ((excess == 0) & agrees)
    return torch.where(kept[:, None], only, -only)


def _usual_features(problems: Problems, weight: str) -> Tensor:
    """Return the mean features ``(F,)`` of synthetic images: the gradient of a logit's weights."""
    images = synthetic_images(problems.model.shape, _FEWEST_EXAMPLES, seed=0)
    model, images = problems.flat_model, problems.work.inputs(images)
    _, pull = vjp(  # type: ignore[misc]
        lambda w: model.logits(w, images, problems.told_statistics)[:, 0].mean(), problems.weights
    )
    (slope,) = pull(torch.ones(()))
    return model.layout.unflatten(slope.detach())[weight][0].flatten()


def _log_predictions(problems: Problems, images: Tensor) -> Tensor:
    """Return the log-probabilities ``(N, classes)`` that the model predicts."""
    inputs = problems.work.inputs(images)
    with torch.no_grad():
        logits = problems.flat_model.logits(problems.weights, inputs, problems.told_statistics)
        return logits.log_softmax(dim=-1)


def _resolution(problems: Problems, head: Layer) -> Tensor:
    """Return the largest step ``(B,)`` of the head's bias; infinite if rotated or missing."""
    if problems.cell.transform is not None or head.bias is None:
        return torch.full((len(problems),), torch.inf)
    steps = problems.flat_model.layout.unflatten(problems.cell.step)[head.bias]
    return steps.amax(dim=1) / _gradients(problems)


def _gradients(problems: Problems) -> float:
    """Return the factor between a gradient and an update."""
    return problems.work.reach


def _handed_out(shares: Tensor, labels: int) -> Tensor:
    """Round real counts ``(B, classes)`` to whole ones that sum to ``labels``."""
    counts = torch.zeros_like(shares)
    for _ in range(labels):
        first = (shares - counts).argmax(dim=1, keepdim=True)
        counts.scatter_add_(1, first, torch.ones_like(shares[:, :1]))
    return counts


@dataclass(frozen=True, eq=False)
class _Expected:
    """What one image of each class adds to an update: mean and variance, ``(classes, size)``."""

    mean: Tensor
    variance: Tensor

    @classmethod
    def of(cls, problems: Problems, examples: Tensor, log_prediction: Tensor) -> "_Expected":
        """Measure it at example images, each given every label in turn.

        An example counts for a class in proportion to the probability that the model gives to the
        class: a trained model predicts the class of most images that it was trained on.
        """
        model, classes = problems.flat_model, problems.model.classes
        inputs = problems.work.inputs(examples)

        def gradient(image: Tensor, target: Tensor) -> Tensor:
            known = problems.told_statistics
            return model.gradient(problems.weights, image[None], target[None], known)

        moments = []
        for target, trust in zip(torch.eye(classes), log_prediction.softmax(dim=0).T, strict=True):
            with torch.no_grad():
                each = vmap(gradient, in_dims=(0, None))(inputs, target)
            if problems.work.example_clip:
                each = clipped(each, problems.work.example_clip)
            each = each * (_gradients(problems) / problems.work.images)
            mean = trust @ each
            moments.append(torch.stack([mean, trust @ (each - mean).square()]))
        return cls(*torch.stack(moments, dim=1))

    def likelihood(self, cell: Cell) -> Callable[[Tensor], Tensor]:
        """Return the log-likelihood of a payload as a function of counts ``(K, classes)``.

        Elements are taken as independent and Gaussian. They are not independent, which makes the
        likelihood too steep, but hardly moves its maximum. A sample of the elements is enough.
        """
        size = cell.center.shape[-1]
        some = torch.arange(0, size, -(-size // _MOST_ELEMENTS))
        asked = cell.only(some)

        direct = cell.transform is None
        expected = _Expected(self.mean[:, some], self.variance[:, some]) if direct else self

        def evaluate(counts: Tensor) -> Tensor:
            each = []
            for row in torch.split(counts, max(1, _MOST_FLOATS // expected.mean.shape[1])):
                moments = expected._of_batches(row, cell.transform)
                told = moments if direct else [moment[:, some] for moment in moments]
                each.append(_log_likelihood(asked, *told))
            return torch.cat(each)

        return evaluate

    def _of_batches(self, counts: Tensor, transform: Transform | None) -> tuple[Tensor, Tensor]:
        """Return mean and variance of the codes of batches, ``(K, d)``; rotations mix them."""
        mean, variance = counts @ self.mean, counts @ self.variance
        if transform is not None:
            sent, size = transform(mean), mean.square().sum(dim=1, keepdim=True)
            average = variance.sum(dim=1, keepdim=True) * sent.square().mean(dim=1, keepdim=True)
            mean, variance = sent, (average / size).expand_as(sent)
        return mean, variance + _LEAST_VARIANCE * variance.mean(dim=1, keepdim=True)


def _log_likelihood(cell: Cell, mean: Tensor, variance: Tensor) -> Tensor:
    """Return the log-likelihood ``(K,)`` of a payload of Gaussian values, up to a constant."""
    each = _log_probability(cell.lower, cell.upper, mean, variance.sqrt())
    if cell.noise != "none":
        told = cell.step.isfinite()
        total = variance + torch.where(told, cell.step, 1).square()
        near = -((cell.center - mean).square() / total + total.log()).where(told, 0) / 2
        each = near if cell.certain is None else torch.where(cell.certain, each, near)
    return each.sum(dim=1)


def _log_probability(lower: Tensor, upper: Tensor, mean: Tensor, deviation: Tensor) -> Tensor:
    """Return the log-probability that a Gaussian lies between two bounds; stable in the tails."""
    left, right = (lower - mean) / deviation, (upper - mean) / deviation
    mirrored = left + right > 0  # else both ends may be in the upper tail, where digits cancel
    left, right = torch.where(mirrored, -right, left), torch.where(mirrored, -left, right)
    width = (right - left).clamp_min(torch.finfo(mean.dtype).tiny)
    density = width.log() - (left.square() + log(2 * pi)) / 2
    ratio = (log_ndtr(left) - log_ndtr(right)).clamp_max(-_NARROW)
    return torch.where(width < _NARROW, density, log_ndtr(right) + torch.log(-torch.expm1(ratio)))


def _most_likely(starts: Sequence[Tensor], likelihood: Callable[[Tensor], Tensor]) -> Tensor:
    """Return the most likely counts ``(classes,)`` that a climb from one of the starts reaches."""
    tops = torch.stack([_climbed(start, likelihood) for start in starts])
    return tops[likelihood(tops).argmax()]


def _climbed(counts: Tensor, likelihood: Callable[[Tensor], Tensor]) -> Tensor:
    """Make the best exchange of two labels as long as it makes the payload more likely."""
    classes = len(counts)
    one = torch.eye(classes)
    exchanges = (one[None] - one[:, None]).flatten(0, 1)  # class i // classes for i % classes
    best = likelihood(counts[None])[0]
    while True:
        candidates = counts + exchanges[(counts > 0).repeat_interleave(classes)]
        values = likelihood(candidates)
        if not values.max() > best:
            return counts
        best, counts = values.max(), candidates[values.argmax()]
