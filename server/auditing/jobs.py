"""Attack the stored observations of a run, and store the reconstructions."""

import logging
from collections.abc import Callable, Iterable, Sequence

from attacker.choice import with_evidence
from attacker.presets import build_attack
from fl_sim.data import load_splits
from fl_sim.data.public_images import PublicImages
from fl_sim.engines.tasks import run_tasks
from fl_sim.observed.observations import Observation, load_observations, round_path
from fl_sim.observed.reconstructions import Reconstruction, save_reconstructions
from fl_sim.seeding import Purpose, numpy_rng
from fl_sim.study.plan import AttackJob
from fl_sim.study.settings import AuditSettings, EngineSettings, SettingsError
from fl_sim.study.trials import Trial

log = logging.getLogger("fl_sim.audit")


def check_attacks(audit: AuditSettings) -> None:
    """Raise `SettingsError` if an attack or its tuned spec does not parse."""
    check_specs("attacks", audit.attacks)
    check_specs("tuned", (spec for specs in audit.tuned.values() for spec in specs.values()))


def check_specs(setting: str, specs: Iterable[str]) -> None:
    """Raise `SettingsError` about ``setting`` if one of its attacks does not parse."""
    for spec in specs:
        try:
            build_attack(spec)
        except ValueError as error:
            raise SettingsError(setting, spec, str(error)) from error


def run_jobs(
    jobs: Sequence[AttackJob], engine: EngineSettings, done: Callable[[AttackJob], None]
) -> None:
    """Run the unfinished jobs in parallel, and store the reconstructions of each.

    Results do not depend on the number of workers: every job has its own seeds.
    """
    waiting = []
    for job in jobs:
        if job.stands():
            done(job)
        else:
            waiting.append(job)
    for job, made in run_tasks(run_attack, waiting, engine, engine.device):
        save_reconstructions(job.target, made, job.key)
        _log_outcome(job, made)
        done(job)


def _log_outcome(job: AttackJob, made: Sequence[Reconstruction]) -> None:
    """Log that an attack is done, and on how many clients it stalled or diverged."""
    facts = {"trial": job.trial.name, "attack": job.attack, "rounds": job.rounds}
    facts["folder"] = str(job.folder.root)
    log.info("attacked %s", job.target, extra=facts | {"event": "attacked"})
    for status in ("stalled", "diverged"):
        short = [one.partition for one in made if one.status == status]
        if short:
            log.warning(
                *("%s %s on %d of %d clients", job.attack, status, len(short), len(made)),
                extra=facts | {"event": status, "partitions": short, "routine": True},
            )


def run_attack(job: AttackJob) -> list[Reconstruction]:
    """Load the observations of a job and attack them."""
    settings = job.training.settings
    observations = [o for r in job.rounds for o in _observations(job, r)]
    attack = with_evidence(build_attack(job.spec), job.attack)
    if not attack.applies(observations):
        facts = {"event": "does not apply", "routine": True}
        log.warning("%s does not apply to %s", job.attack, job.trial.name, extra=facts)
        return []
    public = _public_images(job.trial) if attack.uses_public else None
    made = attack.reconstruct(
        observations, seed=job.trial.seed, public=public, device=settings.engine.device
    )
    return _one_for_each_batch(made, job.trial)


def _one_for_each_batch(made: Sequence[Reconstruction], trial: Trial) -> list[Reconstruction]:
    """Return one guess for each private batch, in order; the last, if rounds share the batch."""
    found: dict[tuple[int, int], Reconstruction] = {}
    for one in sorted(made, key=lambda one: (one.round, one.partition)):
        found[0 if trial.work.fixed_batch else one.round, one.partition] = one
    return list(found.values())


def _public_images(trial: Trial) -> PublicImages:
    """Load the public images of a data set, without the private ones."""
    public = load_splits(trial.data, trial.seed).public
    return PublicImages(public.pixels(), public.labels)


def _observations(job: AttackJob, server_round: int) -> list[Observation]:
    path = round_path(job.folder.observations, job.trial.name, server_round)
    victims = job.training.settings.audit.victims
    draw = 0 if job.trial.work.fixed_batch else server_round
    return choose_victims(load_observations(path), victims, job.trial.seed, draw)


def choose_victims(
    observations: Sequence[Observation], victims: int, seed: int, draw: int
) -> list[Observation]:
    """Return at most ``victims`` observations, chosen at random by seed.

    The same ``draw`` chooses the same clients, if the same clients were observed.
    """
    if victims >= len(observations):
        return list(observations)
    rng = numpy_rng(seed, Purpose.VICTIMS, draw)
    chosen = rng.choice(len(observations), size=victims, replace=False)
    return [observations[int(index)] for index in sorted(chosen)]
