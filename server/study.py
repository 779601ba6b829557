"""A study from the server's side: check it, train its trials on an engine, attack what was seen."""

from functools import partial

from clients.app import app as client_app
from fl_sim.engines import run_apps
from fl_sim.progress import Advance, progress_bar
from fl_sim.runs import RunFolder
from fl_sim.settings import Settings
from fl_sim.trials import Trial, trials_of
from server.app import build_server_app, finished_history, write_history
from server.audit import AttackJob, audit_jobs, check_attacks, run_jobs
from server.workers import run_tasks


def check_study(settings: Settings) -> None:
    """Refuse, before anything is written, what only the data or the attacks can refuse.

    Raises
    ------
    SettingsError
        If an attack does not parse, or the data cannot be loaded and dealt as asked.
    """
    check_attacks(settings.audit.attacks)
    for trial in trials_of(settings):
        _ = trial.federation


def train(settings: Settings, folder: RunFolder) -> None:
    """Train the trials that are not finished, then gather ``history.csv``.

    On Ray one server app trains them all, so that the engine starts once. In-process engines start
    in no time: the trials are spread over workers, each with a server app of its own.
    """
    rounds = settings.training.rounds
    waiting = [t for t in trials_of(settings) if finished_history(folder, t, settings) is None]
    with progress_bar("Training", len(trials_of(settings)) * rounds) as advance:
        advance((len(trials_of(settings)) - len(waiting)) * rounds)
        if settings.engine.engine == "local" and len(waiting) > 1 and settings.engine.workers != 1:
            tasks = [(settings.only(trial.quantizer, trial.seed), folder) for trial in waiting]
            for (settings_of_one, _), _ in run_tasks(_train_alone, tasks, settings.engine):
                advance(rounds, settings_of_one.quantizers[0])
        elif waiting:
            on_rounds = partial(_advance, advance)
            server_app = build_server_app(settings, folder, on_rounds)
            run_apps(server_app, client_app, settings.data.clients, settings.engine)
    write_history(settings, folder)


def _advance(advance: Advance, trial: Trial, rounds: int) -> None:
    advance(rounds, trial.name)


def _train_alone(task: tuple[Settings, RunFolder]) -> None:
    settings, folder = task
    server_app = build_server_app(settings, folder, on_rounds=lambda *_: None)
    run_apps(server_app, client_app, settings.data.clients, settings.engine)


def attack(settings: Settings, folder: RunFolder) -> None:
    """Run the attacks that are not finished on what the trials' server observed."""
    jobs = audit_jobs(settings, folder)
    with progress_bar("Attacking", len(jobs)) as advance:

        def done(job: AttackJob) -> None:
            advance(1, f"{job.attack} on {job.trial.name}, round {job.rounds[-1]}")

        run_jobs(jobs, settings.engine, done)
