"""Lets any Flower strategy average quantized updates: it sees ordinary replies with weights."""

from collections import Counter
from collections.abc import Iterable, Iterator
from math import isfinite

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy

from fl_sim.coding.payload import PayloadError
from fl_sim.exchange.messages import EXAMPLES, weight_of
from fl_sim.exchange.weight_records import read_changes, unpack_changes
from server.strategies.reception import Reception
from server.strategies.wrapper import Wrapper


class Dequantize(Wrapper):
    """Turns payloads into weights for the strategy it wraps; see `clients.mods.Quantize`.

    Replies that violate the agreed quantizer or example count are refused and reported, see
    `Reception`. The others are handed on in the order of their partitions, so that sums do not
    depend on arrival.

    Parameters
    ----------
    strategy : Strategy
        Any that averages weights: FedAvg, FedAdam, FedProx, those of differential privacy, ...
    quantizer : str, optional
        The agreed quantizer; any if absent.
    examples : range, optional
        Numbers of examples that a client may claim, or values of the metric that the strategy
        weights replies by, if it is another.
    partitions : dict[int, int], optional
        Partition of each node id; if absent, a node keeps the first partition that it claims.

    Examples
    --------
    Refuse clients that quantize otherwise, or claim more than 500 examples:

    >>> from flwr.serverapp.strategy import FedAvg
    >>> from server import Dequantize
    >>> strategy = Dequantize(FedAvg(), quantizer="sign", examples=range(1, 501))
    """

    def __init__(
        self,
        strategy: Strategy,
        *,
        quantizer: str | None = None,
        examples: range | None = None,
        partitions: dict[int, int] | None = None,
    ) -> None:
        super().__init__(strategy)
        self.reception = Reception(
            "flower", quantizer, examples, partitions, _weighted_by(strategy)
        )

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Note which weights are sent to whom, and delegate."""
        self.reception.announce(config, arrays, lambda reply: read_changes(reply, arrays))
        messages = super().configure_train(server_round, arrays, config, grid)
        return self.reception.note_asked(messages)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Replace each payload by the weights that it encodes, and delegate.

        Raises
        ------
        RoundFailedError
            If clients were asked, and no reply could be used.
        """
        unpacked, sent_weights = [], self.reception.sent_weights
        for reply, received, update in self.reception.usable(server_round, replies):
            with self.reception.refusing(server_round, reply):
                reply.content = unpack_changes(reply, sent_weights, received.changes, update)
                unpacked.append(reply)
        usable = list(self._alike(server_round, unpacked))
        if self.reception.expected and not usable:
            raise self.reception.failure(server_round)
        return super().aggregate_train(server_round, usable)

    def aggregate_evaluate(
        self, server_round: int, replies: Iterable[Message]
    ) -> MetricRecord | None:
        """Delegate the replies that can be averaged, and those of clients that failed."""
        replies = list(replies)
        answered = [reply for reply in replies if not reply.has_error()]
        failed = [reply for reply in replies if reply.has_error()]
        return super().aggregate_evaluate(
            server_round, [*failed, *self._alike(server_round, answered)]
        )

    def _alike(self, server_round: int, replies: Iterable[Message]) -> Iterator[Message]:
        """Yield the replies of the most frequent form, and report the others."""
        formed = []
        for reply in replies:
            with self.reception.refusing(server_round, reply):
                formed.append((reply, _form(reply, self.reception.weighted_by)))
        usual = Counter(form for _, form in formed).most_common(1)
        for reply, form in formed:
            with self.reception.refusing(server_round, reply):
                if form != usual[0][0]:
                    raise PayloadError("its records and metrics are not those of the others")
                yield reply


def _form(reply: Message, weighted_by: str) -> tuple[object, ...]:
    """Return what replies must have in common to be averaged.

    These are the names of their records, and the name and length of each metric; the length of a
    single number is None.

    Raises
    ------
    PayloadError
        Unless the metrics are one record of finite numbers, and their weight is positive.
    """
    records = list(reply.content.metric_records.items())
    if len(records) != 1:
        raise PayloadError(f"one record of metrics is expected, not {len(records)}")
    key, metrics = records[0]
    for name, value in metrics.items():
        if not all(map(isfinite, value if isinstance(value, list) else [value])):
            raise PayloadError(f"its metrics are not finite: {name!r}")
    if weighted_by in metrics:
        weight_of(reply, weighted_by)
    lengths = {n: len(v) if isinstance(v, list) else None for n, v in metrics.items()}
    return frozenset(reply.content.array_records), key, frozenset(lengths.items())


def _weighted_by(strategy: Strategy) -> str:
    """Return the metric that a strategy weights replies by, or that of the one it wraps."""
    inner = getattr(strategy, "strategy", None)
    if not hasattr(strategy, "weighted_by_key") and inner is not None:
        return _weighted_by(inner)
    return getattr(strategy, "weighted_by_key", EXAMPLES)
