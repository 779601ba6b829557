"""What was found for a batch of problems, and the reconstructions that are made of it."""

from dataclasses import dataclass, fields
from math import inf

import torch
from torch import Tensor

from attacker.matching.problems import Problems, unexplained
from fl_sim.observed.observations import Observation
from fl_sim.observed.reconstructions import Reconstruction, Status

# A payload counts as explained when the candidate's update lies this close to its cell (root mean
# square), in steps no finer than 1 % of the tensor's rms: an unquantized update is met to 0.1 %.
_EXPLAINED = 0.1**2


@dataclass(frozen=True, eq=False)
class Solution:
    """The best images found so far for every problem of a batch.

    Attributes
    ----------
    images : Tensor
        ``(B, n, C, H, W)``.
    labels : Tensor
        ``(B, n)``.
    losses : Tensor
        ``(B,)`` loss of the attack.
    misfits : Tensor
        ``(B,)`` how far the payloads are from being explained, see `unexplained`.
    evaluations : Tensor
        ``(B,)`` int64, gradient evaluations spent.
    """

    images: Tensor
    labels: Tensor
    losses: Tensor
    misfits: Tensor
    evaluations: Tensor

    def to(self, device: str) -> "Solution":
        """Return the solutions on a device."""
        return Solution(*(getattr(self, field.name).to(device) for field in fields(self)))

    @property
    def explained(self) -> Tensor:
        """Which problems' payloads are explained."""
        return self.losses.isfinite() & (self.misfits <= _EXPLAINED)

    def parts(self, count: int) -> list["Solution"]:
        """Return the solutions in ``count`` equal parts."""
        chunks = [getattr(self, field.name).chunk(count) for field in fields(self)]
        return [Solution(*part) for part in zip(*chunks, strict=True)]

    def improved(self, index: Tensor, attempt: "Solution") -> "Solution":
        """Return this, with the problems at ``index`` replaced where ``attempt`` has less loss.

        A problem that is explained is kept: whether it is attempted again depends on the others of
        its batch, and the result must not.
        """
        spent = self.evaluations.index_add(0, index, attempt.evaluations)
        better = ~self.explained[index] & (attempt.losses < self.losses[index])
        rows = index[better]

        def merge(mine: Tensor, theirs: Tensor) -> Tensor:
            return mine.index_copy(0, rows, theirs[better])

        return Solution(
            merge(self.images, attempt.images),
            merge(self.labels, attempt.labels),
            merge(self.losses, attempt.losses),
            merge(self.misfits, attempt.misfits),
            spent,
        )

    def reconstruction(
        self, row: int, source: Observation, attack: str, objective: str
    ) -> Reconstruction:
        """Return the reconstruction of one problem.

        Parameters
        ----------
        row : int
            Which problem.
        source : Observation
            What it was made from, the last round of several.
        attack : str
            Name of the attack.
        objective : str
            Spec of the `AttackLoss` that `losses` are of.
        """
        status: Status = "converged" if bool(self.explained[row]) else "stalled"
        if not bool(self.losses[row].isfinite()):
            status = "diverged"
        return Reconstruction(
            source.trial,
            source.round,
            source.partition,
            attack,
            self.images[row],
            self.labels[row],
            float(self.losses[row]),
            status,
            objective,
            int(self.evaluations[row]),
        )


def mean_misfit(problems: Problems, images: Tensor, targets: Tensor) -> Tensor:
    """Return how far candidates are from explaining all rounds of their problems, ``(B,)``.

    Batch statistics that a reply tells must be explained too, whatever the labels.
    """
    each = []
    for one in problems.rounds:
        update, change = one.reply(images, targets)
        misfit = unexplained(update, one.cell)
        if one.statistics_cell is not None:
            misfit = torch.maximum(misfit, unexplained(change, one.statistics_cell))
        each.append(misfit)
    return torch.stack(each).mean(dim=0)


def failed_reconstruction(source: Observation, attack: str, objective: str) -> Reconstruction:
    """Return the grey images that stand for an attack that raised."""
    return Reconstruction(
        source.trial,
        source.round,
        source.partition,
        attack,
        torch.full((source.work.images, *source.model.shape), 0.5),
        torch.zeros(source.work.images, dtype=torch.int64),
        inf,
        "diverged",
        objective,
        0,
    )
