"""Train one trial on a Flower grid; the result is its history."""

import logging
import time
from collections.abc import Callable
from math import isfinite, nan
from pathlib import Path
from typing import TypedDict, cast

import torch
from flwr.app import ArrayRecord, MetricRecord
from flwr.serverapp import Grid

from fl_sim.exchange.messages import (
    pack_weights,
    partition_query,
    read_partition,
    train_config,
    unpack_statistics,
    unpack_weights,
)
from fl_sim.models import build_model
from fl_sim.models.weights import load_weights, read_weights
from fl_sim.study.runs import RunFolder
from fl_sim.study.settings import Settings, SettingsError
from fl_sim.study.trials import Trial
from fl_sim.updates.local_update import Layout, flat_model
from server.evaluation import evaluate
from server.strategies.averaging import QuantizedAveraging
from server.strategies.curious import HonestButCurious
from server.strategies.lost_workers import StopOnLostWorker
from server.strategies.planned import Planned
from server.strategies.secure import SecureGrid
from server.strategies.wrapper import Wrapper

log = logging.getLogger("fl_sim.server")

_NODES_TIMEOUT = 120.0  # seconds in which all nodes of an engine must connect


class HistoryRow(TypedDict):
    """One round of one trial; ``uplink_bytes`` counts what clients sent of it.

    ``accuracy`` and ``loss`` are not numbers (NaN) where the model was not tested.
    """

    round: int
    accuracy: float
    loss: float
    uplink_bytes: int
    updates: int
    dropped: int


def find_nodes(grid: Grid, clients: int, timeout: float = _NODES_TIMEOUT) -> dict[int, int]:
    """Wait until ``clients`` nodes have connected; return the node id of each partition.

    Raises
    ------
    TimeoutError
        If fewer nodes connect in time, or two hold the same partition.
    """
    deadline = time.monotonic() + timeout
    node_ids = list(grid.get_node_ids())
    while len(node_ids) < clients and time.monotonic() < deadline:
        time.sleep(0.1)
        node_ids = list(grid.get_node_ids())
    queries = [partition_query(node_id) for node_id in node_ids]
    replies = grid.send_and_receive(queries, timeout=timeout)
    nodes = {
        read_partition(reply): reply.metadata.src_node_id
        for reply in replies
        if reply.has_content()
    }
    if sorted(nodes) != list(range(clients)):
        raise TimeoutError(f"{clients} partitions are needed, but nodes hold {sorted(nodes)}.")
    return nodes


def initial_state(trial: Trial, file: Path | None) -> tuple[torch.Tensor, torch.Tensor]:
    """Return initial weights ``(size,)`` and running statistics of BatchNorm layers.

    They are those of a file, or what the seed of the trial determines. What a server plan adds to
    the model is never in the file.

    Raises
    ------
    SettingsError
        If the file cannot be read, or its tensors are not those of the model.
    """
    module = build_model(trial.model_spec, trial.seed)
    if file is not None:
        try:
            own = module if trial.model_spec.name == trial.model else module.get_submodule("model")
            load_weights(own, read_weights(file))
        except (ValueError, AttributeError) as error:
            raise SettingsError("initial_weights", str(file), str(error)) from error
    statistics = flat_model(trial.model_spec).statistics.flatten(dict(module.named_buffers()))
    return Layout.of(module).flatten(dict(module.named_parameters())).detach(), statistics


def train_trial(
    grid: Grid,
    trial: Trial,
    settings: Settings,
    folder: RunFolder,
    nodes: dict[int, int],
    on_round: Callable[[], None],
) -> list[HistoryRow]:
    """Train one trial, store what the curious server observes, and return its history.

    Row 0 of the history is the untrained model. The model is tested at the setting
    ``evaluate_every``, before training, and at the end.
    """
    weights, statistics = initial_state(trial, settings.initial_weights)
    model = flat_model(trial.model_spec)
    averaging = QuantizedAveraging(trial, settings.training, nodes, weights, statistics)
    strategy: Wrapper = HonestButCurious(
        averaging,
        folder.observations,
        trial=trial.name,
        model=trial.model_spec,
        work=trial.work,
        rounds=settings.observed_rounds,
        plan=trial.plan.spec,
    )
    public = trial.federation.splits.public.pixels()
    given = trial.plan, trial.model_spec, public, settings.training.plant_every
    planned = Planned(strategy, *given, trial.work)
    strategy = planned
    if settings.engine.engine == "ray":
        strategy = StopOnLostWorker(strategy)
    if trial.aggregation is not None:
        grid = cast(Grid, SecureGrid(grid, trial, nodes, averaging.reception))
    test = trial.federation.splits.test

    rounds, every = settings.training.rounds, settings.training.evaluate_every

    def measure(server_round: int, arrays: ArrayRecord) -> MetricRecord | None:
        if server_round:
            on_round()
        if server_round % every and server_round != rounds:
            return None
        sent = unpack_weights(arrays), unpack_statistics(arrays)
        accuracy, loss = evaluate(model, trial.work, *sent, test)
        if not isfinite(loss):
            facts = {"event": "not finite", "trial": trial.name, "round": server_round}
            text = "trial %s, round %d: the test loss is not finite"
            log.warning(text, trial.name, server_round, extra=facts)
        return MetricRecord({"accuracy": accuracy, "loss": loss})

    result = strategy.start(
        grid,
        planned.initial(pack_weights(weights.clone(), statistics)),
        num_rounds=rounds,
        timeout=settings.training.timeout,
        train_config=train_config(trial),
        evaluate_fn=measure,
    )
    measured, received = result.evaluate_metrics_serverapp, result.train_metrics_clientapp
    nothing = MetricRecord()
    return [_row(r, measured.get(r, nothing), received.get(r, nothing)) for r in range(rounds + 1)]


def _row(server_round: int, measured: MetricRecord, received: MetricRecord) -> HistoryRow:
    return HistoryRow(
        round=server_round,
        accuracy=float(measured.get("accuracy", nan)),  # type: ignore[arg-type]
        loss=float(measured.get("loss", nan)),  # type: ignore[arg-type]
        uplink_bytes=int(received.get("uplink-bytes", 0)),  # type: ignore[arg-type]
        updates=int(received.get("updates", 0)),  # type: ignore[arg-type]
        dropped=int(received.get("dropped", 0)),  # type: ignore[arg-type]
    )
