"""Attacks that search for images whose update matches the payload."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from math import nan
from typing import Literal

import torch
from torch import Tensor

from attacker.attack import Progress
from attacker.batches import Batches
from attacker.matching.candidates import Candidates, Nearby, objective
from attacker.matching.labels import LabelStrategy, recover_labels
from attacker.matching.optimizers import LBFGS, Minimum, Optimizer
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
from fl_sim.data.public_images import PublicImages
from fl_sim.observed import patches
from fl_sim.observed.attack_loss import AttackLoss
from fl_sim.observed.observations import Observation
from fl_sim.observed.reconstructions import Reconstruction
from fl_sim.specs import NOT_A_PARAMETER, not_negative, positive
from fl_sim.updates.layers import find_head
from fl_sim.updates.local_update import one_hot

_WEIGHTS = tuple(float(f"{digit}e{power}") for power in range(-5, 1) for digit in (1, 3))
_WEIGHT_FOR_NOISE = 0.1  # likelihoods are in nats; distances from a cell are far smaller
_PATCH_WEIGHTS = 1e-5, 0.01  # to start from, for cells and for noise
_PATCHES_ARE_STRONGER = 1e6  # than any total variation
_PASSES = 4  # times that what depends on the images found so far is set anew
_BOUNDED = LBFGS(iterations=80, progress=1e-4)  # from one pass to the next


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
    epochs : "alike" or "apart"
        Where clients shuffle: whether every epoch is taken to use the images in the same order, or
        each has images of its own, of which the mean is returned: the order of the images does not
        matter then (Dimitrov et al. 2022, arXiv 2206.12395).
    group : int
        Starts of each problem that are searched from together, of which the least loss counts (Yin
        et al. 2021, arXiv 2104.07586).
    consensus : float
        Weight of the mean squared distance of the pixels to the mean of what a group found. It
        counts once each start was searched from alone.
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
    epochs: Literal["alike", "apart"] = "alike"
    group: int = 1
    consensus: float = 0.0
    batch: int = 64

    def __post_init__(self) -> None:
        for name in ("warmup", "restarts", "consensus"):
            not_negative(name, getattr(self, name))
        for name in ("group", "batch"):
            positive(name, getattr(self, name))

    def applies(self, observations: Sequence[Observation]) -> bool:
        """Tell whether the attack can be run on these observations."""
        if self.grouping != "single" and not all(o.work.fixed_batch for o in observations):
            return False
        if self.grouping == "joint" and not all(map(repeats_images, observations)):
            return False
        if self.epochs == "apart" and not all(o.work.reorders for o in observations):
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
        batches = self._batches(observations, device)

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
        batches = self._batches(observations, device)

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
        candidates = Candidates(problems, start, in_frequencies, targets, None)
        candidates = candidates.repeated(self._epochs(problems)).to(device)
        minimum = self._minimize(candidates, candidates.start_points())
        return _solution(minimum, candidates.problems, candidates, 0).to("cpu")

    def _minimize(self, candidates: Candidates, points: Tensor) -> Minimum:
        """Minimise the loss; what depends on the images found so far is set anew several times.

        These are the components of patches, whose loss is bounded by one that is quadratic in the
        images, and what all guesses at an image agree on.
        """
        problems, spent = candidates.problems, torch.zeros_like(points[:, 0]).long()
        drawn_together = self.consensus > 0 and candidates.starts > 1
        if not self.loss.patches:
            minimum = self.optimizer.minimize(objective(self.loss, problems, candidates), points)
            if not drawn_together:
                return minimum
            points, spent = minimum.points, minimum.evaluations
        for _ in range(_PASSES):
            nearby = Nearby.of(candidates, points, bool(self.loss.patches), drawn_together)
            bound = objective(self.loss, problems, candidates, nearby=nearby, draw=self.consensus)
            minimum = _BOUNDED.minimize(bound, points)
            points, spent = minimum.points, spent + minimum.evaluations
        return replace(minimum, evaluations=spent)

    def _batches(self, observations: Sequence[Observation], device: str) -> Batches:
        """Return how problems are split; several guesses at each image take as much memory."""
        epochs = observations[0].work.epochs if self.epochs == "apart" and observations else 1
        return Batches(max(1, self.batch // (self.group * epochs)), device)

    def _epochs(self, problems: Problems) -> int:
        """Return how many guesses at each image a point holds."""
        return problems.work.epochs if self.epochs == "apart" else 1

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
        contexts = [replace(context, attempt=context.attempt + k) for k in range(self.group)]
        best, *others = self._attempt(problems, contexts, device)
        for other in others:
            best = best.improved(torch.arange(len(problems)), other)
        attempts = context.attempt + self.group
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
            resized = objective(self.loss, problems, candidates, resize=True)
            points = LBFGS(self.warmup).minimize(resized, points).points
        minimum = self._minimize(candidates, points)
        solutions = _solution(minimum, problems, candidates, self.warmup).to("cpu")
        return solutions.parts(len(contexts))

    def _candidates(self, problems: Problems, contexts: Sequence[StartContext]) -> Candidates:
        """Return candidates for all problems in the first context, then in the next."""
        repeated = problems.select(torch.arange(len(problems)).repeat(len(contexts)))
        start = torch.cat([start_images(self.start, problems, context) for context in contexts])
        targets = logits = None
        if self.labels == "joint" or find_head(problems.model) is None:
            logits = torch.cat([label_logits(problems, context) for context in contexts])
        else:
            found = recover_labels(problems, contexts[0].public)
            targets = one_hot(found, problems.model.classes).repeat(len(contexts), 1, 1)
        made = Candidates(
            repeated, start, self.optimizer.in_frequencies, targets, logits, len(contexts)
        )
        return made.repeated(self._epochs(problems))


def _more_than_one_tells(group: ClientGroup) -> bool:
    return len(by_weights(group)) > 1 or varied(group)


def _solution(minimum: Minimum, problems: Problems, candidates: Candidates, spent: int) -> Solution:
    """Return what an optimizer found after ``spent`` evaluations of a warm-up."""
    images, targets = candidates.merged(minimum.points)
    misfits = mean_misfit(problems, images, targets)
    evaluations = minimum.evaluations + spent
    return Solution(images, targets.argmax(dim=-1), minimum.losses, misfits, evaluations)
