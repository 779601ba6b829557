"""A study from the server's side: check it, train its trials on an engine, attack what was seen."""

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


def train(study: Study, root: Path) -> None:
    """Train the trials that are not finished, then gather ``history.csv`` of each point.

    All trials of a point are trained in one server app, so that an engine starts once for it.
    """
    total = sum(len(p.settings.combinations) * p.settings.training.rounds for p in study.points)
    with progress_bar("Training", total) as advance:
        for point, folder in zip(study.points, study.folders(root), strict=True):
            _train_point(point.settings, folder, advance)


def _train_point(settings: Settings, folder: RunFolder, advance: Advance) -> None:
    trials = trials_of(settings)
    waiting = [t for t in trials if finished_history(folder, t, settings) is None]
    advance((len(trials) - len(waiting)) * settings.training.rounds)

    def on_round(trial: Trial) -> None:
        advance(1, trial.name)

    if waiting:  # else no engine need start
        server_app = build_server_app(settings, folder, on_round)
        run_apps(server_app, client_app, settings.data.clients, settings.engine)
    write_history(settings, folder)


def attack(study: Study, root: Path) -> None:
    """Run the attacks that are not finished on what the trials' server observed."""
    pairs = zip(study.points, study.folders(root), strict=True)
    jobs = [job for point, folder in pairs for job in audit_jobs(point.settings, folder)]
    with progress_bar("Attacking", len(jobs)) as advance:

        def done(job: AttackJob) -> None:
            advance(1, f"{job.attack} on {job.trial.name}, round {job.rounds[-1]}")

        run_jobs(jobs, study.points[0].settings.engine, done)
