"""Strategies: averaging of quantized updates, and the honest-but-curious wrapper around it."""

import logging
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy
from torch import Tensor

from fl_sim.messages import arrays_of, examples_of, read_payload, train_instruction, weights_of
from fl_sim.observations import Observation, save_observations
from fl_sim.quantizers import parse_quantizer
from fl_sim.quantizers.payload import Payload, PayloadError
from fl_sim.seeding import Purpose, numpy_rng
from fl_sim.settings import TrainingSettings
from fl_sim.trials import Trial
from fl_sim.updates import flat_model

log = logging.getLogger("fl_sim.server")


class RoundFailedError(RuntimeError):
    """A round in which no client sent an update that could be used."""


@dataclass(frozen=True)
class Received:
    """One client's usable reply."""

    partition: int
    payload: Payload
    examples: int


def server_optimizer(weights: Tensor, settings: TrainingSettings) -> torch.optim.Optimizer:
    """Return the optimizer that applies mean updates to ``weights`` in place.

    A mean ``delta`` is a step already taken by the clients, so with learning rate 1 and no
    momentum this is FedAvg; a mean ``gradient`` makes it FedSGD (McMahan et al. 2017); with
    momentum or Adam it is the FedOpt family (Reddi et al. 2021).
    """
    if settings.server_optimizer == "adam":
        return torch.optim.Adam([weights], lr=settings.server_learning_rate)
    return torch.optim.SGD(
        [weights], lr=settings.server_learning_rate, momentum=settings.server_momentum
    )


class QuantizedAveraging(Strategy):
    """FedSGD and FedAvg on packed payloads: decode, average in partition order, step.

    Parameters
    ----------
    trial : Trial
        Quantizer, seed, model and work of this trial.
    settings : TrainingSettings
        Sampling and the server optimizer.
    nodes : Mapping[int, int]
        Node id of each partition.
    weights : Tensor
        ``(size,)`` initial weights; stepped in place.
    """

    def __init__(
        self, trial: Trial, settings: TrainingSettings, nodes: Mapping[int, int], weights: Tensor
    ) -> None:
        self.trial = trial
        self.settings = settings
        self.nodes = nodes
        self.weights = weights
        self.partitions = {node: partition for partition, node in nodes.items()}
        self.quantizer = parse_quantizer(trial.quantizer)
        self.layout = flat_model(trial.model_spec).layout
        self.optimizer = server_optimizer(weights, settings)

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Ask this round's sample of partitions, drawn by seed, for their updates."""
        del grid
        config["server-round"] = server_round
        return [
            train_instruction(self.nodes[partition], arrays, config)
            for partition in self.sample(server_round)
        ]

    def sample(self, server_round: int) -> list[int]:
        """Return the partitions of a round, ascending."""
        count = math.ceil(self.settings.fraction_train * len(self.nodes))
        rng = numpy_rng(self.trial.seed, Purpose.CLIENT_SAMPLING, server_round)
        return sorted(int(p) for p in rng.choice(len(self.nodes), size=count, replace=False))

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord, MetricRecord]:
        """Average what arrived and step the weights; raise if nothing usable arrived.

        Raises
        ------
        RoundFailedError
            If no reply of the round could be used.
        """
        expected = len(self.sample(server_round))
        total = torch.zeros(self.layout.size, dtype=torch.float64)
        used: list[Received] = []
        for reply in sorted(replies, key=self._partition):  # sums must not depend on arrival
            try:
                received = self._open(reply)
                total.add_(self._decode(received.payload), alpha=received.examples)
                used.append(received)
            except PayloadError as error:
                self._report(server_round, reply, error)
        if not used:
            raise RoundFailedError(
                f"Round {server_round} of trial {self.trial.name}: "
                f"none of {expected} clients sent a usable update; see the warnings above."
            )
        self.weights.grad = (total / sum(received.examples for received in used)).float()
        self.optimizer.step()
        metrics: dict[str, int | float | list[int] | list[float]] = {
            "uplink-bytes": sum(received.payload.nbytes for received in used),
            "updates": len(used),
            "dropped": expected - len(used),
        }
        return arrays_of(self.weights.detach().clone()), MetricRecord(metrics)

    def _partition(self, reply: Message) -> int:
        return self.partitions.get(reply.metadata.src_node_id, -1)

    def _open(self, reply: Message) -> Received:
        if reply.has_error():
            reason = (reply.error.reason or "it gave no reason").strip()
            raise PayloadError(f"the client failed: {reason}")
        payload = read_payload(reply, self.layout)
        if payload.spec != self.quantizer.spec:
            raise PayloadError(f"it was quantized with {payload.spec!r}, not as agreed")
        return Received(self._partition(reply), payload, examples_of(reply))

    def _decode(self, payload: Payload) -> Tensor:
        vector = self.quantizer.decode(payload).vector
        if not torch.isfinite(vector).all():
            raise PayloadError("it decodes to values that are not finite")
        return vector

    def _report(self, server_round: int, reply: Message, error: PayloadError) -> None:
        log.warning(
            "trial %s, round %d: dropped the reply of partition %d: %s",
            self.trial.name,
            server_round,
            self._partition(reply),
            error,
        )

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Ask nobody: accuracy is measured on the server's test set."""
        del server_round, arrays, config, grid
        return []

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> None:
        """Return nothing: no client evaluates."""
        del server_round, replies

    def summary(self) -> None:
        """Log what this strategy is made of."""
        log.debug("trial %s: %s", self.trial.name, self.settings)


