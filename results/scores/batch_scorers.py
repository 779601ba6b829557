"""Scores of the candidate test in a batch whose other images are unknown."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from math import log
from typing import Protocol

import torch
from torch import Tensor

from fl_sim.quantizers import parse_quantizer
from fl_sim.quantizers.base import Quantizer
from fl_sim.updates.local_update import Layout, Update
from results.scores.candidate_test import ranks

_REHEARSALS = 64  # batches of known images
_FITTED = 0.75  # of the known images; a scorer is chosen on the others
_UNSEEN = 0.3  # of the variance of gradients, which a few hundred known ones do not show
_LEAST_NOISE = 1e-3  # root mean square, relative to the updates, where a likelihood is Gaussian
_ROUNDING = 1e-6  # the same, of float32 arithmetic
_TINY = 1e-30
_OUTER = 1e-3  # least second singular value, relative, of a gradient that is no outer product
_CHUNK = 64


class Scorer(Protocol):
    """Scores how likely candidates are in a batch."""

    def scores(self, decoded: Tensor, gradient: Tensor) -> tuple[Tensor, Tensor]:
        """Return the score of a private gradient ``(n,)``, and of all other candidates ``(M,)``.

        ``decoded`` ``(n,)`` is the mean of what the payloads decode to.
        """
        ...


@dataclass(frozen=True, eq=False)
class Known:
    """What the server knows of a client's batch before it sees a payload.

    Attributes
    ----------
    quantizer : Quantizer
        The client's.
    layout : Layout
        Of the update.
    size : int
        Images of a batch.
    images : Tensor
        ``(K, n)`` gradients of images that are neither private nor candidates.
    others : Tensor
        ``(M, n)`` gradients of the candidates that are not in the batch.
    rounds : int
        Payloads of the same update that a client sends.
    scale, noise : Tensor
        ``(n,)``: what the quantizer makes of a batch's update is, tensor by tensor, a multiple of
        it plus noise of this root mean square.
    """

    quantizer: Quantizer
    layout: Layout
    size: int
    images: Tensor
    others: Tensor
    rounds: int
    scale: Tensor
    noise: Tensor

    @classmethod
    def measured(
        cls,
        spec: str,
        layout: Layout,
        size: int,
        images: Tensor,
        others: Tensor,
        rounds: int,
        generator: torch.Generator,
    ) -> "Known":
        """Measure multiple and noise on batches of the known images."""
        quantizer = parse_quantizer(spec)
        batches = _batches(len(images), size, generator)
        updates = [Update(images[rows].mean(dim=0), layout) for rows in batches]
        sent = torch.stack([one.vector for one in updates])
        got = torch.stack([decoded(quantizer, one, rounds, generator) for one in updates])
        fits = _fit(sent, got, layout)
        return cls(quantizer, layout, size, images, others, rounds, *fits)

    def received(self, rows: Tensor, images: Tensor, generator: torch.Generator) -> Tensor:
        """Return what arrives, decoded ``(n,)``, of a batch of some images' gradients."""
        update = Update(images[rows].mean(dim=0), self.layout)
        return decoded(self.quantizer, update, self.rounds, generator)

    def noise_above(self, least: float) -> Tensor:
        """Return the noise ``(n,)``, at least this share of the root mean square of updates."""
        size = self.scale.abs() * _typical(self.images, self.layout) / self.size**0.5
        return torch.maximum(self.noise, least * size).clamp_min(_TINY)


Kind = Callable[[Known], Scorer]
"""Makes a scorer."""


def decoded(
    quantizer: Quantizer, update: Update, rounds: int, generator: torch.Generator
) -> Tensor:
    """Return the mean ``(n,)`` of what some payloads of an update decode to."""
    payloads = (quantizer.encode(update, generator) for _ in range(rounds))
    mean: Tensor = sum((quantizer.cell(one).decoded for one in payloads), torch.zeros(())) / rounds
    return mean


