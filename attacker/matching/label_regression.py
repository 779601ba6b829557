"""Payloads of public batches, whose labels anyone knows: to learn counting, and to judge it."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from attacker.matching.problems import Problems
from fl_sim.coding.cell import Cell
from fl_sim.data.public_images import PublicImages
from fl_sim.seeding import Purpose, torch_rng
from fl_sim.updates.batch_norm import couples_images
from fl_sim.updates.layers import find_head
from fl_sim.updates.local_update import Update, one_hot

_BATCHES, _FEWEST_BATCHES = 2000, 200  # to learn from
_HELD_OUT, _FEWEST_HELD_OUT = 24, 4  # to judge by
_MOST_IMAGES, _FEWEST_IMAGES = 1024, 256
_LEARNED_FROM = 0.85  # share of the images; the others make the batches that are held out
_MOST_ELEMENTS = 12_288  # of an update, those of the head first
_MOST_FLOATS = 2**27  # of gradients held at once
_MOST_WORK = 2_500_000_000  # images times parameters, where each batch is computed as a whole
_PENALTY = 0.3  # of squared slopes, per element and in units of its mean square
_CHUNK = 32  # images computed together


@dataclass(frozen=True, eq=False)
class PublicBatches:
    """Batches of public images, as the clients of some problems would send them.

    Attributes
    ----------
    problems : Problems
        Whose weights, work and quantizer they share.
    images, labels : Tensor
        ``(count, C, H, W)`` and one-hot ``(count, classes)``.
    means : bool
        Whether the update of a batch is the mean of those of its images: few gradients then make
        many batches. It is not with several local steps, nor with BatchNorm; nor is it used where
        the gradients of enough images are too large to be held at once.
    """

    problems: Problems
    images: Tensor
    labels: Tensor
    means: bool

    @classmethod
    def of(cls, problems: Problems, public: PublicImages | None) -> "PublicBatches | None":
        """Draw the images; None if they are too few."""
        if public is None:
            return None
        work, size = problems.work, problems.flat_model.layout.size
        fewest, held = max(_FEWEST_IMAGES, 8 * work.images), _MOST_FLOATS // size
        means = work.kind == "gradient" and not couples_images(problems.flat_model.module)
        means = means and held >= fewest
        count = min(len(public.images), _MOST_IMAGES, held if means else _MOST_IMAGES)
        if count < fewest:
            return None
        drawn = torch.randperm(len(public.images), generator=_generator(problems))[:count]
        labels = one_hot(public.labels[drawn], problems.model.classes)
        return cls(problems, public.images[drawn], labels, means)

    @property
    def teach(self) -> bool:
        """Whether enough batches can be computed to learn from."""
        return self._affordable >= _FEWEST_BATCHES

    @property
    def _affordable(self) -> int:
        """How many batches may be learned from."""
        if self.means:
            return _BATCHES
        work, size = self.problems.work, self.problems.flat_model.layout.size
        steps = work.local_steps if work.kind == "delta" else 1
        return min(_BATCHES, _MOST_WORK // (work.images * steps * size))

    @property
    def _cut(self) -> int:
        return round(_LEARNED_FROM * len(self.images))

    def held_out(self) -> tuple[Problems, Tensor]:
        """Return batches of images that nothing is learned from, and their label counts."""
        generator = _generator(self.problems, 1)
        size = self.problems.work.images
        count = max(_FEWEST_HELD_OUT, min(_HELD_OUT, self._affordable))
        rows = self._cut + _batches(len(self.images) - self._cut, size, count, generator)
        cells = tuple(self._cells(rows, self._whole, generator))
        sent = (self.problems.sent_weights[0],) * len(rows)
        keys = tuple((0, number) for number in range(len(rows)))
        trial = replace(self.problems, cells=cells, keys=keys, sent_weights=sent, earlier=())
        return trial, self.labels[rows].sum(dim=1)

    def learn(self) -> "tuple[LabelRegression, ...]":
        """Learn to read label counts off payloads, and off their signs alone.

        Each is quantized as the clients quantize theirs, and what is held back of theirs is held
        back here. Where a trained model is sure of most images, the size of an update is that of
        its few surprises, and signs tell more.
        """
        generator = _generator(self.problems, 2)
        rows = _batches(self._cut, self.problems.work.images, self._affordable, generator)
        chosen = _chosen(self.problems)
        cells = self._cells(rows, self._from_means if self.means else self._whole, generator)
        payloads = torch.stack([cell.decoded[chosen] for cell in cells])
        counts = self.labels[rows].sum(dim=1)
        return tuple(
            LabelRegression.fitted(chosen, of, payloads, counts) for of in (_same, torch.sign)
        )

    def _cells(
        self, rows: Tensor, updates: Callable[[Tensor], Tensor], generator: torch.Generator
    ) -> Iterator[Cell]:
        """Yield what the payload of each batch tells, of what is not held back."""
        problems = self.problems
        layout = problems.flat_model.layout
        for some in torch.split(rows, max(1, _CHUNK // problems.work.images)):
            for update in updates(some):
                payload = problems.quantizer.encode(Update(update, layout), generator)
                yield problems.without_hidden(problems.quantizer.cell(payload))

    def _whole(self, rows: Tensor) -> Tensor:
        """Return the updates ``(b, size)`` of some batches."""
        with torch.no_grad():
            return self.problems.candidate(self.images[rows], self.labels[rows]).detach()

    def _from_means(self, rows: Tensor) -> Tensor:
        """Return the same from the gradients of the images."""
        return torch.stack([self._gradients[own].mean(dim=0) for own in rows])

    @cached_property
    def _gradients(self) -> Tensor:
        """The update of each image alone, ``(count, size)``, clipped where clients clip it."""
        every = torch.arange(len(self.images))[:, None]
        return torch.cat([self._whole(rows) for rows in torch.split(every, _CHUNK)])


@dataclass(frozen=True, eq=False)
class LabelRegression:
    """Ridge regression from payloads to label counts.

    Attributes
    ----------
    chosen : Tensor
        ``(k,)`` int64: elements of an update that it reads.
    of : callable
        What of them it reads.
    slopes : Tensor
        ``(k, classes)``.
    usual : Tensor
        ``(classes,)`` mean counts.
    """

    chosen: Tensor
    of: Callable[[Tensor], Tensor]
    slopes: Tensor
    usual: Tensor

    @classmethod
    def fitted(
        cls, chosen: Tensor, of: Callable[[Tensor], Tensor], payloads: Tensor, counts: Tensor
    ) -> "LabelRegression":
        """Fit payloads ``(N, k)`` to their counts ``(N, classes)``."""
        read, usual = of(payloads), counts.mean(dim=0)
        products = read @ read.T
        penalty = _PENALTY * products.diagonal().mean()
        duals = torch.linalg.solve(products + penalty * torch.eye(len(read)), counts - usual)
        return cls(chosen, of, read.T @ duals, usual)

    def shares(self, decoded: Tensor) -> Tensor:
        """Return real counts ``(B, classes)`` of decoded updates ``(B, size)``."""
        return self.of(decoded[:, self.chosen]) @ self.slopes + self.usual


def _same(payloads: Tensor) -> Tensor:
    return payloads


def _generator(problems: Problems, *use: int) -> torch.Generator:
    return torch_rng(0, Purpose.ATTACK, problems.work.images, *use)


def _batches(images: int, size: int, count: int, generator: torch.Generator) -> Tensor:
    """Draw batches of different images, ``(count, size)`` rows."""
    drawn = [torch.randperm(images, generator=generator)[:size] for _ in range(count)]
    return torch.stack(drawn)


def _chosen(problems: Problems) -> Tensor:
    """Return the elements that are read: those of the head, then others at equal distances."""
    layout, head = problems.flat_model.layout, find_head(problems.model)
    names = () if head is None else (head.weight, head.bias)
    own = torch.cat(
        [
            torch.full((size,), segment.name in names)
            for segment, size in zip(layout.segments, layout.sizes, strict=True)
        ]
    )
    first, rest = own.nonzero().squeeze(1), (~own).nonzero().squeeze(1)
    left = max(1, _MOST_ELEMENTS - len(first))
    return torch.cat([first[:_MOST_ELEMENTS], rest[:: max(1, -(-len(rest) // left))]])
