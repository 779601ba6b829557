"""A study from the server's side: check it, train its trials on an engine, attack what was seen."""

from clients.app import app as client_app
from fl_sim.engines import run_apps
from fl_sim.progress import progress_bar
from fl_sim.runs import RunFolder
from fl_sim.settings import Settings
from fl_sim.trials import Trial, trials_of
from server.app import build_server_app, finished_history, write_history
from server.audit import AttackJob, audit_jobs, check_attacks, run_jobs


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
    """Train the trials that are not finished; start the engine only if there are any."""
    trials = trials_of(settings)
    if all(finished_history(folder, trial, settings) is not None for trial in trials):
        write_history(settings, folder)
        return
    with progress_bar("Training", len(trials) * settings.training.rounds) as advance:

        def on_rounds(trial: Trial, rounds: int) -> None:
            advance(rounds, trial.name)

        server_app = build_server_app(settings, folder, on_rounds)
        run_apps(server_app, client_app, settings.data.clients, settings.engine)


def attack(settings: Settings, folder: RunFolder) -> None:
    """Run the attacks that are not finished on what the trials' server observed."""
    jobs = audit_jobs(settings, folder)
    with progress_bar("Attacking", len(jobs)) as advance:

        def done(job: AttackJob) -> None:
            advance(1, f"{job.attack} on {job.trial.name}, round {job.rounds[-1]}")

        run_jobs(jobs, settings.engine.workers, done)
