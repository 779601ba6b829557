"""Retrain a trial when Ray loses a worker; do not count its clients as failed."""

import time
from collections.abc import Iterable

from flwr.app import ArrayRecord, Message, MetricRecord
from flwr.serverapp.strategy import Strategy

from fl_sim.engines.interrupts import WorkerLostError
from server.strategies.wrapper import Wrapper

_LOST = "<class 'ray.exceptions."  # how Flower's Ray engine begins the reason of such an error
_NOTICE = 90.0  # seconds for Ray to notice a dead node: its health checks take a minute


class StopOnLostWorker(Wrapper):
    """Stops the training as soon as Flower's Ray engine loses a worker.

    When a Ray node dies, that engine replies with errors in place of the node's workers, in every
    later round too. Dropping these replies would change the results.
    """

    def __init__(self, strategy: Strategy) -> None:
        super().__init__(strategy)
        self._nodes = _ray_nodes()

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Delegate, unless a reply says that a worker was lost.

        Raises
        ------
        WorkerLostError
            If a worker was lost. It is raised after Ray has noticed that the node is gone, so
            that the next engine does not use it.
        """
        replies = list(replies)
        if any(_is_lost(reply) for reply in replies):
            deadline = time.monotonic() + _NOTICE
            while _ray_nodes() >= self._nodes and time.monotonic() < deadline:
                time.sleep(0.5)
            raise WorkerLostError(f"a worker was lost in round {server_round}")
        return super().aggregate_train(server_round, replies)


def _is_lost(reply: Message) -> bool:
    return reply.has_error() and (reply.error.reason or "").startswith(_LOST)


def _ray_nodes() -> int:
    import ray  # noqa: PLC0415 - Ray takes seconds to import

    nodes = ray.nodes()  # type: ignore[no-untyped-call]
    return sum(node["Alive"] for node in nodes)