def batch_scorer(
    spec: str,
    layout: Layout,
    size: int,
    images: Tensor,
    others: Tensor,
    generator: torch.Generator,
    rounds: int = 1,
) -> Scorer:
    """Return the scorer that ranks the images of known batches best, by geometric mean.

    Of a `GaussianScorer`, a `SubspaceScorer` for each fully connected layer and a `ClassScorer` for
    the classifier. Neither private payloads nor ``others`` have a part in the choice, so that an
    image that is in no batch ranks among the others by chance.

    Parameters
    ----------
    spec : str
        The quantizer.
    layout, size, images, others, rounds
        As of `Known`.
    generator : torch.Generator
        Of the known batches.
    """
    count = int(_FITTED * len(images))
    rehearsed = images[count:]
    known = Known.measured(spec, layout, size, images[:count], rehearsed, rounds, generator)
    kinds = [GaussianScorer, *_of_layers(known)]
    chosen = kinds[0]
    if len(kinds) > 1 and len(rehearsed) > size:
        chosen = _best(kinds, known, generator)
    return chosen(replace(known, others=others))


def _best(kinds: list[Kind], known: Known, generator: torch.Generator) -> Kind:
    """Return the kind of scorer that ranks one image of each batch best among those in none."""
    scorers = [kind(known) for kind in kinds]
    logarithms = [0.0] * len(kinds)
    for rows in _batches(len(known.others), known.size, generator):
        received = known.received(rows, known.others, generator)
        absent = torch.ones(len(known.others), dtype=torch.bool)
        absent[rows] = False
        for number, scorer in enumerate(scorers):
            own, everyone = scorer.scores(received, known.others[rows[0]])
            logarithms[number] += log(ranks(own.view(1), everyone[absent][None])[0])
    return kinds[logarithms.index(min(logarithms))]


def _batches(known: int, size: int, generator: torch.Generator) -> list[Tensor]:
    return [torch.randperm(known, generator=generator)[:size] for _ in range(_REHEARSALS)]


def _of_layers(known: Known) -> Iterator[Kind]:
    """Yield kinds of scorers for each weight whose gradients of images are outer products."""
    segments = known.layout.segments
    parts = known.layout.split(known.images)
    for place, segment in enumerate(segments):
        if len(segment.shape) != 2:
            continue
        values = torch.linalg.svdvals(parts[place][0].view(segment.shape))
        if not bool(values[0] > 0) or bool((values[1:] > _OUTER * values[0]).any()):
            continue
        if known.size < max(segment.shape):
            yield partial(SubspaceScorer, place=place)
        followed = segments[place + 1 :][:1]
        if followed and followed[0].shape == segment.shape[:1] and _are_errors(parts[place + 1]):
            yield partial(ClassScorer, place=place)


def _are_errors(slopes: Tensor) -> bool:
    """Tell whether slopes ``(K, classes)`` are probabilities less one at one class each."""
    sums_to_none = slopes.sum(dim=1).abs() <= _OUTER * slopes.abs().sum(dim=1)
    return slopes.shape[1] > 1 and bool((((slopes < 0).sum(dim=1) == 1) & sums_to_none).all())


class GaussianScorer:
    """Scores candidates by a Gaussian likelihood.

    The other images are like known ones: their gradients have the mean and the covariance of known
    gradients.
    """

    def __init__(self, known: Known) -> None:
        self.known = known
        size, scale, images = known.size, known.scale, known.images
        self.mean = images.double().mean(dim=0)
        share = ((size - 1) / len(images)) ** 0.5
        rest = (size - 1) ** 0.5 / size * scale * _typical(images - self.mean, known.layout)
        noise = known.noise_above(_LEAST_NOISE)
        self.noise = (noise.square() + _UNSEEN * rest.square()).sqrt()
        self._spread = share * self._part(images)
        products = self._spread @ self._spread.T
        self._root = torch.linalg.cholesky(products + torch.eye(len(images)).double())
        parts = self._part(known.others)
        self._weighted = self._weigh(parts)
        self._own = (self._weighted * parts).sum(dim=1)

    def scores(self, decoded: Tensor, gradient: Tensor) -> tuple[Tensor, Tensor]:
        """Return log-likelihood ratios against a payload to which the candidate adds nothing."""
        rest = (decoded - self.known.scale * self.mean) / self.noise
        part = self._part(gradient[None])
        weighted = self._weigh(part)[0]
        private = weighted @ rest - (weighted @ part[0]) / 2
        return private, self._weighted @ rest - self._own / 2

    def _part(self, gradients: Tensor) -> Tensor:
        """Return what each image adds to a payload, ``(K, n)``, in deviations of the noise."""
        part: Tensor = (gradients - self.mean) * (self.known.scale / self.noise / self.known.size)
        return part

    def _weigh(self, parts: Tensor) -> Tensor:
        """Multiply by the inverse covariance, the identity plus the products of the spread."""
        inside = torch.cholesky_solve(self._spread @ parts.T, self._root)
        weighted: Tensor = parts - inside.T @ self._spread
        return weighted


