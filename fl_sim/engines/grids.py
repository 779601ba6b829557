"""Run the same Flower apps on an in-process engine or on Flower's simulation engine, on Ray."""

import logging
import time
import traceback
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from queue import SimpleQueue
from threading import Event, Lock, Thread
from typing import Any
from uuid import uuid4

from flwr.app import Context, Error, Message, RecordDict
from flwr.app.user_config import UserConfig
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.supercore.task_identity import TaskIdentity

from fl_sim.engines.interrupts import keeping_signals
from fl_sim.study.settings import EngineSettings

_CLIENT_APP_ERROR = 0  # Flower's ErrorCode.UNKNOWN
_SERVER_NODE = 1  # Flower's SUPERLINK_NODE_ID


class _MessageBatch:
    """Messages that a thread answers one after the other.

    It notifies the caller once, at the end: waking another thread for every reply is slow.
    """

    def __init__(self, answer: Callable[[Message], Message], messages: Sequence[Message]) -> None:
        self.replies: list[Message] = []
        self._answer, self._messages = answer, messages
        self._error: BaseException | None = None
        self._began = time.monotonic()
        self._lock, self._ended = Lock(), Event()
        self._given_up = False

    @property
    def ended(self) -> bool:
        """Whether the thread has stopped answering."""
        return self._ended.is_set()

    def work(self) -> None:
        """Answer the messages; stop if the caller gave one up."""
        try:
            for message in self._messages:
                reply = self._answer(message)
                with self._lock:
                    if self._given_up:
                        break
                    self.replies.append(reply)
                    self._began = time.monotonic()
        except BaseException as error:  # re-raised by `late`, in the caller's thread
            self._error = error
        self._ended.set()

    def late(self, timeout: float) -> Message | None:
        """Wait for all replies; return the message whose reply takes longer than ``timeout``.

        The messages after it then stay unanswered.
        """
        while not self._ended.wait(max(0.0, self._began + timeout - time.monotonic())):
            with self._lock:
                if not self.ended and self._began + timeout <= time.monotonic():
                    self._given_up = True
                    return self._messages[len(self.replies)]
        if self._error is not None:
            raise self._error
        return None


class _Worker:
    """A thread that answers one batch after the other; a new thread would allocate memory anew.

    It ends when its owner is deleted; if a batch never ends, it ends with the process.
    """

    def __init__(self) -> None:
        self._batches: SimpleQueue[_MessageBatch | None] = SimpleQueue()
        Thread(target=self._work, args=(self._batches,), daemon=True).start()
        weakref.finalize(self, self._batches.put, None)

    def start(self, batch: _MessageBatch) -> None:
        """Queue a batch."""
        self._batches.put(batch)

    @staticmethod
    def _work(batches: "SimpleQueue[_MessageBatch | None]") -> None:
        while (batch := batches.get()) is not None:
            batch.work()
            del batch  # it refers to the owner, which could not be deleted otherwise


