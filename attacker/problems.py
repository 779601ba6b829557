"""Observations that share weights, as one batch of reconstruction problems."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor
from torch.func import vmap

from fl_sim.models import ModelSpec
from fl_sim.observations import Observation
from fl_sim.quantizers import parse_quantizer
from fl_sim.quantizers.cell import Cell
from fl_sim.updates import FlatModel, LocalWork, flat_model, local_update

_NOISE_IMAGES = 64


@dataclass(frozen=True, eq=False)
class Problems:
    """A batch of B reconstruction problems: all that the server knows of them.

    Attributes
    ----------
    model : ModelSpec
        Shared architecture.
    work : LocalWork
        Shared public facts of the clients' work.
    weights : Tensor
        ``(size,)`` weights all clients were given.
    cells : tuple[Cell, ...]
        What each payload tells.
    keys : tuple[tuple[int, int], ...]
        Round and partition of each problem; the key of its random numbers.
    """

    model: ModelSpec
    work: LocalWork
    weights: Tensor
    cells: tuple[Cell, ...]
    keys: tuple[tuple[int, int], ...]

    @classmethod
    def of(cls, observations: Sequence[Observation]) -> "Problems":
        """Stack observations that share weights, model, work and quantizer."""
        first = observations[0]
        quantizer = parse_quantizer(first.payload.spec)
        return cls(
            first.model,
            first.work,
            first.weights,
            tuple(quantizer.cell(o.payload) for o in observations),
            tuple((o.round, o.partition) for o in observations),
        )

    def __len__(self) -> int:
        return len(self.keys)

    @cached_property
    def flat_model(self) -> FlatModel:
        """The model in functional form."""
        return flat_model(self.model)

    @cached_property
    def image_shape(self) -> tuple[int, int, int, int]:
        """``(n, C, H, W)`` of one problem's images."""
        return (self.work.images, *self.model.shape)

    def select(self, index: Tensor) -> "Problems":
        """Return the problems at ``index``."""
        chosen = index.tolist()
        cells = tuple(self.cells[i] for i in chosen)
        return replace(self, cells=cells, keys=tuple(self.keys[i] for i in chosen))

    @cached_property
    def cell(self) -> Cell:
        """The cells of all problems, stacked ``(B, d)``."""
        return Cell.stack(self.cells)

    def candidate(self, images: Tensor, targets: Tensor) -> Tensor:
        """Return the updates ``(b, size)`` that candidate batches would give.

        Parameters
        ----------
        images : Tensor
            ``(b, n, C, H, W)``.
        targets : Tensor
            ``(b, n, classes)`` target probabilities.
        """

        def one(images: Tensor, targets: Tensor) -> Tensor:
            return local_update(self.flat_model, self.work, self.weights, images, targets)

        return vmap(one)(images, targets)

    def decoded(self, tensor: int) -> Tensor:
        """Return the decoded gradient of one tensor, ``(B, n)``, by its index in the layout.

        A delta counts as the gradient it would be if all local steps pointed the same way.
        """
        piece = torch.split(self.cell.center, list(self.cell.sizes), dim=-1)[tensor]
        if self.work.kind == "delta":
            return piece / (self.work.learning_rate * self.work.local_steps)
        return piece

    @cached_property
    def mean_prediction(self) -> Tensor:
        """Mean predicted probabilities ``(classes,)`` at noise images, a guess at the clients'."""
        generator = torch.Generator().manual_seed(0)
        noise = torch.rand(_NOISE_IMAGES, *self.model.shape, generator=generator)
        with torch.no_grad():
            return self.flat_model.logits(self.weights, noise).softmax(dim=-1).mean(dim=0)


def group(observations: Sequence[Observation]) -> Iterator[list[int]]:
    """Yield the indices of observations that can be solved as one batch, in order of arrival."""
    groups: list[list[int]] = []
    for index, observation in enumerate(observations):
        for members in groups:
            if _alike(observations[members[0]], observation):
                members.append(index)
                break
        else:
            groups.append([index])
    yield from groups


def _alike(one: Observation, other: Observation) -> bool:
    same = one.model == other.model and one.work == other.work
    same = same and one.payload.spec == other.payload.spec
    return same and (one.weights is other.weights or torch.equal(one.weights, other.weights))
