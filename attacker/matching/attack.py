"""An attack: objective x prior x label strategy x start x optimizer x restarts."""

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, replace
from math import inf, prod

import torch
from torch import Tensor

from attacker.attack import Progress
from attacker.matching.labels import LabelStrategy, recover_labels
from attacker.matching.layers import find_head
from attacker.matching.optimizers import LBFGS, Minimum, Objective, Optimizer
from attacker.matching.problems import (
    Bundle,
    Problems,
    Rounds,
    alike,
    bundles,
    by_weights,
    repeats_images,
    unexplained,
    varied,
)
from attacker.matching.starts import STARTS, Seed, StartName, label_logits, start_images
from fl_sim.coding.cell import Cell
from fl_sim.data.public_images import PublicImages
from fl_sim.observed.attack_loss import AttackLoss, floored
from fl_sim.observed.observations import Observation
from fl_sim.observed.reconstructions import Reconstruction, Status
from fl_sim.specs import NOT_A_PARAMETER, not_negative, positive
from fl_sim.updates.local_update import convolutions_for, one_hot

# A payload counts as explained when the candidate's update lies this close to its cell (root mean
# square), in steps no finer than 1 % of the tensor's rms: an unquantized update is met to 0.1 %.
_EXPLAINED = 0.1**2

# Bytes one batch may take on a CPU; about so many copies of an update and of pairs of points
# live at once.
_BUDGET, _COPIES, _PAIRS = 2 * 2**30, 24, 10

_GPU_BATCHES = 16  # batches of a CPU that are one on a GPU, which has hardly begun with one of them


@dataclass(frozen=True)
class Matching:
    """An attack that searches images whose update matches the payload.

    Attributes
    ----------
    name : str
        Name of the preset it was built from.
    loss : AttackLoss
        What is minimised: objective and priors.
    labels : {"joint", "analytic"}
        Labels are optimised with the images, or read from the head's gradient first; where no
        layer's output is the logits they cannot be read, and are optimised.
    start : str
        A key of `attacker.matching.starts.STARTS`.
    optimizer : Optimizer
        Minimises all problems of a batch at once.
    warmup : int
        Evaluations of L-BFGS before the optimizer starts, on the same loss but with every
        candidate update rescaled to the size of the one observed: at trained weights that of a
        well-classified image is a thousand times smaller than that of the start.
    restarts : int
        Most further starts for a problem whose payload is not yet explained.
    rounds : "single", "averaged" or "joint"
        Whether each payload is a problem; or a client's payloads for the same weights are one: the
        same update, rounded anew each time; or all payloads of a client that uses the same images
        in every round are one, whose loss is the mean over the weights it was given.
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
    rounds: Rounds = "single"
    batch: int = 64

    def __post_init__(self) -> None:
        not_negative("warmup", self.warmup)
        not_negative("restarts", self.restarts)
        positive("batch", self.batch)

    def applies(self, observations: Sequence[Observation]) -> bool:
        """Tell whether the attack can be run on these observations."""
        if self.rounds != "single" and not all(o.work.fixed_batch for o in observations):
            return False
        if self.rounds == "joint" and not all(map(repeats_images, observations)):
            return False
        sources = bundles(observations, self.rounds)
        if self.rounds != "single" and not any(map(_more_than_one_tells, sources)):
            return False
        return all(STARTS[self.start].applies(o) for o in observations)

    @property
    def needs_public(self) -> bool:
        """Whether the attack needs public images."""
        return STARTS[self.start].needs_public

    @property
    def uses_public(self) -> bool:
        """Whether public images make a difference."""
        return self.needs_public

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
        sources = bundles(observations, self.rounds)
        found: dict[int, Reconstruction] = {}
        start = Seed(seed, 0, public)
        for members in self._batches(sources, device):
            chosen = [sources[index] for index in members]
            for index, one in zip(members, self._solve(chosen, start, device), strict=True):
                found[index] = one
            if progress is not None:
                progress(len(found), len(sources))
        return [found[index] for index in range(len(sources))]

    def _batches(self, sources: Sequence[Bundle], device: str) -> Iterator[list[int]]:
        for members in alike(sources):
            size = self._most(sources[members[0]], device)
            for first in range(0, len(members), size):
                yield members[first : first + size]

    def _solve(self, sources: Sequence[Bundle], seed: Seed, device: str) -> list[Reconstruction]:
        """Solve one batch; should it fail as a whole, each of its problems on its own."""
        try:
            with _full_precision():
                return self._attempt_all(sources, seed, device)
        except (RuntimeError, ValueError, ArithmeticError) as error:
            if len(sources) > 1:
                return [r for one in sources for r in self._solve([one], seed, device)]
            warnings.warn(f"Attack {self.name!r} failed: {error}", RuntimeWarning, stacklevel=2)
            return [_nothing(self, sources[0][-1])]

    def _attempt_all(
        self, sources: Sequence[Bundle], seed: Seed, device: str
    ) -> list[Reconstruction]:
        """Solve all problems, then again those that failed: as often at once as fits a batch."""
        problems = Problems.of(sources)
        (best,) = self._attempt(problems, [seed], device)
        attempts, most = 1, self._most(sources[0], device)
        while attempts <= self.restarts and not bool(best.explained.all()):
            failed = (~best.explained).nonzero().squeeze(1)
            further = min(max(1, most // len(failed)), self.restarts + 1 - attempts)
            seeds = [replace(seed, attempt=attempts + number) for number in range(further)]
            for again in self._attempt(problems.select(failed), seeds, device):
                best = best.improved(failed, again)
            attempts += further
        return [best.reconstruction(self, bundle[-1], row) for row, bundle in enumerate(sources)]

    def _attempt(self, problems: Problems, seeds: Sequence[Seed], device: str) -> list["_Solution"]:
        """Solve all problems once with each seed, from starts that are found on the CPU."""
        candidates = _Candidates.of(self.labels, problems, seeds).to(device)
        images = torch.cat([start_images(self.start, problems, seed) for seed in seeds])
        points, problems = candidates.join(images.to(device)), candidates.problems
        if self.warmup:
            resized = _objective(self.loss, problems, candidates, resize=True)
            points = LBFGS(self.warmup).minimize(resized, points).points
        minimum = self.optimizer.minimize(_objective(self.loss, problems, candidates), points)
        solutions = _Solution.of(minimum, problems, candidates, self.warmup).to("cpu")
        return solutions.parts(len(seeds))

    def _most(self, bundle: Bundle, device: str) -> int:
        """Return how many problems like this one are solved together."""
        batch = self.batch if device == "cpu" else _GPU_BATCHES * self.batch
        return min(batch, _affordable(bundle, device))


@contextmanager
def _full_precision() -> Iterator[None]:
    """Let a GPU's convolutions be float32 to the last bits, and the same every time."""
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False, deterministic=True):
        yield


