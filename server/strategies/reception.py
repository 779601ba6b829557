"""Opens the replies of a round, each once; refuses and reports those that violate the protocol."""

import logging
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple

from flwr.app import ArrayRecord, ConfigRecord, Message
from flwr.serverapp.strategy import Strategy

from fl_sim.coding.payload import Payload, PayloadError
from fl_sim.exchange.messages import (
    EXAMPLES,
    nonce_of,
    partition_of,
    read_payload,
    read_statistics_payload,
    set_nonce,
    weight_of,
)
from fl_sim.exchange.weight_records import Changes
from fl_sim.quantizers import parse_quantizer
from fl_sim.quantizers.base import Quantizer
from fl_sim.updates.local_update import Layout, Update, all_finite

log = logging.getLogger("fl_sim.server")


class RoundFailedError(RuntimeError):
    """No client of a round sent a usable update."""


class Cohort(NamedTuple):
    """The clients of a sum, and the bytes that they sent."""

    partitions: tuple[int, ...]
    nbytes: int


@dataclass(frozen=True)
class Received:
    """What one client sent, or the sum of what several clients did.

    Attributes
    ----------
    partition : int
        Which client; the first of a sum.
    payload : Payload
        Its quantized update.
    changes : Changes
        Which tensors of the model the reply changes.
    weight : float
        Weight of the update in an average.
    statistics : Payload or None
        Change of the running statistics of BatchNorm layers, in a study whose model has them.
    cohort : Cohort or None
        The clients of a sum.
    """

    partition: int
    payload: Payload
    changes: Changes
    weight: float
    statistics: Payload | None = None
    cohort: Cohort | None = None

    @property
    def clients(self) -> tuple[int, ...]:
        """The clients."""
        return (self.partition,) if self.cohort is None else self.cohort.partitions

    @property
    def nbytes(self) -> int:
        """Bytes of the payloads, or what clients of a sum sent."""
        if self.cohort is not None:
            return self.cohort.nbytes
        return self.payload.nbytes + (self.statistics.nbytes if self.statistics else 0)


