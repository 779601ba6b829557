"""Attack what a run observed, from the store, and store what the attacks reconstruct."""

import logging
import multiprocessing
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from attacker.presets import build_attack
from fl_sim.data import load_splits
from fl_sim.files import StoreError
from fl_sim.observations import Observation, load_observations, round_path
from fl_sim.public_images import PublicImages
from fl_sim.reconstructions import (
    Reconstruction,
    load_reconstructions,
    reconstruction_path,
    save_reconstructions,
)
from fl_sim.runs import RunFolder, attack_key
from fl_sim.seeding import Purpose, numpy_rng
from fl_sim.settings import Settings, SettingsError
from fl_sim.trials import Trial, trials_of

log = logging.getLogger("fl_sim.audit")


@dataclass(frozen=True)
class AttackJob:
    """One attack on rounds of one trial: one round, or all that show the same private batch."""

    trial: Trial
    attack: str
    rounds: tuple[int, ...]
    victims: int
    folder: RunFolder
    key: str

    @property
    def target(self) -> Path:
        """The file the reconstructions go to."""
        root = self.folder.reconstructions
        return reconstruction_path(root, self.trial.name, self.attack, self.rounds[-1])

    def finished(self) -> bool:
        """Return whether the file is there and stands."""
        if not self.target.exists():
            return False
        try:
            return load_reconstructions(self.target)[1] == self.key
        except StoreError as error:
            log.warning("%s; it is made again", error)
            return False


def check_attacks(attacks: Iterable[str]) -> None:
    """Raise `SettingsError` if an attack does not parse."""
    for attack in attacks:
        try:
            build_attack(attack)
        except ValueError as error:
            raise SettingsError("attacks", attack, str(error)) from error


def audit_jobs(settings: Settings, folder: RunFolder) -> list[AttackJob]:
    """Return every attack a study asks for, on every observed round of every trial.

    Rounds are attacked one by one, but together where clients use the same images in each.
    """
    observed = settings.observed_rounds
    groups = [observed] if settings.training.fixed_batch else [(r,) for r in observed]
    return [
        AttackJob(
            trial,
            attack,
            rounds,
            settings.audit.victims,
            folder,
            attack_key(trial, settings, attack),
        )
        for attack in settings.audit.attacks
        for trial in trials_of(settings)
        for rounds in groups
    ]


def run_jobs(jobs: Sequence[AttackJob], workers: int, done: Callable[[AttackJob], None]) -> None:
    """Run the jobs that are not finished, ``workers`` at a time (0: one per core).

    Results do not depend on the number of workers: every job draws from its own seeds.
    """
    waiting = []
    for job in jobs:
        if job.finished():
            done(job)
        else:
            waiting.append(job)
    workers = min(workers or _cores(), len(waiting))
    for job in _run(waiting, workers):
        done(job)


def _run(jobs: Sequence[AttackJob], workers: int) -> Iterator[AttackJob]:
    if workers <= 1:
        for job in jobs:
            run_job(job)
            yield job
        return
    spawn = multiprocessing.get_context("spawn")  # forking a process that used torch may hang
    with ProcessPoolExecutor(workers, mp_context=spawn) as pool:
        futures = {pool.submit(run_job, job): job for job in jobs}
        try:
            for future in as_completed(futures):
                future.result()
                yield futures[future]
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def run_job(job: AttackJob) -> None:
    """Load the observations of a job, attack them, and store the reconstructions."""
    torch.set_num_threads(1)
    observations = [o for r in job.rounds for o in _observations(job, r)]
    attack = build_attack(job.attack)
    made: list[Reconstruction] = []
    if attack.applies(observations):
        public = _public_images(job.trial)
        made = attack.reconstruct(observations, seed=job.trial.seed, public=public)
    else:
        log.warning("attack %s does not apply to trial %s", job.attack, job.trial.name)
    named = [replace(reconstruction, attack=job.attack) for reconstruction in made]
    save_reconstructions(job.target, named, job.key)


def _public_images(trial: Trial) -> PublicImages:
    """Load what anyone can have; the private images of the same data set stay out of reach."""
    public = load_splits(trial.data, trial.seed).public
    return PublicImages(public.pixels(), public.labels)


def _observations(job: AttackJob, server_round: int) -> list[Observation]:
    path = round_path(job.folder.observations, job.trial.name, server_round)
    draw = 0 if job.trial.work.fixed_batch else server_round
    return choose_victims(load_observations(path), job.victims, job.trial.seed, draw)


def choose_victims(
    observations: Sequence[Observation], victims: int, seed: int, draw: int
) -> list[Observation]:
    """Return at most ``victims`` observations, drawn by seed: never by hand, never the best.

    The same ``draw`` chooses the same clients, where the same clients were observed.
    """
    if victims >= len(observations):
        return list(observations)
    rng = numpy_rng(seed, Purpose.VICTIMS, draw)
    chosen = rng.choice(len(observations), size=victims, replace=False)
    return [observations[int(index)] for index in sorted(chosen)]


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