class LocalGrid(Grid):
    """Flower's Grid in one process: it answers a message when the reply is asked for.

    It uses two private parts of Flower: the identity that is needed to build a message outside of
    a Flower runtime, and the id that a message must have before it can be replied to.

    Parameters
    ----------
    client_app : ClientApp
        Answers every message.
    clients : int
        Number of nodes; node ``i + 2`` holds partition ``i``.
    run_config : UserConfig, optional
        Run config of the clients, as of ``flwr run``.
    """

    def __init__(
        self, client_app: ClientApp, clients: int, run_config: UserConfig | None = None
    ) -> None:
        self._client_app = client_app
        self._contexts = {
            partition + _SERVER_NODE + 1: Context(
                run_id=_SERVER_NODE,
                node_id=partition + _SERVER_NODE + 1,
                node_config={"partition-id": partition, "num-partitions": clients},
                state=RecordDict(),
                run_config=run_config or {},
            )
            for partition in range(clients)
        }
        self._pending: dict[str, Message] = {}
        self._late: dict[int, _MessageBatch] = {}
        self._worker: _Worker | None = None
        TaskIdentity.run_id = TaskIdentity.task_id = TaskIdentity.node_id = _SERVER_NODE

    def get_node_ids(self) -> list[int]:
        """Return the ids of all nodes, in the order of their partitions."""
        return list(self._contexts)

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        """Accept messages, without answering them yet."""
        ids = []
        for message in messages:
            message.metadata.__dict__["_message_id"] = str(uuid4())
            self._pending[message.metadata.message_id] = message
            ids.append(message.metadata.message_id)
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> Iterator[Message]:
        """Answer messages, one at a time, as the caller asks for the next."""
        for message_id in message_ids:
            yield self._answer(self._pending.pop(message_id))

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterator[Message]:
        """Push messages and yield their replies.

        A client has ``timeout`` seconds for its reply. If it takes longer, its reply is missing,
        and it is not asked again while it still works: nothing can stop it within one process.
        """
        ids = self.push_messages(messages)
        if timeout is None:
            yield from self.pull_messages(ids)
            return
        left = [self._pending.pop(message_id) for message_id in ids]
        while left := [message for message in left if not self._busy(message)]:
            batch = _MessageBatch(self._answer, left)
            self._worker = self._worker or _Worker()
            self._worker.start(batch)
            late = batch.late(timeout)
            yield from batch.replies
            if late is None:
                return
            self._late[late.metadata.dst_node_id] = batch
            self._worker = None
            left = left[len(batch.replies) + 1 :]

    def _busy(self, message: Message) -> bool:
        """Return whether the node of a message still works on one of an earlier round."""
        batch = self._late.get(message.metadata.dst_node_id)
        return batch is not None and not batch.ended

    def _answer(self, message: Message) -> Message:
        context = self._contexts[message.metadata.dst_node_id]
        try:
            return self._client_app(message, context)
        except Exception:
            reason = traceback.format_exc(limit=-1)
            return Message(Error(_CLIENT_APP_ERROR, reason), reply_to=message)

    def set_run(self, run: Any) -> None:
        """Do nothing: an in-process grid has one run."""

    @property
    def run(self) -> Any:
        """Raise: no SuperLink describes the run."""
        raise NotImplementedError("An in-process grid has no run record.")

    def create_message(self, *args: Any, **kwargs: Any) -> Message:
        """Raise: Flower deprecates it; build a `Message` instead."""
        raise NotImplementedError("Build a flwr.app.Message instead.")

    def get_nodes(self) -> Any:
        """Raise: no SuperLink describes the nodes."""
        raise NotImplementedError("An in-process grid knows node ids only.")


def run_apps(
    server_app: ServerApp, client_app: ClientApp, clients: int, settings: EngineSettings
) -> None:
    """Run a server app against ``clients`` nodes on the engine of the settings.

    Raises
    ------
    Exception
        Whatever the server app raises.
    """
    logging.getLogger("flwr").setLevel(logging.WARNING)
    if settings.engine == "local":
        _run_local(server_app, client_app, clients)
    else:
        _run_ray(server_app, client_app, clients, settings.ray_address)


def _run_local(server_app: ServerApp, client_app: ClientApp, clients: int) -> None:
    context = Context(
        run_id=_SERVER_NODE,
        node_id=_SERVER_NODE,
        node_config={},
        state=RecordDict(),
        run_config={},
    )
    server_app(LocalGrid(client_app, clients), context)


def _run_ray(server_app: ServerApp, client_app: ClientApp, clients: int, address: str) -> None:
    from flwr.simulation import run_simulation  # noqa: PLC0415 - Ray takes seconds to import

    start_ray(address)
    run_simulation(
        server_app=server_app,
        client_app=client_app,
        num_supernodes=clients,
        backend_config={"client_resources": {"num_cpus": 1, "num_gpus": 0.0}},
    )


def start_ray(address: str) -> bool:
    """Start Ray or join its cluster, unless that is done; keep the signal handlers.

    Returns
    -------
    bool
        Whether Ray was started here, so that the caller has to shut it down.
    """
    import ray  # noqa: PLC0415 - Ray takes seconds to import

    if ray.is_initialized():
        return False
    with keeping_signals():
        ray.init(
            address=address,
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.ERROR,
        )
    return True