@dataclass
class HonestButCurious(Strategy):
    """A strategy that follows the protocol to the letter, and keeps what it sees.

    It delegates everything to the strategy it wraps. At the observed rounds it keeps the weights
    that were sent and the payloads that came back, and writes them below ``store``.

    Parameters
    ----------
    strategy : Strategy
        The strategy that trains.
    trial : Trial
        What is being trained; part of every observation.
    partitions : Mapping[int, int]
        Partition of each node id.
    store : Path
        Folder of the observations.
    rounds : tuple[int, ...]
        1-based rounds to keep.
    """

    strategy: Strategy
    trial: Trial
    partitions: Mapping[int, int]
    store: Path
    rounds: tuple[int, ...]
    _sent: dict[int, Tensor] = field(default_factory=dict)

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Note the weights that go out, and delegate."""
        if server_round in self.rounds:
            self._sent[server_round] = weights_of(arrays)
        return self.strategy.configure_train(server_round, arrays, config, grid)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Keep the payloads that came back, and delegate."""
        if server_round in self.rounds:
            replies = list(replies)
            self._observe(server_round, replies)
        return self.strategy.aggregate_train(server_round, replies)

    def _observe(self, server_round: int, replies: list[Message]) -> None:
        weights = self._sent.pop(server_round)
        seen = [self._observation(server_round, weights, reply) for reply in replies]
        observations = [observation for observation in seen if observation is not None]
        if observations:
            save_observations(self.store, observations)

    def _observation(
        self, server_round: int, weights: Tensor, reply: Message
    ) -> Observation | None:
        """Return what one reply shows; nothing, if it is one that the wrapped strategy drops."""
        trial = self.trial
        if reply.has_error():
            return None
        try:
            payload = read_payload(reply, flat_model(trial.model_spec).layout)
        except PayloadError:
            return None
        partition = self.partitions[reply.metadata.src_node_id]
        return Observation(
            trial.name, server_round, partition, trial.model_spec, trial.work, weights, payload
        )

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Delegate."""
        return self.strategy.configure_evaluate(server_round, arrays, config, grid)

    def aggregate_evaluate(
        self, server_round: int, replies: Iterable[Message]
    ) -> MetricRecord | None:
        """Delegate."""
        return self.strategy.aggregate_evaluate(server_round, replies)

    def summary(self) -> None:
        """Delegate."""
        self.strategy.summary()
