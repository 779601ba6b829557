"""Run a study on the server's side: check it, train its trials, attack the observations."""

import logging
from pathlib import Path

import torch

from clients.app import app as client_app
from fl_sim.engines.grids import run_apps
from fl_sim.engines.interrupts import WorkerLostError
from fl_sim.engines.tasks import run_tasks
from fl_sim.storage.progress import Advance, progress_bar
from fl_sim.study.plan import AttackJob, TrainingJob, training_jobs
from fl_sim.study.runs import RunFolder
from fl_sim.study.settings import Settings, SettingsError
from fl_sim.study.study import Study
from fl_sim.study.trials import Trial
from server.app import build_server_app, check_data, write_history
from server.auditing.jobs import check_attacks, run_jobs

log = logging.getLogger("fl_sim.server")

_ENGINES = 4  # started one after the other, at most, if workers are lost


def check_study(study: Study) -> None:
    """Check what needs the data or the attacks, before anything is written.

    Raises
    ------
    SettingsError
        If an attack does not parse, the data cannot be loaded and partitioned as asked, or there
        is no GPU although one is asked for.
    """
    engine = study.points[0].settings.engine
    if engine.device == "cuda" and engine.engine == "local" and not torch.cuda.is_available():
        raise SettingsError("device", "cuda", "cpu, as torch finds no GPU here")
    for point in study.points:
        check_attacks(point.settings.audit)
        check_data(point.settings)


def train(study: Study, root: Path) -> None:
    """Train the unfinished trials, then write ``history.csv`` of each point.

    On Ray, one server app trains all trials of a point, so that the engine starts once. The
    in-process engine starts at once, so trials are trained in parallel, each on its own engine.
    """
    pairs = list(zip(study.points, study.folders(root), strict=True))
    total = sum(len(p.settings.combinations) * p.settings.training.rounds for p in study.points)
    engine = study.points[0].settings.engine
    waiting = [
        job for point, folder in pairs for job in unfinished_trainings(point.settings, folder)
    ]
    with progress_bar("Training", total) as advance:
        advance(total - sum(job.settings.training.rounds for job in waiting))
        if engine.engine == "local" and engine.workers != 1 and len(waiting) > 1:
            for job, _ in run_tasks(train_alone, waiting, engine):
                advance(job.settings.training.rounds, job.trial.name)
        else:
            for point, folder in pairs:
                if any(job.folder == folder for job in waiting):  # else no engine is needed
                    _train_point(point.settings, folder, advance)
    for point, folder in pairs:
        write_history(point.settings, folder)


def train_alone(job: TrainingJob) -> None:
    """Train one trial on its own in-process engine."""
    only = {"quantizers": (job.trial.quantizer,), "seeds": (job.trial.seed,)}
    settings = job.settings.model_copy(update=only)
    server_app = build_server_app(settings, job.folder, lambda _: None)
    run_apps(server_app, client_app, settings.data.clients, settings.engine)


def _train_point(settings: Settings, folder: RunFolder, advance: Advance) -> None:
    """Train the trials of a point in one server app; start another if its engine loses a worker."""

    def on_round(trial: Trial) -> None:
        advance(1, trial.name)

    for left in reversed(range(_ENGINES)):
        server_app = build_server_app(settings, folder, on_round)
        try:
            run_apps(server_app, client_app, settings.data.clients, settings.engine)
            break
        except WorkerLostError as error:
            if not left:
                raise
            log.warning("%s; the engine starts again to train the remaining trials", error)


def unfinished_trainings(settings: Settings, folder: RunFolder) -> list[TrainingJob]:
    """Return the trainings of a run that are not finished, or no longer stand."""
    return [job for job in training_jobs(settings, folder) if not job.stands()]


def attack(study: Study, root: Path) -> None:
    """Run the unfinished attacks on the observations of finished trials."""
    jobs: list[AttackJob] = []
    for point, folder in zip(study.points, study.folders(root), strict=True):
        trained = [job for job in training_jobs(point.settings, folder) if job.stands()]
        attacks = [job for training in trained for job in training.attacks()]
        order = point.settings.audit.attacks.index  # one attack on all trials, then the next
        jobs += sorted(attacks, key=lambda job: order(job.attack))
    with progress_bar("Attacking", sum(len(job.rounds) for job in jobs)) as advance:

        def done(job: AttackJob) -> None:
            rounds = ", ".join(map(str, job.rounds))
            advance(len(job.rounds), f"{job.attack} on {job.trial.name}, round {rounds}")

        run_jobs(jobs, study.points[0].settings.engine, done)
