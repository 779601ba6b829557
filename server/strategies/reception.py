"""Where replies come in: what was agreed is opened, everything else is refused and reported."""

import logging
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from flwr.app import ConfigRecord, Message

from fl_sim.coding.payload import Payload, PayloadError
from fl_sim.exchange.messages import (
    EXAMPLES,
    nonce_of,
    partition_of,
    read_payload,
    set_nonce,
    weight_of,
)
from fl_sim.quantizers import parse_quantizer
from fl_sim.updates.local_update import Layout, Update, all_finite

log = logging.getLogger("fl_sim.server")


class RoundFailedError(RuntimeError):
    """A round in which no client sent an update that could be used."""


@dataclass(frozen=True)
class Received:
    """One client's usable reply."""

    partition: int
    payload: Payload
    weight: float


class Reception:
    """Opens the replies of one round at a time.

    Refused are replies of nodes that were not asked or have already replied, to another round than
    this one, from another partition than the node's, of another quantizer or number of examples
    than agreed, and what does not parse as a payload of the model.

    Parameters
    ----------
    name : str
        Of the trial or app, for reports.
    quantizer : str, optional
        Spec that was agreed; any if absent.
    examples : range, optional
        Numbers of examples a client may claim; they are what averages are weighted by.
    partitions : dict[int, int], optional
        Partition of each node id. If absent, the first one that a node claims is its own.
    weighted_by : str
        Metric of a reply that averages are weighted by, where it is not the number of examples.
    """

    def __init__(
        self,
        name: str,
        quantizer: str | None = None,
        examples: range | None = None,
        partitions: dict[int, int] | None = None,
        weighted_by: str = EXAMPLES,
    ) -> None:
        self.name = name
        self.quantizer = None if quantizer is None else parse_quantizer(quantizer)
        self.examples = examples
        self.weighted_by = weighted_by
        self._fixed = partitions is not None
        self._partitions = {} if partitions is None else dict(partitions)
        self._layout: Callable[[Message], Layout] = lambda _: Layout(())
        self._asked: set[int] = set()
        self._nonce = ""

    def announce(self, config: ConfigRecord, layout: Callable[[Message], Layout]) -> None:
        """Begin a round: replies repeat a fresh nonce and hold updates of their ``layout``."""
        self._nonce, self._layout = set_nonce(config), layout

    def asking(self, messages: Iterable[Message]) -> list[Message]:
        """Note which nodes are asked."""
        messages = list(messages)
        self._asked = {message.metadata.dst_node_id for message in messages}
        return messages

    @property
    def expected(self) -> int:
        """Number of nodes asked in this round."""
        return len(self._asked)

    def open(self, reply: Message) -> Received:
        """Return what a reply holds.

        Raises
        ------
        PayloadError
            If it is refused.
        """
        if reply.metadata.src_node_id not in self._asked:
            raise PayloadError("its node was not asked")
        if reply.has_error():
            reason = (reply.error.reason or "it gave no reason").strip()
            raise PayloadError(f"the client failed: {reason}")
        if nonce_of(reply) != self._nonce:
            raise PayloadError("it answers another round")
        partition = self._own_partition(reply)
        payload = read_payload(reply, self._layout(reply))
        if self.quantizer is not None and payload.spec != self.quantizer.spec:
            raise PayloadError(f"it was quantized with {payload.spec!r}, not as agreed")
        weight = weight_of(reply, self.weighted_by)
        if self.examples is not None and weight not in self.examples:
            allowed = f"{self.examples.start} to {self.examples.stop - 1}"
            raise PayloadError(f"it claims {weight} examples, but {allowed} are agreed")
        return Received(partition, payload, weight)

    def usable(
        self, server_round: int, replies: Iterable[Message]
    ) -> Iterator[tuple[Message, Received]]:
        """Yield the replies that can be used, in the order of partitions, and report the others.

        The caller reads on within `refusing`.
        """
        seen: set[int] = set()
        replies = sorted(replies, key=self._order)  # sums must not depend on arrival
        silent = self._asked - {reply.metadata.src_node_id for reply in replies}
        for partition in sorted(str(self._partitions.get(node, "unknown")) for node in silent):
            self._log(server_round, partition, "partition %s did not reply in time", partition)
        for reply in replies:
            received = None
            with self.refusing(server_round, reply):
                received = self.open(reply)
                if received.partition in seen:
                    received = None
                    raise PayloadError("it has already replied in this round")
            if received is not None:
                seen.add(received.partition)
                yield reply, received

    @contextmanager
    def refusing(self, server_round: int, reply: Message) -> Iterator[None]:
        """Refuse and report a reply if reading it fails in any way: a client chose its bytes."""
        try:
            yield
        except PayloadError as error:
            self.report(server_round, reply, str(error))
        except Exception as error:
            self.report(server_round, reply, f"it cannot be read ({type(error).__name__}: {error})")

    def decode(self, payload: Payload) -> Update:
        """Decode a payload; raise `PayloadError` if that gives anything but finite numbers."""
        try:
            quantizer = self.quantizer or parse_quantizer(payload.spec)
        except ValueError as error:
            raise PayloadError(str(error)) from error
        update = quantizer.decode(payload)
        if not all_finite(update.vector):
            raise PayloadError("it decodes to values that are not finite")
        return update

    def report(self, server_round: int, reply: Message, reason: str) -> None:
        """Say that a reply is dropped, and why."""
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
        """Return the error of a round in which nothing was usable."""
        return RoundFailedError(
            f"Round {server_round} of trial {self.name}: none of {self.expected} clients "
            "sent a usable update; see the warnings above."
        )

    def _own_partition(self, reply: Message) -> int:
        node = reply.metadata.src_node_id
        claimed = partition_of(reply)
        if claimed is None:
            raise PayloadError("it does not say which partition it is from")
        if not self._fixed and node not in self._partitions:
            if claimed in self._partitions.values():
                raise PayloadError(f"it claims partition {claimed}, which another node holds")
            self._partitions[node] = claimed
        if self._partitions.get(node) != claimed:
            raise PayloadError(f"it claims partition {claimed}, which is not its own")
        return claimed

    def _order(self, reply: Message) -> tuple[int, int]:
        node = reply.metadata.src_node_id
        claimed = partition_of(reply)
        return self._partitions.get(node, -1 if claimed is None else claimed), node
