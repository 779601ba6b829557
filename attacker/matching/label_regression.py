"""Label counts by regression: what payloads of public batches tell of labels that anyone knows."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from attacker.matching.problems import Problems
from fl_sim.coding.cell import Cell
from fl_sim.data.public_images import PublicImages
from fl_sim.seeding import Purpose, torch_rng
from fl_sim.updates.batch_norm import couples_images
from fl_sim.updates.layers import find_head
from fl_sim.updates.local_update import Update, one_hot

_BATCHES, _HELD_OUT = 2000, 24
_MOST_IMAGES, _FEWEST_IMAGES = 1024, 256
_LEARNED_FROM = 0.85  # share of the images; the others make the batches that are held out
_MOST_ELEMENTS = 12_288  # of an update, those of the head first
_MOST_FLOATS = 2**27  # of gradients held at once
_PENALTY = 0.3  # of squared slopes, per element and in units of its mean square
_CHUNK = 32


@dataclass(frozen=True, eq=False)
class LabelRegression:
    """Ridge regression from payloads to label counts, and batches to judge it by.

    Attributes
    ----------
    chosen : Tensor
        ``(k,)`` int64: elements of an update that it reads.
    slopes : Tensor
        ``(k, classes)``.
    usual : Tensor
        ``(classes,)`` mean counts.
    held_out : list of Cell
        What payloads of other public batches tell.
    held_out_counts : Tensor
        ``(len(held_out), classes)`` labels of these batches.
    """

    chosen: Tensor
    slopes: Tensor
    usual: Tensor
    held_out: list[Cell]
    held_out_counts: Tensor

    def shares(self, decoded: Tensor) -> Tensor:
        """Return real counts ``(B, classes)`` of decoded updates ``(B, size)``."""
        return decoded[:, self.chosen] @ self.slopes + self.usual


def learn_labels(problems: Problems, public: PublicImages | None) -> LabelRegression | None:
    """Learn to read label counts off payloads, from batches of public images at these weights.

    The update of a batch is the mean of those of its images, so that few public images make many
    batches. Each is quantized as the clients quantize theirs, and what is held back of theirs is
    held back here.

    Returns
    -------
    LabelRegression or None
        None if the update of a batch is no mean of that of its images (several local steps,
        BatchNorm), or the public images are too few.
    """
    size = problems.flat_model.layout.size
    if (
        public is None
        or problems.work.kind != "gradient"
        or couples_images(problems.flat_model.module)
    ):
        return None
    count = min(len(public.images), _MOST_IMAGES, _MOST_FLOATS // size)
    if count < max(_FEWEST_IMAGES, 8 * problems.work.images):
        return None
    generator = torch_rng(0, Purpose.ATTACK, problems.work.images)
    drawn = torch.randperm(len(public.images), generator=generator)[:count]
    labels = one_hot(public.labels[drawn], problems.model.classes)
    gradients = torch.cat([*_gradients(problems, public.images[drawn], labels)])
    cut = round(_LEARNED_FROM * count)
    rows = _batches(cut, problems.work.images, _BATCHES, generator)
    chosen = _chosen(problems)
    payloads = torch.stack(
        [_cell(problems, gradients[row], generator).decoded[chosen] for row in rows]
    )
    counts = labels[rows].sum(dim=1)
    usual = counts.mean(dim=0)
    products = payloads @ payloads.T
    penalty = _PENALTY * products.diagonal().mean()
    duals = torch.linalg.solve(products + penalty * torch.eye(len(rows)), counts - usual)
    others = cut + _batches(count - cut, problems.work.images, _HELD_OUT, generator)
    held_out = [_cell(problems, gradients[row], generator) for row in others]
    return LabelRegression(chosen, payloads.T @ duals, usual, held_out, labels[others].sum(dim=1))


def _gradients(problems: Problems, images: Tensor, labels: Tensor) -> Iterator[Tensor]:
    """Yield the gradient of each image, ``(chunk, size)``."""
    model, inputs = problems.flat_model, problems.work.inputs(images)
    for some, targets in zip(torch.split(inputs, _CHUNK), torch.split(labels, _CHUNK), strict=True):
        with torch.no_grad():
            yield model.gradients(problems.weights, some[:, None], targets[:, None]).detach()


def _batches(images: int, size: int, count: int, generator: torch.Generator) -> Tensor:
    """Draw batches of different images, ``(count, size)`` rows."""
    drawn = [torch.randperm(images, generator=generator)[:size] for _ in range(count)]
    return torch.stack(drawn)


def _cell(problems: Problems, gradients: Tensor, generator: torch.Generator) -> Cell:
    """Return what the payload of a batch tells, of what is not held back."""
    layout = problems.flat_model.layout
    update = Update(gradients.mean(dim=0), layout)
    payload = problems.quantizer.encode(update, generator)
    return problems.without_hidden(problems.quantizer.cell(payload))


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
