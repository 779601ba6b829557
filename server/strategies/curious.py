"""The honest-but-curious server: it wraps any strategy and stores what the server sees."""

import logging
from collections.abc import Iterable
from pathlib import Path

import torch
from flwr.app import ArrayRecord, Message, MetricRecord
from flwr.serverapp.strategy import Strategy
from torch import Tensor

from fl_sim.coding.payload import Payload
from fl_sim.exchange.messages import is_flat, unpack_statistics, unpack_weights
from fl_sim.exchange.weight_records import flatten, floats_of, is_statistic
from fl_sim.models import ModelSpec
from fl_sim.observed.observations import save_round
from fl_sim.quantizers import parse_quantizer
from fl_sim.updates.local_update import LocalWork
from server.strategies.dequantize import Dequantize
from server.strategies.reception import Received, find_reception
from server.strategies.wrapper import Wrapper

log = logging.getLogger("fl_sim.server")


class HonestButCurious(Wrapper):
    """Wraps a strategy, follows the protocol, and stores what the server sees.

    It delegates everything to the strategy it wraps. After an observed round it writes the weights
    that were sent and the payloads that were received below ``store``, readable by their owner
    only. `server.audit` attacks them.

    Parameters
    ----------
    strategy : Strategy
        The strategy that trains. If neither it nor any strategy that it wraps reads payloads, it
        is wrapped in `Dequantize`.
    store : Path or str
        Folder of the observations.
    trial : str
        Sub-folder of this training.
    model : ModelSpec, optional
        The architecture, if it is one of this project; else pass the model to `server.audit`.
    work : LocalWork, optional
        What clients do in a round, which is public; it can be passed to `server.audit` instead.
    rounds : iterable of int, optional
        1-based rounds to keep; all if absent.
    plan : str
        Spec of the plan that the server carries out; stored with the observations.

    Examples
    --------
    >>> from flwr.serverapp.strategy import FedAvg
    >>> from server import HonestButCurious
    >>> strategy = HonestButCurious(FedAvg(), store="/absolute/folder/observations")
    """

    def __init__(
        self,
        strategy: Strategy,
        store: Path | str,
        *,
        trial: str = "flower",
        model: ModelSpec | None = None,
        work: LocalWork | None = None,
        rounds: Iterable[int] | None = None,
        plan: str = "curious",
    ) -> None:
        reception = find_reception(strategy)
        if reception is None:
            strategy = Dequantize(strategy)
            reception = strategy.reception
        super().__init__(strategy)
        self.reception = reception
        self.store = Path(store)
        self.trial = trial
        self.model = model
        self.work = work
        self.rounds = None if rounds is None else frozenset(rounds)
        self.plan = plan
        self._warned = False

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Delegate; at an observed round, store what was received."""
        aggregated = super().aggregate_train(server_round, replies)
        if self.reception.received and (self.rounds is None or server_round in self.rounds):
            self._save(server_round)
        return aggregated

    def _save(self, server_round: int) -> None:
        sent, received = self.reception.sent_weights, self.reception.received
        tensors = None if is_flat(sent) else floats_of(sent)

        def flat(arrays: ArrayRecord) -> Tensor:
            return unpack_weights(arrays) if tensors is None else flatten(arrays, tensors)

        # A sum is evaluated at the weights that are common to all its clients.
        alone = {p for p, one in received.items() if len(one.clients) == 1}
        own = {p: flat(one) for p, one in self.reception.own_weights.items() if p in alone}
        payloads = {partition: one.payload for partition, one in received.items()}
        changes = {partition: one.changes for partition, one in received.items()}
        exact = {name for one in changes.values() for name in one.exact}
        self._warn_of_buffers({name for name in exact if not is_statistic(name)})
        facts = (self.store, self.trial, server_round, self.model, self.work)
        told = {p: _statistics_of(one) for p, one in received.items()}
        statistics = {p: payload for p, payload in told.items() if payload is not None}
        sent_statistics = unpack_statistics(sent) if tensors is None and statistics else None
        save_round(
            *facts,
            flat(sent),
            payloads,
            tensors,
            changes,
            self.plan,
            own,
            statistics=statistics,
            sent_statistics=sent_statistics,
            cohorts={p: one.clients for p, one in received.items() if p not in alone},
        )

    def _warn_of_buffers(self, names: set[str]) -> None:
        """Warn once, in the first observed round, that the observations cannot be attacked."""
        if names and not self._warned:
            self._warned = True
            log.warning(
                "%s: training changes buffers (%s) that are no statistics of BatchNorm; what is "
                "observed is kept, but an audit cannot attack such a model",
                *(self.trial, ", ".join(sorted(names))),
                extra={"event": "not attackable", "trial": self.trial},
            )


def find_curious(strategy: Strategy) -> HonestButCurious | None:
    """Return the curious server among a strategy and those that it wraps, if there is one."""
    if isinstance(strategy, HonestButCurious):
        return strategy
    inner = getattr(strategy, "strategy", None)
    return None if inner is None else find_curious(inner)


def _statistics_of(received: Received) -> Payload | None:
    """Return what a client sent of BatchNorm's running statistics, an app's as float32."""
    update = received.changes.statistics
    if update is None:
        return received.statistics
    return parse_quantizer("none").encode(update, torch.Generator())
