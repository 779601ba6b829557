"""The strategy of a study: it averages quantized updates."""

import logging
import math
from collections.abc import Iterable, Mapping

import torch
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy
from torch import Tensor

from fl_sim.exchange.messages import pack_weights, train_instruction
from fl_sim.exchange.weight_records import Changes
from fl_sim.quantizers import parse_quantizer
from fl_sim.seeding import Purpose, numpy_rng
from fl_sim.study.settings import TrainingSettings
from fl_sim.study.trials import Trial
from fl_sim.updates.local_update import flat_model
from server.strategies.reception import Received, Reception

log = logging.getLogger("fl_sim.server")


def server_optimizer(weights: Tensor, settings: TrainingSettings) -> torch.optim.Optimizer:
    """Return the optimizer that applies mean updates to ``weights`` in place.

    With learning rate 1 and no momentum, mean ``delta`` updates give FedAvg and mean ``gradient``
    updates FedSGD (McMahan et al. 2017); momentum or Adam give FedOpt (Reddi et al. 2021).
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
        Sampling, the server optimizer, and in which rounds the server plants. If it does so in
        some rounds alone, updates of these are not applied.
    nodes : Mapping[int, int]
        Node id of each partition.
    weights : Tensor
        ``(size,)`` initial weights; stepped in place.
    statistics : Tensor, optional
        Initial running statistics of BatchNorm layers; clients' changes of them are averaged. By
        default those that the model is built with.
    """

    def __init__(
        self,
        trial: Trial,
        settings: TrainingSettings,
        nodes: Mapping[int, int],
        weights: Tensor,
        statistics: Tensor | None = None,
    ) -> None:
        self.trial = trial
        self.settings = settings
        self.nodes = nodes
        self.weights = weights
        agreed = range(trial.work.images, trial.work.images + 1)
        partitions = {node: partition for partition, node in nodes.items()}
        self.model = flat_model(trial.model_spec)
        self.statistics = self.model.initial_statistics if statistics is None else statistics
        alone = trial.aggregation is None
        self.reception = Reception(
            trial.name,
            trial.quantizer if alone else None,  # the server's own grid makes a sum
            agreed if alone else None,
            partitions,
            statistics=self.model.statistics,
            statistics_quantizer=trial.statistics_quantizer,
        )
        self.layout = self.model.layout
        self.optimizer = server_optimizer(weights, settings)

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Ask the partitions of this round, sampled by seed, for their updates."""
        del grid
        config["server-round"] = server_round
        whole = Changes(self.layout, {}, ())
        self.reception.announce(config, arrays, lambda _: whole)
        return self.reception.note_asked(
            train_instruction(self.nodes[partition], arrays, config)
            for partition in self.sample(server_round)
        )

    def sample(self, server_round: int) -> list[int]:
        """Return the sampled partitions of a round, in ascending order."""
        count = math.ceil(self.settings.fraction_train * len(self.nodes))
        rng = numpy_rng(self.trial.seed, Purpose.CLIENT_SAMPLING, server_round)
        return sorted(int(p) for p in rng.choice(len(self.nodes), size=count, replace=False))

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord, MetricRecord]:
        """Average the usable updates and step the weights.

        Raises
        ------
        RoundFailedError
            If no reply of the round could be used.
        """
        total = torch.zeros(self.layout.size, dtype=torch.float64)
        for _, received, update in self.reception.usable(server_round, replies):
            total.add_(update.vector, alpha=received.weight)
        used = self.reception.received.values()
        if not used:
            raise self.reception.failure(server_round)
        if not self._discards(server_round):
            self.weights.grad = (total / sum(received.weight for received in used)).float()
            self.optimizer.step()
            self._move_statistics(used)
        metrics: dict[str, int | float | list[int] | list[float]] = {
            "uplink-bytes": sum(received.nbytes for received in used),
            "updates": (updates := sum(len(received.clients) for received in used)),
            "dropped": self.reception.expected - updates,
        }
        weights = self.weights.detach().clone()
        return pack_weights(weights, self.statistics), MetricRecord(metrics)

    def _discards(self, server_round: int) -> bool:
        every = self.settings.plant_every
        return every > 1 and self.trial.plants_in(server_round, every)

    def _move_statistics(self, used: Iterable[Received]) -> None:
        """Average the running statistics, in the order of partitions."""
        quantizer = parse_quantizer(self.trial.statistics_quantizer)
        total, weight = torch.zeros(len(self.statistics), dtype=torch.float64), 0.0
        for received in used:
            if received.statistics is not None:
                change = quantizer.decode(received.statistics).vector
                total.add_(change, alpha=received.weight)
                weight += received.weight
        if weight:
            moved = (self.statistics - total / weight).float()
            self.statistics = self.model.usable_statistics(moved)

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Ask no client: the server measures accuracy on its test set."""
        del server_round, arrays, config, grid
        return []

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> None:
        """Return nothing: no client evaluates."""
        del server_round, replies

    def summary(self) -> None:
        """Log the settings."""
        log.debug("trial %s: %s", self.trial.name, self.settings)
