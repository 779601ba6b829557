"""Attacks that search for images whose update matches the payload."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from math import nan, prod
from typing import Literal

import torch
from torch import Tensor

from attacker.attack import Progress
from attacker.batches import Batches
from attacker.matching.frequencies import to_pixels
from attacker.matching.labels import LabelStrategy, recover_labels
from attacker.matching.optimizers import LBFGS, Minimum, Objective, Optimizer
from attacker.matching.problems import (
    ClientGroup,
    Grouping,
    Problems,
    by_weights,
    client_groups,
    repeats_images,
    varied,
)
from attacker.matching.starts import STARTS, StartContext, StartName, label_logits, start_images
from attacker.solutions import Solution, mean_misfit
from fl_sim.coding.cell import Cell
from fl_sim.data.public_images import PublicImages
from fl_sim.observed import patches
from fl_sim.observed.attack_loss import AttackLoss, floored
from fl_sim.observed.observations import Observation
from fl_sim.observed.reconstructions import Reconstruction
from fl_sim.specs import NOT_A_PARAMETER, not_negative, positive
from fl_sim.updates.layers import find_head
from fl_sim.updates.local_update import convolutions_for, one_hot

_WEIGHTS = tuple(float(f"{digit}e{power}") for power in range(-5, 1) for digit in (1, 3))
_WEIGHT_FOR_NOISE = 0.1  # likelihoods are in nats; distances from a cell are far smaller
_PATCH_WEIGHTS = 1e-5, 0.01  # to start from, for cells and for noise
_PATCHES_ARE_STRONGER = 1e6  # than any total variation
_ASSIGNMENTS = 4  # times that the patches of a picture are assigned to components anew
_BOUNDED = LBFGS(iterations=80, progress=1e-4)  # from one assignment to the next


@dataclass(frozen=True)
class Matching:
    """An attack that searches for images whose update matches the payload.

    Attributes
    ----------
    name : str
        Name of the preset it was built from.
    loss : AttackLoss
        What is minimised: objective and priors.
    labels : {"joint", "analytic"}
        Labels are optimised with the images, or read from the head's gradient first. Without a
        layer whose output is the logits they cannot be read, and are optimised.
    start : str
        A key of `attacker.matching.starts.STARTS`.
    optimizer : Optimizer
        Minimises all problems of a batch at once.
    warmup : int
        Evaluations of L-BFGS before the optimizer starts. The loss is the same, but every candidate
        update is rescaled to the norm of the observed one: at trained weights the update of a
        well-classified image is a thousand times smaller than that of the start.
    restarts : int
        Most further starts for a problem whose payload is not yet explained.
    grouping : "single", "averaged" or "joint"
        What makes one problem. ``single``: each payload. ``averaged``: all payloads of a client for
        the same weights, which are one update, rounded anew each time. ``joint``: all payloads of a
        client that uses the same images in every round; the loss is the mean over the rounds.
    prior : "fixed" or "tuned"
        Whether a suite keeps the weight of the prior, ``loss.tv``, or also tries others.
    batch : int
        Most problems solved together; bounds the memory.
    """

    name: str = field(metadata=NOT_A_PARAMETER)
    loss: AttackLoss = field(default_factory=AttackLoss, metadata=NOT_A_PARAMETER)
    labels: LabelStrategy = "analytic"
    start: StartName = "grey"
    optimizer: Optimizer = field(default_factory=LBFGS, metadata=NOT_A_PARAMETER)
    warmup: int = 0
    restarts: int = 0
    grouping: Grouping = "single"
    prior: Literal["fixed", "tuned"] = "fixed"
    batch: int = 64

    def __post_init__(self) -> None:
        not_negative("warmup", self.warmup)
        not_negative("restarts", self.restarts)
        positive("batch", self.batch)

    def applies(self, observations: Sequence[Observation]) -> bool:
        """Tell whether the attack can be run on these observations."""
        if self.grouping != "single" and not all(o.work.fixed_batch for o in observations):
            return False
        if self.grouping == "joint" and not all(map(repeats_images, observations)):
            return False
        if self.loss.patches and not all(patches.can_judge(o.model.shape) for o in observations):
            return False
        groups = client_groups(observations, self.grouping)
        if self.grouping != "single" and not any(map(_more_than_one_tells, groups)):
            return False
        return all(STARTS[self.start].applies(o) for o in observations)

    @property
    def needs_public(self) -> bool:
        """Whether the attack needs public images."""
        return STARTS[self.start].needs_public

    @property
    def uses_public(self) -> bool:
        """Whether public images make a difference: their labels help to count those of batches."""
        return self.needs_public or self.labels == "analytic"

    def reconstruct(
        self,
        observations: Sequence[Observation],
        *,
        seed: int,
        public: PublicImages | None = None,
        progress: Progress | None = None,
        device: str = "cpu",
    ) -> list[Reconstruction]:
        """Reconstruct the private batch behind every observation.

        Parameters
        ----------
        observations : sequence of Observation
            Those that can be computed together are solved as one batch.
        seed : int
            Every random start is a function of it and of the observation's round and partition.
        public : PublicImages, optional
            Auxiliary images of learned attacks.
        progress : callable, optional
            Called with the observations done and their total.
        device : str
            Where problems are optimised, ``cuda`` in larger batches; results do not depend on it
            but for float tolerance.

        Returns
        -------
        list of Reconstruction
            One per observation, in their order; one per partition and weights if ``averaged``, one
            per partition if ``joint``, with the last of their rounds.
        """
        return self._from_start(0, observations, seed, public, progress, device)

    def restart(
        self,
        observations: Sequence[Observation],
        *,
        seed: int,
        public: PublicImages | None = None,
        device: str = "cpu",
    ) -> list[Reconstruction]:
        """Reconstruct as `reconstruct` does where its first start has failed: from the others."""
        return self._from_start(1, observations, seed, public, None, device)

    def _from_start(
        self,
        first: int,
        observations: Sequence[Observation],
        seed: int,
        public: PublicImages | None,
        progress: Progress | None,
        device: str,
    ) -> list[Reconstruction]:
        context = StartContext(seed, first, public)
        batches = Batches(self.batch, device)

        def solve(groups: Sequence[ClientGroup]) -> Solution:
            most = batches.size(groups[0])
            return self.solve(Problems.of(groups), context, most, device)

        groups = client_groups(observations, self.grouping)
        return batches.solve(groups, solve, self.name, self.loss.spec, progress)

    def refine(
        self,
        observations: Sequence[Observation],
        guesses: Sequence[Reconstruction],
        *,
        device: str = "cpu",
    ) -> list[Reconstruction]:
        """Continue from guesses that were made while elements of the payloads were held back.

        The labels stay as they are.

        Parameters
        ----------
        observations, device
            As of `reconstruct`.
        guesses : sequence of Reconstruction
            As `reconstruct` returns them; there may be fewer, and only these are made anew.
        """
        known = {(one.trial, one.round, one.partition): one for one in guesses}
        batches = Batches(self.batch, device)

        def solve(groups: Sequence[ClientGroup]) -> Solution:
            lasts = [group[-1] for group in groups]
            starts = [known[last.trial, last.round, last.partition] for last in lasts]
            return self._continue(Problems.of(groups), starts, device)

        groups = [
            group
            for group in client_groups(observations, self.grouping)
            if (group[-1].trial, group[-1].round, group[-1].partition) in known
        ]
        return batches.solve(groups, solve, self.name, self.loss.spec, None)

    def _continue(
        self, problems: Problems, guesses: Sequence[Reconstruction], device: str
    ) -> Solution:
        labels = torch.stack([guess.labels for guess in guesses])
        targets = one_hot(labels, problems.model.classes)
        start = torch.stack([guess.images for guess in guesses])
        in_frequencies = self.optimizer.in_frequencies
        candidates = _Candidates(problems, start, in_frequencies, targets, None).to(device)
        minimum = self._minimize(candidates, candidates.start_points())
        return _solution(minimum, candidates.problems, candidates, 0).to("cpu")

    def _minimize(self, candidates: "_Candidates", points: Tensor) -> Minimum:
        """Minimise the loss; that of patches by bounds that are quadratic in the images."""
        problems = candidates.problems
        if not self.loss.patches:
            return self.optimizer.minimize(_objective(self.loss, problems, candidates), points)
        everyone = torch.arange(len(points), device=points.device)
        spent = torch.zeros_like(everyone)
        for _ in range(_ASSIGNMENTS):
            components = patches.assign(candidates.split(points, everyone)[0])
            bound = _objective(self.loss, problems, candidates, components=components)
            minimum = _BOUNDED.minimize(bound, points)
            points, spent = minimum.points, spent + minimum.evaluations
        return replace(minimum, evaluations=spent)

    def within(self, iterations: int) -> "Matching":
        """Return this attack with no more than ``iterations``; for a short way from a guess."""
        return replace(self, optimizer=self.optimizer.within(iterations))

    def for_noise(self) -> "Matching":
        """Return this attack with a weight of the prior to start from where payloads are noisy."""
        if self.loss.objective != "cell":
            return self
        return self._weighted(_WEIGHT_FOR_NOISE)

    def for_fine(self) -> "Matching":
        """Return this attack with the least weight, to start from where payloads are fine."""
        return self._weighted(min(self.loss.tv, _WEIGHTS[0]))

    def with_patches(self, noisy: bool) -> "Matching":
        """Return this attack with the prior of natural patches in place of total variation."""
        return replace(self, loss=replace(self.loss, tv=0.0, patches=_PATCH_WEIGHTS[noisy]))

    @property
    def strength(self) -> float:
        """How strong the prior is, among searches whose weight is tuned; else not a number."""
        if self.prior == "fixed":
            return nan
        return _PATCHES_ARE_STRONGER * self.loss.patches or self.loss.tv

    def reweighted(self, larger: bool) -> "Matching | None":
        """Return this attack with the next larger or smaller weight of the prior, if there is one.

        Two weights a decade, from 1e-5 to 3.
        """
        weight = self.loss.patches or self.loss.tv
        beyond = [w for w in _WEIGHTS if (w > weight if larger else w < weight)]
        if not beyond:
            return None
        other = beyond[0] if larger else beyond[-1]
        if self.loss.patches:
            return replace(self, loss=replace(self.loss, patches=other))
        return self._weighted(other)

    def _weighted(self, tv: float) -> "Matching":
        return replace(self, loss=replace(self.loss, tv=tv))

    def solve(self, problems: Problems, context: StartContext, most: int, device: str) -> Solution:
        """Solve all problems, then those that failed again, ``most`` starts at a time."""
        (best,) = self._attempt(problems, [context], device)
        attempts = context.attempt + 1
        while attempts <= self.restarts and not bool(best.explained.all()):
            failed = (~best.explained).nonzero().squeeze(1)
            further = min(max(1, most // len(failed)), self.restarts + 1 - attempts)
            contexts = [replace(context, attempt=attempts + number) for number in range(further)]
            for again in self._attempt(problems.select(failed), contexts, device):
                best = best.improved(failed, again)
            attempts += further
        return best

    def _attempt(
        self, problems: Problems, contexts: Sequence[StartContext], device: str
    ) -> list[Solution]:
        """Solve all problems once in each context, from starts that are found on the CPU."""
        candidates = self._candidates(problems, contexts).to(device)
        points, problems = candidates.start_points(), candidates.problems
        if self.warmup:
            resized = _objective(self.loss, problems, candidates, resize=True)
            points = LBFGS(self.warmup).minimize(resized, points).points
        minimum = self._minimize(candidates, points)
        solutions = _solution(minimum, problems, candidates, self.warmup).to("cpu")
        return solutions.parts(len(contexts))

    def _candidates(self, problems: Problems, contexts: Sequence[StartContext]) -> "_Candidates":
        """Return candidates for all problems in the first context, then in the next."""
        repeated = problems.select(torch.arange(len(problems)).repeat(len(contexts)))
        start = torch.cat([start_images(self.start, problems, context) for context in contexts])
        in_frequencies = self.optimizer.in_frequencies
        if self.labels == "joint" or find_head(problems.model) is None:
            logits = torch.cat([label_logits(problems, context) for context in contexts])
            return _Candidates(repeated, start, in_frequencies, None, logits)
        targets = one_hot(recover_labels(problems, contexts[0].public), problems.model.classes)
        return _Candidates(
            repeated, start, in_frequencies, targets.repeat(len(contexts), 1, 1), None
        )


def _more_than_one_tells(group: ClientGroup) -> bool:
    return len(by_weights(group)) > 1 or varied(group)


@dataclass(frozen=True, eq=False)
class _Candidates:
    """How the points of an optimizer are read as images and targets of the problems.

    A point is the way from the start to the images, which keeps all digits of a short one. If the
    labels are not known, the free label logits follow it.
    """

    problems: Problems
    start: Tensor  # (B, n, C, H, W)
    in_frequencies: bool  # whether the way is in frequencies, else in pixels
    targets: Tensor | None  # (B, n, classes) known one-hot labels
    logits: Tensor | None  # (B, n, classes) where free labels start

    def to(self, device: str) -> "_Candidates":
        targets, logits = (None if t is None else t.to(device) for t in (self.targets, self.logits))
        problems, start = self.problems.to(device), self.start.to(device)
        return _Candidates(problems, start, self.in_frequencies, targets, logits)

    def start_points(self) -> Tensor:
        """Return the points that stand for the start, ``(B, D)``."""
        parts = [torch.zeros_like(self.start).flatten(1)]
        if self.logits is not None:
            parts.append(self.logits.flatten(1))
        return torch.cat(parts, dim=1)

    def split(self, points: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
        """Return images ``(b, n, C, H, W)`` and targets ``(b, n, classes)``."""
        shape = self.problems.image_shape
        pixels = prod(shape)
        way = points[:, :pixels].reshape(-1, *shape)
        images = self.start[index] + (to_pixels(way) if self.in_frequencies else way)
        if self.targets is not None:
            return images, self.targets[index]
        free = points[:, pixels:].reshape(-1, shape[0], self.problems.model.classes)
        return images, free.softmax(dim=-1)


def _objective(
    loss: AttackLoss,
    problems: Problems,
    candidates: _Candidates,
    *,
    resize: bool = False,
    components: Tensor | None = None,
) -> Objective:
    """Return what the optimizer minimises: losses and gradients of points."""
    # The unfinished problems and their cells, selected again only when one is finished.
    left, cells = problems, _floored_cells(problems, loss)
    on_floored = replace(loss, floor=0.0)

    def evaluate(points: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
        nonlocal left, cells
        if len(index) != len(left):
            left = problems.select(index)
            cells = _floored_cells(left, loss)
        points = points.detach().requires_grad_()
        images, targets = candidates.split(points, index)
        losses = on_floored.prior(images, None if components is None else components[index])
        with convolutions_for(images):
            for one, cell in zip(left.rounds, cells, strict=True):
                updates, change = one.reply(images, targets)
                match = on_floored.match(_resized(updates, cell) if resize else updates, cell)
                if one.statistics_cell is not None:
                    match = match + loss.match_statistics(change, one.statistics_cell)
                losses = losses + match / len(cells)
            (gradients,) = torch.autograd.grad(losses.sum(), points)
        return losses.detach(), gradients

    return evaluate


def _floored_cells(problems: Problems, loss: AttackLoss) -> list[Cell]:
    return [floored(one.cell, loss.floor) for one in problems.rounds]


def _resized(updates: Tensor, cell: Cell) -> Tensor:
    """Scale updates ``(b, size)`` to the norm of the decoded one, which most transforms keep."""
    tiny = torch.finfo(updates.dtype).tiny
    size = updates.norm(dim=1, keepdim=True).clamp_min(tiny)
    factor: Tensor = cell.center.norm(dim=1, keepdim=True) / size
    return updates * factor


def _solution(
    minimum: Minimum, problems: Problems, candidates: _Candidates, spent: int
) -> Solution:
    """Return what an optimizer found after ``spent`` evaluations of a warm-up."""
    everyone = torch.arange(len(problems), device=minimum.points.device)
    images, targets = candidates.split(minimum.points, everyone)
    misfits = mean_misfit(problems, images, targets)
    evaluations = minimum.evaluations + spent
    return Solution(images, targets.argmax(dim=-1), minimum.losses, misfits, evaluations)