class SubspaceScorer:
    """Scores candidates by the subspaces that the gradient of a fully connected layer spans.

    This gradient is a sum of outer products, slopes times inputs, one of each image. Its rows span
    the inputs of the batch and nothing else where these are fewer than units and inputs; so do its
    columns the slopes (as in DAGER: Petrov et al. 2024, arXiv 2405.15586). What of a candidate lies
    outside is compared with what the quantizer's noise would leave there.

    Parameters
    ----------
    known : Known
        See there.
    place : int
        Of the weight among the tensors of the layout.
    """

    def __init__(self, known: Known, place: int) -> None:
        self.known, self.place = known, place
        self.noise = float(self._weight(known.noise_above(_ROUNDING)[None])[0, 0, 0])
        chunks = [self._factors(one) for one in torch.split(known.others, _CHUNK)]
        slopes, inputs = zip(*chunks, strict=True)
        self._others = torch.cat(slopes), torch.cat(inputs)

    def scores(self, decoded: Tensor, gradient: Tensor) -> tuple[Tensor, Tensor]:
        """Return the logarithms of the shares outside, relative to noise, with the other sign."""
        left, values, right = torch.linalg.svd(
            self._weight(decoded[None])[0].double(), full_matrices=False
        )
        edge = self.noise * (len(left) ** 0.5 + right.shape[1] ** 0.5)
        rank = min(self.known.size, int((values > edge).sum()))
        sides = left[:, :rank].T, right[:rank]
        own = self._outside(self._factors(gradient[None]), sides, values[:rank])
        return -own[0], -self._outside(self._others, sides, values[:rank])

    def _outside(
        self, factors: tuple[Tensor, Tensor], bases: tuple[Tensor, Tensor], values: Tensor
    ) -> Tensor:
        """Return how far pairs of unit vectors ``(M, k)`` lie outside bases ``(r, k)``."""
        far = torch.zeros(len(factors[0]), dtype=values.dtype)
        for vectors, basis in zip(factors, bases, strict=True):
            inside = (vectors @ basis.T).square()
            blurred = self.noise**2 * (inside / values.square()).sum(dim=1)
            expected = (vectors.shape[1] - len(basis)) * blurred + _ROUNDING**2
            far += ((1 - inside.sum(dim=1)).clamp_min(0) / expected).log1p()
        return far

    def _factors(self, gradients: Tensor) -> tuple[Tensor, Tensor]:
        """Return the directions of slopes ``(M, units)`` and of inputs ``(M, inputs)``."""
        matrices = self._weight(gradients).double()
        row = matrices.norm(dim=2).argmax(dim=1)
        inputs = matrices[torch.arange(len(matrices)), row]
        inputs = inputs / inputs.norm(dim=1, keepdim=True).clamp_min(_TINY)
        slopes = torch.einsum("mki,mi->mk", matrices, inputs)
        return slopes / slopes.norm(dim=1, keepdim=True).clamp_min(_TINY), inputs

    def _weight(self, vectors: Tensor) -> Tensor:
        """Return the weight's part ``(M, units, inputs)`` of vectors ``(M, n)``."""
        part = self.known.layout.split(vectors)[self.place]
        return part.reshape(-1, *self.known.layout.segments[self.place].shape)


