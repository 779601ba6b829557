"""A study from the server's side: check it, train its trials on an engine, attack what was seen."""

from dataclasses import dataclass
from pathlib import Path

from clients.app import app as client_app
from fl_sim.engines import run_apps
from fl_sim.progress import Advance, progress_bar
from fl_sim.runs import RunFolder
from fl_sim.settings import Settings
from fl_sim.study import Study
from fl_sim.trials import Trial, trials_of
from server.app import build_server_app, finished_history, write_history
from server.audit import AttackJob, audit_jobs, check_attacks, run_jobs
from server.workers import run_tasks


def check_study(study: Study) -> None:
    """Refuse, before anything is written, what only the data or the attacks can refuse.

    Raises
    ------
    SettingsError
        If an attack does not parse, or the data cannot be loaded and dealt as asked.
    """
    for point in study.points:
        check_attacks(point.settings.audit)
        for trial in trials_of(point.settings):
            _ = trial.federation


@dataclass(frozen=True)
class TrainingJob:
    """One trial of one point of a study, to be trained on its own."""

    trial: Trial
    settings: Settings
    folder: RunFolder


def train(study: Study, root: Path) -> None:
    """Train the trials that are not finished, then gather ``history.csv`` of each point.

    On Ray all trials of a point are trained in one server app, so that an engine starts once for
    it. The in-process engine takes no time to start: there trials are trained side by side.
    """
    pairs = list(zip(study.points, study.folders(root), strict=True))
    total = sum(len(p.settings.combinations) * p.settings.training.rounds for p in study.points)
    engine = study.points[0].settings.engine
    with progress_bar("Training", total) as advance:
        jobs = [job for point, folder in pairs for job in _jobs(point.settings, folder, advance)]
        if engine.engine == "local" and engine.workers != 1 and len(jobs) > 1:
            for job, _ in run_tasks(train_alone, jobs, engine):
                advance(job.settings.training.rounds, job.trial.name)
        else:
            for point, folder in pairs:
                _train_point(point.settings, folder, advance)
    for point, folder in pairs:
        write_history(point.settings, folder)


def _jobs(settings: Settings, folder: RunFolder, advance: Advance) -> list[TrainingJob]:
    """Return the trials that are not finished; those that are advance the bar."""
    every = [TrainingJob(trial, settings, folder) for trial in trials_of(settings)]
    jobs = [job for job in every if finished_history(folder, job.trial, settings) is None]
    advance((len(every) - len(jobs)) * settings.training.rounds)
    return jobs


def train_alone(job: TrainingJob) -> None:
    """Train one trial on an in-process engine of its own."""
    only = {"quantizers": (job.trial.quantizer,), "seeds": (job.trial.seed,)}
    settings = job.settings.model_copy(update=only)
    server_app = build_server_app(settings, job.folder, lambda _: None)
    run_apps(server_app, client_app, settings.data.clients, settings.engine)


def _train_point(settings: Settings, folder: RunFolder, advance: Advance) -> None:
    def on_round(trial: Trial) -> None:
        advance(1, trial.name)

    if _jobs(settings, folder, lambda *_: None):  # else no engine need start
        server_app = build_server_app(settings, folder, on_round)
        run_apps(server_app, client_app, settings.data.clients, settings.engine)


def attack(study: Study, root: Path) -> None:
    """Run the attacks that are not finished on what the trials' server observed."""
    pairs = zip(study.points, study.folders(root), strict=True)
    jobs = [job for point, folder in pairs for job in audit_jobs(point.settings, folder)]
    with progress_bar("Attacking", len(jobs)) as advance:

        def done(job: AttackJob) -> None:
            advance(1, f"{job.attack} on {job.trial.name}, round {job.rounds[-1]}")

        run_jobs(jobs, study.points[0].settings.engine, done)
