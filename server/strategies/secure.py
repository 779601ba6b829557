"""The server's side of secure aggregation: a grid that answers a round with one sum."""

import logging
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.common import FitIns, Parameters, parameters_to_ndarrays
from flwr.server import LegacyContext
from flwr.server.strategy import FedAvg
from flwr.server.workflow import SecAggPlusWorkflow
from flwr.serverapp import Grid
from torch import Tensor

from fl_sim.exchange.messages import is_train, pack_reply
from fl_sim.exchange.secure import PROTOCOL, SecAggPlus, unmasked, with_protocol
from fl_sim.quantizers import parse_quantizer
from fl_sim.quantizers.composed.summed import Sum
from fl_sim.study.trials import Trial
from fl_sim.updates.local_update import Update, flat_model
from server.strategies.reception import Cohort, Reception

log = logging.getLogger("fl_sim.server")


class SecureGrid:
    """Passes messages on; those that ask clients to train are answered by the sum of their updates.

    Flower's `SecAggPlusWorkflow` runs on the grid that this one wraps. The strategy gets one reply,
    which holds the mean, and the errors of clients that failed. It never sees an update. A client
    that fails before keys are shared makes the protocol start again without it: Flower cannot
    continue then. One that fails later is left out of the sum. If fewer stay than the plan needs,
    there is no sum, and the round fails.

    Parameters
    ----------
    grid : Grid
        Of the engine.
    trial : Trial
        Says the quantizer, the model and the parameters of the protocol.
    nodes : Mapping[int, int]
        Node id of each partition.
    reception : Reception
        Of the strategy; it is told which clients are behind the reply, and what they sent.
    """

    def __init__(
        self, grid: Grid, trial: Trial, nodes: Mapping[int, int], reception: Reception
    ) -> None:
        assert trial.aggregation is not None
        self._grid = grid
        self._trial = trial
        self._plan = trial.aggregation
        self._partitions = {node: partition for partition, node in nodes.items()}
        self._reception = reception

    def __getattr__(self, name: str) -> Any:
        return getattr(self._grid, name)

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        """Return replies; of a round of training the sum, and errors."""
        messages = list(messages)
        if not messages or not is_train(messages[0]):
            return self._grid.send_and_receive(messages, timeout=timeout)
        return list(self._sum(messages, timeout))

    def _sum(self, messages: list[Message], timeout: float | None) -> Iterator[Message]:
        tasks = {message.metadata.dst_node_id: message.content for message in messages}
        needed = self._plan.needed(len(tasks))
        errors: list[Message] = []
        sent = 0
        while len(tasks) >= needed:
            run = _Run(self._grid, tasks, self._plan, needed, timeout)
            run.complete()
            errors += run.errors
            sent += run.nbytes
            if run.mean is not None:
                yield self._reply(run, sent)
                break
            if not run.early:
                self._fail(len(run.staying), len(messages), needed)
                break
            tasks = {node: tasks[node] for node in run.staying}
        else:
            self._fail(len(tasks), len(messages), needed)
        yield from errors

    def _fail(self, left: int, asked: int, needed: int) -> None:
        log.warning(
            "trial %s: there is no sum: %d of %d clients stayed to the end, and %d are needed",
            *(self._trial.name, left, asked, needed),
            extra={"event": "no sum", "trial": self._trial.name},
        )

    def _reply(self, run: "_Run", sent: int) -> Message:
        """Return the reply of the first client, with the sum in place of masked values."""
        assert run.mean is not None
        cohort = tuple(sorted(self._partitions[node] for node in run.masked))
        (first,) = (r for n, r in run.masked.items() if self._partitions[n] == cohort[0])
        layout = flat_model(self._trial.model_spec).layout
        inner = parse_quantizer(self._trial.quantizer)
        quantizer = Sum(len(cohort), self._plan.step, inner)
        payload = quantizer.encode(Update(run.mean, layout), torch.Generator())
        self._reception.cohorts[cohort[0]] = Cohort(cohort, sent)
        examples = MetricRecord({"num-examples": self._trial.work.images * len(cohort)})
        first.content = RecordDict({"facts": first.content["facts"], "metrics": examples})
        return pack_reply(first, payload)


