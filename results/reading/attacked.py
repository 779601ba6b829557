"""Reconstructions of a run, with what was attacked and the private images."""

import logging
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from fl_sim.data import private_batch
from fl_sim.observed.observations import Observation, load_observations, round_path
from fl_sim.observed.reconstructions import Reconstruction, load_reconstructions
from fl_sim.study.plan import AttackJob, MadeBy, TrainingJob
from fl_sim.study.trials import Trial
from results.scores.gates import Truth

log = logging.getLogger("fl_sim.results")

PUBLIC_IMAGES = 1000
"""Largest number of public images among which a victim is to be identified."""

_SAME_INPUTS = (MadeBy.THIS_CODE, MadeBy.OTHER_CODE)


class Attacked(NamedTuple):
    """One attack on one observed round of one trial; observations and guesses are paired."""

    trial: Trial
    round: int
    attack: str
    observations: list[Observation]
    guesses: list[Reconstruction]

    @property
    def truth(self) -> Truth:
        """The private batches, in the order of the guesses."""
        batches = [self._private(one.clients) for one in self.observations]
        images, labels = (torch.stack(parts) for parts in zip(*batches, strict=True))
        alone = [one.partition for one in self.observations if not one.cohort]
        drawn = [self.trial.order(client, self.round) for client in alone]
        orders = [order for order in drawn if order is not None]
        return Truth(images, labels, torch.stack(orders) if orders else None)

    def _private(self, clients: Sequence[int]) -> tuple[Tensor, ...]:
        each = [private_images(self.trial, self.round, client) for client in clients]
        return tuple(torch.cat(parts) for parts in zip(*each, strict=True))


def finished_trainings(jobs: Iterable[TrainingJob]) -> list[TrainingJob]:
    """Return the trainings that these settings and data made, with this or other code."""
    return [job for job in jobs if job.made_by() in _SAME_INPUTS]


def finished_attacks(trainings: Iterable[TrainingJob], root: Path) -> Iterator[AttackJob]:
    """Yield the attacks that were run on what the trainings observed; log what is left out."""
    other_code = 0
    for job in (job for training in trainings for job in training.attacks()):
        made_by = job.made_by()
        other_code += made_by is MadeBy.OTHER_CODE
        if made_by in _SAME_INPUTS:
            yield job
        elif made_by is MadeBy.OTHER_INPUTS:
            log.warning("%s: other settings or data made it; left out", job.target)
    if other_code:
        log.warning("%s: other code made %d of the attacks", root, other_code)


def load_attacked(job: AttackJob) -> Iterator[Attacked]:
    """Yield what one attack made, round by round.

    Raises
    ------
    StoreError
        If a file of observations or reconstructions cannot be read.
    """
    guesses, _ = load_reconstructions(job.target)
    for server_round in sorted({guess.round for guess in guesses}):
        own = [guess for guess in guesses if guess.round == server_round]
        seen = {one.partition: one for one in load_round(job.training, server_round)}
        observations = [seen[guess.partition] for guess in own]
        yield Attacked(job.trial, server_round, job.attack, observations, own)


def load_round(training: TrainingJob, server_round: int) -> list[Observation]:
    """Return what the server observed in one round of a training."""
    root = training.folder.observations
    return load_observations(round_path(root, training.trial.name, server_round))


def private_images(trial: Trial, server_round: int, partition: int) -> tuple[Tensor, Tensor]:
    """Return the private images and labels of one client in one round."""
    return private_batch(trial.federation, trial.work, partition, server_round)


def public_images(trial: Trial) -> Tensor:
    """Return the public images ``(m, C, H, W)`` among which a victim is to be identified."""
    return trial.federation.splits.public.pixels(slice(PUBLIC_IMAGES))