class ClassScorer:
    """Scores candidates by what the images of their class add to the gradient of the classifier.

    With cross-entropy the slope of an image at the logits is the probabilities less one at its
    label, and at weights that are hardly trained all images have nearly the same probabilities. So
    the bias tells how many images a class has, and the row of the weight the sum of their features.
    The others' features count as Gaussian, with the mean and covariance of known ones.

    Parameters
    ----------
    known : Known
        See there.
    place : int
        Of the classifier's weight among the tensors of the layout; its bias comes next.
    """

    def __init__(self, known: Known, place: int) -> None:
        self.known, self.place = known, place
        slopes, features = self._factors(known.images)
        self.probability = (slopes + torch.eye(slopes.shape[1])[slopes.argmin(dim=1)]).mean(dim=0)
        self.mean = features.mean(dim=0)
        values, self.axes = torch.linalg.eigh(torch.cov(features.T))
        self.variances = values.clamp_min(0) + _UNSEEN * values.mean()
        self.noise = self._noise()
        self._others = self._factors(known.others)

    def scores(self, decoded: Tensor, gradient: Tensor) -> tuple[Tensor, Tensor]:
        """Return log-likelihood ratios: of the candidate and others, against all others."""
        counts, sums = self._read(decoded)
        return (
            self._score(counts, sums, *self._factors(gradient[None]))[0],
            self._score(counts, sums, *self._others),
        )

    def _score(self, counts: Tensor, sums: Tensor, slopes: Tensor, features: Tensor) -> Tensor:
        label = slopes.argmin(dim=1)
        count, whole = counts[label], sums[label]
        without = self._likelihood(whole - features, (count - 1).clamp_min(0))
        found = without - self._likelihood(whole, count)
        return found.masked_fill(count < 1, -torch.inf)

    def _likelihood(self, sums: Tensor, counts: Tensor) -> Tensor:
        """Return the log-density of sums ``(M, k)`` of so many features, but for a constant."""
        rest = (sums - counts[:, None] * self.mean) @ self.axes
        variance = counts[:, None] * self.variances + self.noise
        density: Tensor = -0.5 * (rest.square() / variance + variance.log()).sum(dim=1)
        return density

    def _read(self, decoded: Tensor) -> tuple[Tensor, Tensor]:
        """Return the images of each class ``(classes,)``, and the sums of their features."""
        size, segments = self.known.size, self.known.layout.segments
        parts = self.known.layout.split(size * decoded.double() / self.known.scale)
        weight = parts[self.place].view(segments[self.place].shape)
        counts = (size * self.probability - parts[self.place + 1]).round().clamp(0, size)
        absent = self.probability * (counts == 0)
        total = size * self.mean
        if absent.any():
            total = absent @ weight / absent.square().sum()
        return counts, torch.outer(self.probability, total) - weight

    def _noise(self) -> Tensor:
        """Return the mean square ``(k,)`` of what is read of known batches less what is true."""
        generator = torch.Generator().manual_seed(0)
        errors = []
        for rows in _batches(len(self.known.images), self.known.size, generator):
            _, sums = self._read(self.known.received(rows, self.known.images, generator))
            slopes, features = self._factors(self.known.images[rows])
            truth = torch.zeros_like(sums).index_add(0, slopes.argmin(dim=1), features)
            errors.append(((sums - truth) @ self.axes).square().mean(dim=0))
        return torch.stack(errors).mean(dim=0).clamp_min(_TINY)

    def _factors(self, gradients: Tensor) -> tuple[Tensor, Tensor]:
        """Return the slopes ``(M, classes)`` of images, and their features ``(M, k)``."""
        parts = self.known.layout.split(gradients.double())
        slopes = parts[self.place + 1]
        weight = parts[self.place].view(len(slopes), slopes.shape[1], -1)
        size = slopes.square().sum(dim=1, keepdim=True).clamp_min(_TINY)
        return slopes, torch.einsum("mck,mc->mk", weight, slopes) / size


def _typical(gradients: Tensor, layout: Layout) -> Tensor:
    """Return the root mean square of each tensor, at each of its elements, ``(n,)``."""
    parts = [part.square().mean().sqrt().expand(part.shape[1]) for part in layout.split(gradients)]
    return torch.cat(parts)


def _fit(updates: Tensor, decoded: Tensor, layout: Layout) -> tuple[Tensor, Tensor]:
    """Return the best multiple and the deviation of the rest, tensor by tensor, ``(n,)`` each."""
    scales, noises = [], []
    for sent, got in zip(layout.split(updates), layout.split(decoded), strict=True):
        power = sent.double().square().sum().clamp_min(_TINY)
        scale = (sent.double() * got).sum() / power
        noise = (got - scale * sent).double().square().mean().sqrt()
        scales.append(scale.expand(sent.shape[1]))
        noises.append(noise.expand(sent.shape[1]))
    return torch.cat(scales), torch.cat(noises)
