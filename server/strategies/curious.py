"""The honest-but-curious server: a wrapper around any strategy that keeps what it sees."""

import logging
from collections.abc import Iterable
from pathlib import Path

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy

from fl_sim.coding.payload import Payload
from fl_sim.exchange.weight_records import Changes, floats_of, read_changes
from fl_sim.models import ModelSpec
from fl_sim.observed.observations import save_round
from fl_sim.updates.local_update import LocalWork
from server.strategies.averaging import QuantizedAveraging
from server.strategies.dequantize import Dequantize
from server.strategies.wrapper import Wrapper

log = logging.getLogger("fl_sim.server")


class HonestButCurious(Wrapper):
    """A strategy that follows the protocol to the letter, and keeps what it sees.

    It delegates everything to the strategy it wraps. At the observed rounds it keeps the weights
    that were sent and the payloads that came back, and writes them below ``store``, readable by
    their owner only. `server.audit` attacks them.

    Parameters
    ----------
    strategy : Strategy
        The strategy that trains: one that reads payloads, or any of Flower's, which is wrapped in
        `Dequantize`.
    store : Path or str
        Folder of the observations.
    trial : str
        Sub-folder of this training.
    model : ModelSpec, optional
        The architecture, where it is one of ours; else given to the audit.
    work : LocalWork, optional
        Public facts of what clients do in a round; can be given to the audit as well.
    rounds : iterable of int, optional
        1-based rounds to keep; all if absent.
    plan : str
        Spec of the plan that the server carries out; kept with what is observed.

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
        if not isinstance(strategy, QuantizedAveraging | Dequantize):
            strategy = Dequantize(strategy)
        self.reader = strategy
        super().__init__(strategy)
        self.store = Path(store)
        self.trial = trial
        self.model = model
        self.work = work
        self.rounds = None if rounds is None else frozenset(rounds)
        self.plan = plan
        self._given: dict[int, ArrayRecord] = {}
        self._warned = False

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Note the weights that go out, and delegate."""
        if self._observes(server_round):
            self._given[server_round] = arrays
        return super().configure_train(server_round, arrays, config, grid)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Keep the payloads that came back, and delegate."""
        if self._observes(server_round):
            replies = list(replies)
            self._keep(server_round, replies)
        return super().aggregate_train(server_round, replies)

    def _observes(self, server_round: int) -> bool:
        return self.rounds is None or server_round in self.rounds

    def _keep(self, server_round: int, replies: Iterable[Message]) -> None:
        given = self._given.pop(server_round)
        payloads: dict[int, Payload] = {}
        changes: dict[int, Changes] = {}
        named = isinstance(self.reader, Dequantize)
        for reply in replies:
            try:
                received = self.reader.reception.open(reply)
                self.reader.reception.decode(received.payload)
                changed = read_changes(reply, given) if named else None
            except Exception:  # whatever it is, the strategy that is wrapped reports it
                continue
            if received.partition not in payloads:
                payloads[received.partition] = received.payload
                if changed is not None:
                    changes[received.partition] = changed
        self._warn_of_buffers({name for one in changes.values() for name in one.exact})
        if payloads:
            weights, tensors = self.reader.flat(given), floats_of(given) if named else None
            facts = (self.store, self.trial, server_round, self.model, self.work)
            save_round(*facts, weights, payloads, tensors, changes, self.plan)

    def _warn_of_buffers(self, names: set[str]) -> None:
        """Say once, in the first round observed, that what is kept cannot be attacked."""
        if names and not self._warned:
            self._warned = True
            log.warning(
                "%s: training changes buffers (%s), as those of a BatchNorm layer; what is "
                "observed is kept, but an audit cannot attack such a model",
                *(self.trial, ", ".join(sorted(names))),
                extra={"event": "not attackable", "trial": self.trial},
            )
