"""Batches of reconstruction problems, made of observations that can be computed together."""

import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from math import prod
from typing import Literal, TypeVar

import torch
from torch import Tensor

from fl_sim.coding.cell import Cell
from fl_sim.models import ModelSpec
from fl_sim.observed.attack_loss import floored
from fl_sim.observed.candidates import candidate_replies, candidate_updates
from fl_sim.observed.evidence import HeldBack
from fl_sim.observed.observations import Observation
from fl_sim.quantizers import parse_quantizer
from fl_sim.quantizers.base import Quantizer
from fl_sim.updates.local_update import (
    FlatModel,
    LocalReply,
    LocalWork,
    flat_model,
    weights_may_differ,
)

Item = TypeVar("Item")

_FINE = 0.1

ClientGroup = Sequence[Observation]
"""One client's observations that are attacked together, the last round last."""

Grouping = Literal["single", "averaged", "joint"]


@dataclass(frozen=True, eq=False)
class Problems:
    """A batch of B reconstruction problems, with all that the server knows of them.

    Attributes
    ----------
    model : ModelSpec
        Shared architecture.
    work : LocalWork
        Shared public facts of the clients' work.
    sent_weights : tuple[Tensor, ...]
        ``(size,)`` weights each client was sent; the same tensor object where they are equal.
    quantizer : Quantizer
        Shared, public.
    cells : tuple[Cell, ...]
        What each payload tells.
    keys : tuple[tuple[int, int], ...]
        Round and partition of each problem; the key of its random numbers.
    earlier : tuple[Problems, ...]
        Earlier rounds of the same images at other weights; usually empty.
    held_back : HeldBack or None
        Shared: which elements of the payloads are hidden.
    known_labels : Tensor or None
        ``(B, n)`` int64 labels, where they need not be recovered.
    sent_statistics : Tensor
        Running statistics of BatchNorm layers that all clients were sent; empty without such.
    statistics_cells : tuple[Cell, ...]
        What each reply tells of their change; empty without such layers.
    """

    model: ModelSpec
    work: LocalWork
    sent_weights: tuple[Tensor, ...]
    quantizer: Quantizer
    cells: tuple[Cell, ...]
    keys: tuple[tuple[int, int], ...]
    earlier: tuple["Problems", ...] = ()
    held_back: HeldBack | None = None
    known_labels: Tensor | None = None
    sent_statistics: Tensor = field(default_factory=lambda: torch.zeros(0))
    statistics_cells: tuple[Cell, ...] = ()

    @classmethod
    def of(cls, groups: Sequence[ClientGroup]) -> "Problems":
        """Make one problem of each group; a group is one client's observations, last round last.

        All share model, work and quantizer. Payloads for the same weights are merged into one cell;
        those for other weights are the `earlier` problems.
        """
        *earlier, latest = zip(*(by_weights(group) for group in groups), strict=True)
        problems = cls._of_one_round(latest)
        return replace(problems, earlier=tuple(cls._of_one_round(one) for one in earlier))

    @classmethod
    def _of_one_round(cls, groups: Sequence[ClientGroup]) -> "Problems":
        first = groups[0][0]
        quantizer = parse_quantizer(first.payload.spec)
        statistics = [s for group in groups if (s := group[-1].statistics) is not None]
        return cls(
            first.model,
            first.work,
            _unified([group[0].weights for group in groups]),
            quantizer,
            tuple(merged_cell(quantizer, group) for group in groups),
            tuple((group[-1].round, group[-1].partition) for group in groups),
            held_back=first.held_back,
            sent_statistics=statistics[0].sent if statistics else torch.zeros(0),
            statistics_cells=tuple(one.cell for one in statistics),
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
        sent_weights = tuple(self.sent_weights[i] for i in chosen)
        cells = tuple(self.cells[i] for i in chosen)
        keys = tuple(self.keys[i] for i in chosen)
        earlier = tuple(one.select(index) for one in self.earlier)
        labels = None if self.known_labels is None else self.known_labels[index]
        return replace(
            self,
            sent_weights=sent_weights,
            cells=cells,
            keys=keys,
            earlier=earlier,
            known_labels=labels,
            statistics_cells=tuple(
                self.statistics_cells[i] for i in chosen if self.with_statistics
            ),
        )

    def to(self, device: torch.device | str) -> "Problems":
        """Return the problems on a device."""
        moved = {id(weights): weights.to(device) for weights in self.sent_weights}
        return replace(
            self,
            sent_weights=tuple(moved[id(weights)] for weights in self.sent_weights),
            cells=tuple(cell.to(device) for cell in self.cells),
            sent_statistics=self.sent_statistics.to(device),
            statistics_cells=tuple(cell.to(device) for cell in self.statistics_cells),
            earlier=tuple(one.to(device) for one in self.earlier),
        )

    def by_weights(self, solve: Callable[["Problems"], Tensor]) -> Tensor:
        """Solve the problems of each weights separately; return the results in their order."""
        rows = [torch.tensor(same) for same in _grouped(self.sent_weights, operator.is_)]
        results = torch.cat([solve(self.select(own)) for own in rows])
        return results[torch.cat(rows).argsort()]

    @property
    def rounds(self) -> tuple["Problems", ...]:
        """The problems of every round of the same images, the last round last."""
        return (*self.earlier, self)

    @cached_property
    def weights(self) -> Tensor:
        """``(size,)`` weights if all clients were given the same, else ``(B, size)``."""
        same = all(weights is self.sent_weights[0] for weights in self.sent_weights)
        return self.sent_weights[0] if same else torch.stack(self.sent_weights)

    @cached_property
    def cell(self) -> Cell:
        """The cells of all problems, stacked ``(B, d)``."""
        return Cell.stack(self.cells)

    @cached_property
    def fine(self) -> bool:
        """Whether the payloads tell their updates to a tenth of their size or better."""
        rms = self.cell.center.square().mean(dim=1).sqrt()
        return bool((self.cell.step.median(dim=1).values <= _FINE * rms).all())

    @property
    def determined(self) -> bool:
        """Whether an update has at least as many elements as its client's images have pixels.

        Otherwise many images explain it, and that a guess does so says little about the images.
        """
        return self.flat_model.layout.size >= prod(self.image_shape)

    def candidate(self, images: Tensor, targets: Tensor) -> Tensor:
        """Return the updates ``(b, size)`` that candidate batches would give.

        Parameters
        ----------
        images : Tensor
            ``(b, n, C, H, W)``.
        targets : Tensor
            ``(b, n, classes)`` target probabilities.
        """
        facts = self.flat_model, self.work, self.weights
        return candidate_updates(*facts, images, targets, self._orders(images))

    @property
    def with_statistics(self) -> bool:
        """Whether replies tell the batch statistics of BatchNorm layers."""
        return bool(self.statistics_cells)

    @cached_property
    def statistics_cell(self) -> Cell | None:
        """The cells of the change of the running statistics, stacked; None without such."""
        return Cell.stack(self.statistics_cells) if self.with_statistics else None

    @cached_property
    def told_statistics(self) -> Tensor | None:
        """What replies tell of batch statistics, the mean of all problems; None if nothing."""
        cell = self.statistics_cell
        if cell is None or cell.scale_free:
            return None
        steps = self.work.local_steps if self.work.kind == "delta" else 1
        each = self.flat_model.shown_statistics(self.sent_statistics, cell.decoded, steps)
        return each.mean(dim=0)

    def reply(self, images: Tensor, targets: Tensor) -> LocalReply:
        """Return all that candidate batches would make clients send; see `candidate`."""
        if not self.with_statistics:
            return LocalReply(self.candidate(images, targets), images.new_zeros(len(images), 0))
        facts = self.flat_model, self.work, self.weights, self.sent_statistics
        return candidate_replies(*facts, images, targets, self._orders(images))

    def _orders(self, images: Tensor) -> Tensor | None:
        """Return which images ``(b, epochs, n)`` each epoch uses, if each has images of its own."""
        epochs = self.work.epochs
        if epochs == 1 or images.shape[1] != epochs * self.work.images:
            return None
        every = torch.arange(images.shape[1], device=images.device).view(-1, self.work.images)
        return every.expand(len(images), -1, -1)

    def without_hidden(self, cell: Cell) -> Cell:
        """Return a cell of the same layout as it is for who does not see what is held back."""
        if self.held_back is None:
            return cell
        layout = self.flat_model.layout
        return cell.without(self.held_back.elements(layout, cell.sizes))

    def shown(self, tensor: str) -> Tensor:
        """Return 1 for each element of a tensor that is seen and 0 for hidden ones, ``(*shape)``.

        Behind a rotation no single element is hidden.
        """
        layout = self.flat_model.layout
        seen = torch.ones(layout.size)
        if self.held_back is not None and self.cell.sizes == layout.sizes:
            seen[self.held_back.elements(layout, layout.sizes)] = 0
        return layout.unflatten(seen)[tensor]

    def decoded(self, tensor: str) -> Tensor:
        """Return the decoded gradient of one tensor, ``(B, *shape)``, by its name.

        A delta counts as the gradient it would be if all local steps pointed the same way.
        """
        layout = self.flat_model.layout
        piece = layout.unflatten(self.cell.decoded)[tensor]
        if self.work.kind == "delta":
            piece = piece / self.work.reach
        if self.work.weight_decay:
            sent = layout.unflatten(self.weights)[tensor] * self.shown(tensor)
            piece = piece - self.work.weight_decay * sent
        return piece


def varied(group: ClientGroup) -> bool:
    """Tell whether the payloads of a group differ in what they tell."""
    return _differ([o.cell for o in group])


def _differ(cells: Sequence[Cell]) -> bool:
    return any(not torch.equal(cell.center, cells[0].center) for cell in cells[1:])


def merged_cell(quantizer: Quantizer, group: ClientGroup) -> Cell:
    """Return the cell of all payloads in which one client sent the same update.

    Independent rounding errors average out with the square root of their number. With error
    feedback, what was sent and the updates differ in sum by the last residual alone, so that the
    error of the mean falls with the number itself. Plain signs have no scale and cannot be
    averaged; the first payload, which has no residual, is used alone.
    """
    cells = [o.cell for o in group]
    if cells[0].scale_free or not _differ(cells):
        return cells[0]
    if cells[0].transform is not None:
        centers = [cell.decoded for cell in cells]
        squares = [cell.step[cell.step.isfinite()].square().mean() for cell in cells]
        step = torch.stack(squares).mean().sqrt()
        steps, sizes = step.expand_as(centers[0]), group[0].payload.layout.sizes
    else:
        centers = [cell.center for cell in cells]
        steps = torch.stack([cell.step for cell in cells]).square().mean(dim=0).sqrt()
        sizes = cells[0].sizes
    center = torch.stack(centers).mean(dim=0)
    everything = torch.full_like(center, torch.inf)
    deviation = steps / (len(cells) if quantizer.carries_residual else 2 * len(cells) ** 0.5)
    return Cell(center, -everything, everything, deviation, sizes, noise="gaussian")


def unexplained(candidate: Tensor, cell: Cell) -> Tensor:
    """Return how far candidates ``(B, size)`` lie outside their cells: mean squared steps ``(B,)``.

    A step is no finer than 1 % of its tensor's rms. Random rounding has a bounded support, and what
    lies outside counts. Additive noise has none; what exceeds its variance counts.
    """
    bounded = floored(cell, 0.01)
    if cell.noise in ("none", "triangular"):
        return replace(bounded, noise="none").misfit(candidate).mean(dim=-1)
    distance = (cell.to_code_domain(candidate) - cell.center) / bounded.step
    expected = 2.0 if cell.noise == "laplace" else 1.0
    return (distance.square().mean(dim=-1) - expected).relu()


def batchable(groups: Sequence[ClientGroup]) -> list[list[int]]:
    """Return the indices of the groups that can be solved as one batch, in order of arrival."""
    return _grouped(groups, _solved_alike)


def client_groups(observations: Sequence[Observation], grouping: Grouping) -> list[ClientGroup]:
    """Group what is attacked together, each group in the order of its rounds.

    Parameters
    ----------
    observations : sequence of Observation
        Of any trials, clients and rounds.
    grouping : "single", "averaged" or "joint"
        ``single``: every observation is a group. ``averaged``: those of one trial, client and
        weights are. ``joint``: those of one trial and client are.
    """
    if grouping == "single":
        return [[observation] for observation in observations]
    clients: dict[tuple[str, int], list[Observation]] = {}
    for observation in sorted(observations, key=lambda o: o.round):
        clients.setdefault((observation.trial, observation.partition), []).append(observation)
    if grouping == "joint":
        return list(clients.values())
    return [group for client in clients.values() for group in by_weights(client)]


def repeats_images(observation: Observation) -> bool:
    """Tell whether the client uses the same images in every round and keeps no residual.

    With error feedback a payload also holds the residual of earlier rounds, and its cell does not
    know how much.
    """
    quantizer = parse_quantizer(observation.payload.spec)
    return observation.work.fixed_batch and not quantizer.carries_residual


def by_weights(group: ClientGroup) -> list[ClientGroup]:
    """Split a group by the weights that the client was given, and by what it did with them."""
    same = _grouped(
        group, lambda one, other: one.work == other.work and _equal(one.weights, other.weights)
    )
    return [[group[index] for index in members] for members in same]


def _solved_alike(one: ClientGroup, other: ClientGroup) -> bool:
    return len(one) == len(other) and all(map(_same_setting, one, other))


def _same_setting(one: Observation, other: Observation) -> bool:
    same = one.model == other.model and one.work == other.work
    same = same and one.payload.spec == other.payload.spec
    if one.statistics is not None and other.statistics is not None:
        same = same and _equal(one.statistics.sent, other.statistics.sent)
        same = same and one.statistics.payload.spec == other.statistics.payload.spec
    if weights_may_differ(one.model, one.work):
        return same
    return same and _equal(one.weights, other.weights)


def _equal(one: Tensor, other: Tensor) -> bool:
    return one is other or torch.equal(one, other)


def _unified(weights: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Return the weights, with one tensor object for all that are equal."""
    first = {index: same[0] for same in _grouped(weights, _equal) for index in same}
    return tuple(weights[first[index]] for index in range(len(weights)))


def _grouped(items: Sequence[Item], same: Callable[[Item, Item], bool]) -> list[list[int]]:
    """Group the indices of items that are the same, in order of arrival."""
    groups: list[list[int]] = []
    for index, item in enumerate(items):
        for members in groups:
            if same(items[members[0]], item):
                members.append(index)
                break
        else:
            groups.append([index])
    return groups
