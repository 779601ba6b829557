"""The Flower server app: trains every trial of a study on one grid."""

import csv
import io
import json
import logging
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from fl_sim.engines.process import set_up_process
from fl_sim.models import build_model, check_fits
from fl_sim.storage.files import write_text
from fl_sim.study.plan import training_jobs
from fl_sim.study.runs import RunFolder
from fl_sim.study.settings import Settings, SettingsError, load_settings
from fl_sim.study.trials import Trial, trials_of
from fl_sim.updates.batch_norm import fewest_values
from fl_sim.updates.local_update import statistics_of_model
from server.strategies.reception import RoundFailedError
from server.training import HistoryRow, find_nodes, initial_state, train_trial

log = logging.getLogger("fl_sim.server")

OnRound = Callable[[Trial], None]
_FLOWER_CONFIG = {"num-server-rounds": "rounds", "learning-rate": "server_learning_rate"}


def build_server_app(settings: Settings, folder: RunFolder, on_round: OnRound) -> ServerApp:
    """Return the app that trains the trials of ``settings`` and writes below ``folder``.

    ``on_round(trial)`` is called after each round of a trial.
    """
    server_app = ServerApp()

    @server_app.main()
    def main(grid: Grid, context: Context) -> None:
        del context
        train_study(grid, settings, folder, on_round)

    return server_app


def train_study(grid: Grid, settings: Settings, folder: RunFolder, on_round: OnRound) -> None:
    """Train the unfinished trials one after the other; if one fails, continue with the next.

    Training a trial again invalidates its earlier attacks and scores.
    """
    set_up_process()
    nodes: dict[int, int] = {}
    for job in training_jobs(settings, folder):
        if job.stands():
            continue
        nodes = nodes or find_nodes(grid, settings.data.clients)
        job.target.unlink(missing_ok=True)
        trial = job.trial
        facts = {"trial": trial.name, "folder": str(folder.root)}
        log.info("training %s", trial.name, extra=facts | {"event": "training"})
        try:
            history = train_trial(grid, trial, settings, folder, nodes, partial(on_round, trial))
        except RoundFailedError as error:
            log.error("%s", error, extra=facts | {"event": "failed"})
            continue
        write_text(job.target, json.dumps({"key": job.key, "history": history}))
        log.info("trained %s", trial.name, extra=facts | {"event": "trained"})


def check_data(settings: Settings) -> None:
    """Raise `SettingsError` if the data of a trial cannot be loaded and partitioned as asked.

    It also raises if the model does not fit the images or the initial weights, or the server's plan
    cannot be carried out on the model.
    """
    for trial in trials_of(settings):
        _ = trial.federation
        _check_channels(trial)
        try:
            check_fits(replace(trial.model_spec, name=trial.model))
        except ValueError as error:
            raise SettingsError("model", trial.model, str(error)) from error
        _check_batch_norm(trial)
        if settings.initial_weights is not None:
            initial_state(trial, settings.initial_weights)
        _check_parts(trial)
        try:
            trial.plan.check(trial.model_spec)
        except ValueError as error:
            raise SettingsError("server", trial.server, str(error)) from error


def _check_channels(trial: Trial) -> None:
    means, channels = trial.work.mean, trial.model_spec.shape[0]
    if len(means) not in (0, 1, channels):
        shown = ",".join(map(str, means))
        raise SettingsError("normalize_mean", shown, f"1 number, or {channels}: one a channel")
    if means and trial.plan.needs_pixels:
        allowed = f"none, as the server {trial.plan.spec} reads pixels from 0 to 1"
        raise SettingsError("normalize_mean", ",".join(map(str, means)), allowed)


def _check_batch_norm(trial: Trial) -> None:
    """Refuse a batch of which a BatchNorm layer would average one value: it has no variance."""
    spec, size = trial.model_spec, trial.work.batch_size
    if fewest_values(build_model(spec), spec.shape, size) == 1:
        allowed = f"2 or more, as a BatchNorm layer of {trial.model!r} needs two values a batch"
        raise SettingsError("batch_size", size, allowed)


def _check_parts(trial: Trial) -> None:
    """Refuse what computes an update from parts of a batch, for a model that mixes its images."""
    if not statistics_of_model(trial.model_spec).size:
        return
    if trial.aggregation is not None:
        allowed = "plain for a model with BatchNorm: its sum is not the update of one batch"
        raise SettingsError("aggregation", trial.aggregated, allowed)
    if trial.work.example_clip:
        allowed = "0 for a model with BatchNorm: no gradient is of one image alone"
        raise SettingsError("example_clip", trial.work.example_clip, allowed)


def write_history(settings: Settings, folder: RunFolder) -> None:
    """Write the histories of all finished trials to ``history.csv``."""
    stream = io.StringIO()
    columns = ["trial", "quantizer", "seed", *HistoryRow.__annotations__]
    writer = csv.DictWriter(stream, columns, lineterminator="\n")
    writer.writeheader()
    for job in training_jobs(settings, folder):
        trial = job.trial
        facts = {"trial": trial.name, "quantizer": trial.quantizer, "seed": trial.seed}
        for row in job.history() or []:
            writer.writerow(facts | row)
    write_text(folder.history_file, stream.getvalue())


app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run a study as the app of ``flwr run``, with settings from the run config.

    ``study`` and ``out`` are absolute paths, since Flower runs a copy of the app. Every other key
    is a setting in kebab-case, e.g. ``batch-size``, or one of Flower's own names. Numbers and
    booleans are parsed as text. An exception marks Flower's run as failed.
    """
    config = {key: str(value) for key, value in context.run_config.items() if value != ""}
    folder = RunFolder(Path(config.pop("out", "runs/flower")))
    try:
        settings = _read_config(config)
    except SettingsError as error:
        log.error("the run config cannot be used: %s", error, extra={"event": "refused"})
        raise
    folder.create(settings)
    train_study(grid, settings, folder, on_round=lambda *_: None)
    write_history(settings, folder)
    failed = [job.trial.name for job in training_jobs(settings, folder) if not job.stands()]
    if failed:
        raise RoundFailedError(f"{len(failed)} trial(s) could not be trained: {', '.join(failed)}")
    print(f"results are in {folder.root.resolve()}")


def _read_config(config: dict[str, str]) -> Settings:
    study = config.pop("study", None)
    overrides = {_FLOWER_CONFIG.get(k, k.replace("-", "_")): v for k, v in config.items()}
    settings = load_settings(Path(study) if study else None, overrides)
    check_data(settings)
    return settings