class _Run:
    """One run of the protocol: the grid of Flower's workflow, and what came of it.

    Attributes
    ----------
    mean : Tensor or None
        ``(size,)`` mean of the updates, if the run was completed.
    masked : dict[int, Message]
        Replies with masked values, by node.
    errors : list of Message
        Replies of clients that failed.
    staying : set of int
        Nodes that replied in the last stage.
    nbytes : int
        What clients sent, in all stages.
    """

    def __init__(
        self,
        grid: Grid,
        tasks: Mapping[int, RecordDict],
        plan: SecAggPlus,
        needed: int,
        timeout: float | None,
    ) -> None:
        self._grid, self._tasks, self._plan = grid, tasks, plan
        self._workflow = SecAggPlusWorkflow(
            num_shares=1.0,  # of all clients: every two of them share a mask
            reconstruction_threshold=needed,
            max_weight=1.0,
            clipping_range=plan.clip,
            quantization_range=plan.levels,
            timeout=timeout,
        )
        self.mean: Tensor | None = None
        self.masked: dict[int, Message] = {}
        self.errors: list[Message] = []
        self.staying = set(tasks)
        self.nbytes = 0

    @property
    def early(self) -> bool:
        """Whether clients failed before keys were shared, which Flower cannot recover from."""
        return not self.masked and len(self.staying) < len(self._tasks)

    def complete(self) -> None:
        """Run the stages until one fails."""
        from flwr.server.workflow.secure_aggregation.secaggplus_workflow import (  # noqa: PLC0415
            WorkflowState,
        )

        state, strategy = WorkflowState(), _Asking(list(self._tasks))
        context = _legacy_context(strategy)
        stages = (
            self._workflow.setup_stage,
            self._workflow.share_keys_stage,
            self._workflow.collect_masked_vectors_stage,
            self._workflow.unmask_stage,
        )
        with _quiet():  # what it says of failures, the line of `SecureGrid` says with numbers
            for stage in stages:
                done = stage(self, context, state)  # type: ignore[arg-type]
                if not done or self.early:
                    return
        if strategy.mean is not None:
            self.mean = unmasked(strategy.mean, self._plan)

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> list[Message]:
        """Pass messages of the workflow on, with the task where values are asked for."""
        messages = [self._with_task(message) for message in messages]
        replies = list(self._grid.send_and_receive(messages, timeout=timeout))
        good = [reply for reply in replies if not reply.has_error()]
        self.errors += [reply for reply in replies if reply.has_error()]
        self.staying = {reply.metadata.src_node_id for reply in good}
        for reply in good:
            record = reply.content[PROTOCOL]
            self.nbytes += record.count_bytes()
            if "masked_params" in record:
                self.masked[reply.metadata.src_node_id] = reply
        return replies

    def _with_task(self, message: Message) -> Message:
        asks = message.content[PROTOCOL]["stage"] == "collect_masked_vectors"
        return with_protocol(message, self._tasks[message.metadata.dst_node_id] if asks else None)


class _Asking(FedAvg):
    """Tells Flower's workflow whom to ask, and keeps the mean that it computes."""

    def __init__(self, nodes: list[int]) -> None:
        super().__init__()
        self.nodes = nodes
        self.mean: np.ndarray | None = None

    def configure_fit(self, *_: object) -> Any:
        """Return the nodes; what they are to do is in the task."""
        nothing = FitIns(Parameters([], ""), {})
        return [(SimpleNamespace(node_id=node), nothing) for node in self.nodes]

    def aggregate_fit(self, server_round: int, results: Any, failures: Any) -> Any:
        """Keep the mean, which is the same in all results."""
        del server_round, failures
        (self.mean,) = parameters_to_ndarrays(results[0][1].parameters)
        return None, {}


@contextmanager
def _quiet() -> Iterator[None]:
    flower = logging.getLogger("flwr")
    level = flower.level
    flower.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        flower.setLevel(level)


def _legacy_context(strategy: FedAvg) -> LegacyContext:
    state = RecordDict({"config": ConfigRecord({"current_round": 1}), "parameters": ArrayRecord()})
    context = Context(run_id=1, node_id=1, node_config={}, state=state, run_config={})
    return LegacyContext(context, strategy=strategy)
