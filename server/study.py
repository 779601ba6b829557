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
    check_attacks(settings.audit)
    for trial in trials_of(settings):
        _ = trial.federation


def train(settings: Settings, folder: RunFolder) -> None:
    """Train the trials that are not finished in one server app, then gather ``history.csv``."""
    trials = trials_of(settings)
    waiting = [t for t in trials if finished_history(folder, t, settings) is None]
    rounds = settings.training.rounds
    with progress_bar("Training", len(trials) * rounds) as advance:
        advance((len(trials) - len(waiting)) * rounds)

        def on_round(trial: Trial) -> None:
            advance(1, trial.name)

        if waiting:  # else no engine need start
            server_app = build_server_app(settings, folder, on_round)
            run_apps(server_app, client_app, settings.data.clients, settings.engine)
    write_history(settings, folder)


def attack(settings: Settings, folder: RunFolder) -> None:
    """Run the attacks that are not finished on what the trials' server observed."""
    jobs = audit_jobs(settings, folder)
    with progress_bar("Attacking", len(jobs)) as advance:

        def done(job: AttackJob) -> None:
            advance(1, f"{job.attack} on {job.trial.name}, round {job.rounds[-1]}")

        run_jobs(jobs, settings.engine, done)