class Reception:
    """Opens the replies of one round at a time.

    It refuses a reply if its node was not asked or has already replied; if it answers another
    round, or comes from another partition than the node's; if its quantizer or its number of
    examples is not as agreed; and if it is no payload of the model or decodes to values that are
    not finite.

    Parameters
    ----------
    name : str
        Of the trial or app, for the log.
    quantizer : str, optional
        The agreed spec; any if absent.
    examples : range, optional
        Weights that a client may claim in averages.
    partitions : dict[int, int], optional
        Partition of each node id; if absent, a node keeps the first partition that it claims.
    weighted_by : str
        Metric of a reply that is its weight in averages; by default its number of examples.
    statistics : Layout, optional
        Of the running statistics that every reply must hold; none if absent.
    statistics_quantizer : str
        The spec agreed for them.

    Attributes
    ----------
    sent_weights : ArrayRecord
        The weights that were sent to the clients in this round.
    sent_to : dict[int, ArrayRecord]
        By node id, the weights of those nodes that were sent others.
    cohorts : dict[int, Cohort]
        By the partition of its reply, the clients of a sum; a secure grid notes them.
    received : dict[int, Received]
        What `usable` has accepted in this round, by partition. `HonestButCurious` keeps it.
    """

    def __init__(
        self,
        name: str,
        quantizer: str | None = None,
        examples: range | None = None,
        partitions: dict[int, int] | None = None,
        weighted_by: str = EXAMPLES,
        statistics: Layout | None = None,
        statistics_quantizer: str = "none",
    ) -> None:
        self.name = name
        self.quantizer = None if quantizer is None else parse_quantizer(quantizer)
        self.examples = examples
        self.weighted_by = weighted_by
        self.statistics = statistics or Layout(())
        self.statistics_quantizer = parse_quantizer(statistics_quantizer)
        self._fixed = partitions is not None
        self._partitions = {} if partitions is None else dict(partitions)
        self.sent_weights = ArrayRecord()
        self.sent_to: dict[int, ArrayRecord] = {}
        self.cohorts: dict[int, Cohort] = {}
        self.received: dict[int, Received] = {}
        self._changes: Callable[[Message], Changes] = lambda _: Changes(Layout(()), {}, ())
        self._asked: set[int] = set()
        self._nonce = ""

    def announce(
        self, config: ConfigRecord, arrays: ArrayRecord, changes: Callable[[Message], Changes]
    ) -> None:
        """Begin a round: put a fresh nonce in its ``config``, which replies must repeat.

        ``arrays`` are the weights that are sent to clients; ``changes`` returns which tensors a
        reply changes.
        """
        self._nonce, self.sent_weights, self._changes = set_nonce(config), arrays, changes
        self.sent_to, self.cohorts = {}, {}

    def note_asked(self, messages: Iterable[Message]) -> list[Message]:
        """Note which nodes are asked, and return the messages."""
        messages = list(messages)
        self._asked = {message.metadata.dst_node_id for message in messages}
        return messages

    @property
    def own_weights(self) -> dict[int, ArrayRecord]:
        """The weights of those partitions that were sent others than ``sent_weights``."""
        found = self._partitions.items()
        return {partition: self.sent_to[n] for n, partition in found if n in self.sent_to}

    @property
    def expected(self) -> int:
        """Number of nodes asked in this round."""
        return len(self._asked)

    def parse(self, reply: Message) -> Received:
        """Return what a reply holds, without decoding the payload and without side effects.

        Raises
        ------
        PayloadError
            If the reply is refused.
        """
        if reply.has_error():  # some of Flower's mods send it in the name of another node
            reason = (reply.error.reason or "it gave no reason").strip()
            raise PayloadError(f"the client failed: {reason}")
        if reply.metadata.src_node_id not in self._asked:
            raise PayloadError("its node was not asked")
        if nonce_of(reply) != self._nonce:
            raise PayloadError("it answers another round")
        partition = self._own_partition(reply)
        changes = self._changes(reply)
        payload = read_payload(reply, changes.quantized)
        if self.quantizer is not None and payload.spec != self.quantizer.spec:
            raise PayloadError(f"it was quantized with {payload.spec!r}, not as agreed")
        weight = weight_of(reply, self.weighted_by)
        if self.examples is not None and weight not in self.examples:
            allowed = f"{self.examples.start} to {self.examples.stop - 1}"
            raise PayloadError(f"it claims {weight} examples, but {allowed} are agreed")
        more = self._statistics_of(reply), self.cohorts.get(partition)
        return Received(partition, payload, changes, weight, *more)

    def _statistics_of(self, reply: Message) -> Payload | None:
        if not self.statistics.size:
            return None
        payload = read_statistics_payload(reply, self.statistics)
        if payload.spec != self.statistics_quantizer.spec:
            raise PayloadError(f"its statistics are quantized with {payload.spec!r}, not as agreed")
        _decoded(self.statistics_quantizer, payload)
        return payload

    def usable(
        self, server_round: int, replies: Iterable[Message]
    ) -> Iterator[tuple[Message, Received, Update]]:
        """Open and decode every reply once; yield the usable ones and report the others.

        Replies are yielded in the order of their partitions. A caller that reads more of them
        does so within `refusing`.
        """
        self.received = {}
        replies = sorted(replies, key=self._order)  # sums must not depend on arrival
        summed = {partition for one in self.cohorts.values() for partition in one.partitions}
        heard = {node for node, partition in self._partitions.items() if partition in summed}
        silent = self._asked - heard - {reply.metadata.src_node_id for reply in replies}
        for partition in sorted(str(self._partitions.get(node, "unknown")) for node in silent):
            self._log(server_round, partition, "partition %s did not reply in time", partition)
        for reply in replies:
            opened = self._open(server_round, reply)
            if opened is not None:
                yield reply, *opened

    def _open(self, server_round: int, reply: Message) -> tuple[Received, Update] | None:
        """Return what a reply holds and its decoded update; None if it is refused."""
        with self.refusing(server_round, reply):
            received = self.parse(reply)
            if received.partition in self.received:
                raise PayloadError("it has already replied in this round")
            self._partitions[reply.metadata.src_node_id] = received.partition
            update = self._decode(received.payload)
            self.received[received.partition] = received
            return received, update
        return None

    @contextmanager
    def refusing(self, server_round: int, reply: Message) -> Iterator[None]:
        """Refuse and report a reply if reading it raises anything: a client chose its bytes."""
        try:
            yield
        except PayloadError as error:
            self.report(server_round, reply, str(error))
        except Exception as error:
            self.report(server_round, reply, f"it cannot be read ({type(error).__name__}: {error})")

    def _decode(self, payload: Payload) -> Update:
        """Decode a payload; raise `PayloadError` if a value is not finite."""
        try:
            quantizer = self.quantizer or parse_quantizer(payload.spec)
        except ValueError as error:
            raise PayloadError(str(error)) from error
        return _decoded(quantizer, payload)

    def report(self, server_round: int, reply: Message, reason: str) -> None:
        """Log that a reply is dropped, and why."""
        node = reply.metadata.src_node_id
        partition = self._partitions.get(node, f"unknown of node {node}")
        text = "dropped the reply of partition %s: %s"
        self._log(server_round, partition, text, partition, reason)

    def _log(self, server_round: int, partition: object, text: str, *values: object) -> None:
        facts = {"event": "dropped", "trial": self.name, "round": server_round}
        text = f"trial %s, round %d: {text}"
        extra = facts | {"partition": partition}
        log.warning(text, self.name, server_round, *values, extra=extra)

    def failure(self, server_round: int) -> RoundFailedError:
        """Return the error of a round without a usable reply."""
        return RoundFailedError(
            f"Round {server_round} of trial {self.name}: none of {self.expected} clients "
            "sent a usable update; see the warnings above."
        )

    def _own_partition(self, reply: Message) -> int:
        """Return the partition that a reply claims, if it is its node's own or unclaimed."""
        node = reply.metadata.src_node_id
        claimed = partition_of(reply)
        if claimed is None:
            raise PayloadError("it does not say which partition it is from")
        if self._fixed or node in self._partitions:
            if self._partitions.get(node) != claimed:
                raise PayloadError(f"it claims partition {claimed}, which is not its own")
        elif claimed in self._partitions.values():
            raise PayloadError(f"it claims partition {claimed}, which another node holds")
        return claimed

    def _order(self, reply: Message) -> tuple[int, int]:
        node = reply.metadata.src_node_id
        claimed = partition_of(reply)
        return self._partitions.get(node, -1 if claimed is None else claimed), node


def _decoded(quantizer: Quantizer, payload: Payload) -> Update:
    """Decode a payload; raise `PayloadError` if a value is not finite."""
    update = quantizer.decode(payload)
    if not all_finite(update.vector):
        raise PayloadError("it decodes to values that are not finite")
    return update


def find_reception(strategy: Strategy) -> Reception | None:
    """Return the reception of a strategy, or of one that it wraps at any depth, if there is one."""
    reception, inner = getattr(strategy, "reception", None), getattr(strategy, "strategy", None)
    if isinstance(reception, Reception):
        return reception
    return None if inner is None else find_reception(inner)
