"""What an attack makes of observations, and its store on disk."""

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

Status = Literal["converged", "stalled", "diverged"]


@dataclass(frozen=True, eq=False)
class Reconstruction:
    """One attack's guess at one client's private batch.

    Attributes
    ----------
    trial, round, partition
        Of the observation it was made from (the last one, for attacks over several rounds).
    attack : str
        Name of the attack.
    images : Tensor
        ``(n, C, H, W)`` float32; not clamped, scoring does that.
    labels : Tensor
        ``(n,)`` int64 guessed labels, paired with ``images``.
    loss : float
        The attack's own loss at ``images``; what restarts and the suite choose by.
    status : "converged", "stalled" or "diverged"
        Of the optimizer alone; says nothing about the truth.
    objective : str
        Spec of the `fl_sim.attack_loss.AttackLoss` that was minimised, so that `results` can
        evaluate it at the truth.
    evaluations : int
        Gradient evaluations spent, over all restarts.
    """

    trial: str
    round: int
    partition: int
    attack: str
    images: Tensor
    labels: Tensor
    loss: float
    status: Status
    objective: str
    evaluations: int
