"""Lets any Flower strategy average clients that quantize: it sees ordinary replies with weights."""

from collections import Counter
from collections.abc import Iterable
from math import isfinite

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy
from torch import Tensor

from fl_sim.quantizers.payload import PayloadError
from fl_sim.weight_records import flatten, floats_of, read_changes, unpack_weights
from server.reception import ANY_COUNT, Reception
from server.wrapper import Wrapper


class Dequantize(Wrapper):
    """Turns payloads back to weights for the strategy it wraps; see `clients.mods.Quantize`.

    Replies that keep to no agreement are refused and reported (`Reception`). The others are
    handed on in the order of their partitions, so that sums do not depend on arrival.

    Parameters
    ----------
    strategy : Strategy
        Any that averages weights: FedAvg, FedAdam, FedProx, those of differential privacy, ...
    quantizer : str, optional
        The quantizer that was agreed; any of ours if absent.
    examples : range
        Numbers of examples a client may claim.
    partitions : dict[int, int], optional
        Partition of each node id; if absent, the first one that a node claims is its own.
    """

    def __init__(
        self,
        strategy: Strategy,
        *,
        quantizer: str | None = None,
        examples: range = ANY_COUNT,
        partitions: dict[int, int] | None = None,
    ) -> None:
        super().__init__(strategy)
        self.reception = Reception("flower", quantizer, examples, partitions)
        self._given = ArrayRecord()

    def flat(self, arrays: ArrayRecord) -> Tensor:
        """Return all floating-point ``arrays`` as one ``(size,)`` vector."""
        return flatten(arrays, floats_of(arrays))

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Note what goes out to whom, and delegate."""
        self._given = arrays
        self.reception.announce(config, lambda reply: read_changes(reply, arrays).quantized)
        messages = super().configure_train(server_round, arrays, config, grid)
        return self.reception.asking(messages)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Open and decode what came back, and delegate.

        Raises
        ------
        RoundFailedError
            If clients were asked, and no reply could be used.
        """
        opened = list(self.reception.usable(server_round, replies))
        measured = Counter(_metrics(reply) for reply, _ in opened)
        usual = measured.most_common(1)[0][0] if measured else None
        usable = []
        for reply, received in opened:
            with self.reception.refusing(server_round, reply):
                if _metrics(reply) is None or _metrics(reply) != usual:
                    raise PayloadError("its metrics are not those of the others")
                delta = self.reception.decode(received.payload)
                reply.content = unpack_weights(reply, self._given, delta)
                usable.append(reply)
        if self.reception.expected and not usable:
            raise self.reception.failure(server_round)
        return super().aggregate_train(server_round, usable)


def _metrics(reply: Message) -> frozenset[tuple[str, int | None]] | None:
    """Return name and length of a reply's metrics, whose length is None if they are one number.

    They can be averaged only with those that have the same. None unless they are one record of
    finite numbers.
    """
    records = list(reply.content.metric_records.values())
    if len(records) != 1:
        return None
    kinds = {}
    for name, value in records[0].items():
        if not all(map(isfinite, value if isinstance(value, list) else [value])):
            return None
        kinds[name] = len(value) if isinstance(value, list) else None
    return frozenset(kinds.items())