def _affordable(bundle: Bundle, device: str) -> int:
    """Return how many problems like this one fit the memory budget, at least one."""
    last, rounds = bundle[-1], len(by_weights(bundle))
    pixels = last.work.images * prod(last.model.shape)
    floats = _COPIES * (rounds * last.weights.numel() + _PAIRS * pixels)
    budget = _BUDGET if device == "cpu" else torch.cuda.mem_get_info(device)[0] // 2
    return max(1, budget // (4 * floats))


def _more_than_one_tells(bundle: Bundle) -> bool:
    return len(by_weights(bundle)) > 1 or varied(bundle)


@dataclass(frozen=True, eq=False)
class _Candidates:
    """How the points of an optimizer are read as images and targets of the problems.

    With known labels a point is the images; otherwise the free label logits follow them.
    """

    problems: Problems
    targets: Tensor | None  # (B, n, classes) known one-hot labels
    logits: Tensor | None  # (B, n, classes) where free labels start

    @classmethod
    def of(
        cls, strategy: LabelStrategy, problems: Problems, seeds: Sequence[Seed]
    ) -> "_Candidates":
        """Return candidates for all problems with the first seed, then with the next."""
        repeated = problems.select(torch.arange(len(problems)).repeat(len(seeds)))
        if strategy == "joint" or find_head(problems.model) is None:
            logits = torch.cat([label_logits(problems, seed) for seed in seeds])
            return cls(repeated, None, logits)
        targets = one_hot(recover_labels(problems), problems.model.classes)
        return cls(repeated, targets.repeat(len(seeds), 1, 1), None)

    def to(self, device: str) -> "_Candidates":
        targets, logits = (None if t is None else t.to(device) for t in (self.targets, self.logits))
        return _Candidates(self.problems.to(device), targets, logits)

    def join(self, images: Tensor) -> Tensor:
        parts = [images.flatten(1)]
        if self.logits is not None:
            parts.append(self.logits.flatten(1))
        return torch.cat(parts, dim=1)

    def split(self, points: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
        """Return images ``(b, n, C, H, W)`` and targets ``(b, n, classes)``."""
        shape = self.problems.image_shape
        pixels = prod(shape)
        images = points[:, :pixels].reshape(-1, *shape)
        if self.targets is not None:
            return images, self.targets[index]
        free = points[:, pixels:].reshape(-1, shape[0], self.problems.model.classes)
        return images, free.softmax(dim=-1)


def _objective(
    loss: AttackLoss, problems: Problems, candidates: _Candidates, *, resize: bool = False
) -> Objective:
    """Return what the optimizer minimises: losses and gradients of points."""
    # The problems still in the batch and their cells, made anew only when one has left.
    left, cells = problems, _floored_cells(problems, loss)
    on_floored = replace(loss, floor=0.0)

    def evaluate(points: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
        nonlocal left, cells
        if len(index) != len(left):
            left = problems.select(index)
            cells = _floored_cells(left, loss)
        points = points.detach().requires_grad_()
        images, targets = candidates.split(points, index)
        losses = on_floored.prior(images)
        with convolutions_for(images):
            for one, cell in zip(left.rounds, cells, strict=True):
                updates = one.candidate(images, targets)
                match = on_floored.match(_resized(updates, cell) if resize else updates, cell)
                losses = losses + match / len(cells)
            (gradients,) = torch.autograd.grad(losses.sum(), points)
        return losses.detach(), gradients

    return evaluate


def _floored_cells(problems: Problems, loss: AttackLoss) -> list[Cell]:
    return [floored(one.cell, loss.floor) for one in problems.rounds]


def _resized(updates: Tensor, cell: Cell) -> Tensor:
    """Scale updates ``(b, size)`` to the norm of the decoded one, which nearly all maps keep."""
    tiny = torch.finfo(updates.dtype).tiny
    size = updates.norm(dim=1, keepdim=True).clamp_min(tiny)
    factor: Tensor = cell.center.norm(dim=1, keepdim=True) / size
    return updates * factor


@dataclass(frozen=True, eq=False)
class _Solution:
    """The best found so far for every problem of a batch."""

    images: Tensor  # (B, n, C, H, W)
    labels: Tensor  # (B, n)
    losses: Tensor  # (B,)
    misfits: Tensor  # (B,) by the yardstick of success
    evaluations: Tensor  # (B,)

    @classmethod
    def of(
        cls, minimum: Minimum, problems: Problems, candidates: _Candidates, spent: int
    ) -> "_Solution":
        everyone = torch.arange(len(problems), device=minimum.points.device)
        images, targets = candidates.split(minimum.points, everyone)
        each = [unexplained(one.candidate(images, targets), one.cell) for one in problems.rounds]
        misfits = torch.stack(each).mean(dim=0)
        labels = targets.argmax(dim=-1)
        return cls(images, labels, minimum.losses, misfits, minimum.evaluations + spent)

    def to(self, device: str) -> "_Solution":
        return _Solution(*(getattr(self, field.name).to(device) for field in fields(self)))

    @property
    def explained(self) -> Tensor:
        """Which problems' payloads are explained."""
        return self.losses.isfinite() & (self.misfits <= _EXPLAINED)

    def parts(self, count: int) -> list["_Solution"]:
        """Return the solutions in ``count`` equal parts."""
        chunks = [getattr(self, field.name).chunk(count) for field in fields(self)]
        return [_Solution(*part) for part in zip(*chunks, strict=True)]

    def improved(self, index: Tensor, attempt: "_Solution") -> "_Solution":
        """Return this with the problems at ``index`` replaced where ``attempt`` has less loss.

        One that is explained needs no better: whether it was attempted again is due to the others.
        """
        spent = self.evaluations.index_add(0, index, attempt.evaluations)
        better = ~self.explained[index] & (attempt.losses < self.losses[index])
        rows = index[better]

        def merge(mine: Tensor, theirs: Tensor) -> Tensor:
            return mine.index_copy(0, rows, theirs[better])

        return _Solution(
            merge(self.images, attempt.images),
            merge(self.labels, attempt.labels),
            merge(self.losses, attempt.losses),
            merge(self.misfits, attempt.misfits),
            spent,
        )

    def reconstruction(self, attack: Matching, source: Observation, row: int) -> Reconstruction:
        status: Status = "converged" if bool(self.explained[row]) else "stalled"
        if not bool(self.losses[row].isfinite()):
            status = "diverged"
        return Reconstruction(
            source.trial,
            source.round,
            source.partition,
            attack.name,
            self.images[row],
            self.labels[row],
            float(self.losses[row]),
            status,
            attack.loss.spec,
            int(self.evaluations[row]),
        )


def _nothing(attack: Matching, source: Observation) -> Reconstruction:
    """Return the grey images of an attack that broke down."""
    return Reconstruction(
        source.trial,
        source.round,
        source.partition,
        attack.name,
        torch.full((source.work.images, *source.model.shape), 0.5),
        torch.zeros(source.work.images, dtype=torch.int64),
        inf,
        "diverged",
        attack.loss.spec,
        0,
    )
