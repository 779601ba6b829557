"""The same apps on an in-process engine or on Flower's simulation engine on Ray."""

import logging
import traceback
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from queue import SimpleQueue
from threading import Thread
from typing import Any
from uuid import uuid4

from flwr.app import Context, Error, Message, RecordDict
from flwr.app.user_config import UserConfig
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.supercore.task_identity import TaskIdentity

from fl_sim.settings import EngineSettings

_CLIENT_APP_ERROR = 0  # Flower's ErrorCode.UNKNOWN
_SERVER_NODE = 1  # Flower's SUPERLINK_NODE_ID


class _Worker:
    """A thread that answers messages in turn; one that never comes back ends with the process."""

    def __init__(self, answer: Callable[[Message], Message]) -> None:
        self._asked: SimpleQueue[tuple[Message, Future[Message]] | None] = SimpleQueue()
        Thread(target=self._work, args=(answer,), daemon=True).start()

    def ask(self, message: Message) -> Future[Message]:
        """Return what will be the reply."""
        reply: Future[Message] = Future()
        self._asked.put((message, reply))
        return reply

    def end(self) -> None:
        """Let the thread end once it has answered what it was asked."""
        self._asked.put(None)

    def _work(self, answer: Callable[[Message], Message]) -> None:
        while (asked := self._asked.get()) is not None:
            message, reply = asked
            try:
                reply.set_result(answer(message))
            except BaseException as error:  # the caller's to handle, as if it had answered itself
                reply.set_exception(error)


class LocalGrid(Grid):
    """Flower's Grid in one process: a message is answered when its reply is asked for.

    The two private touches of Flower are here: the identity that building a message needs outside
    a runtime, and the id that a message must carry before it can be replied to.

    Parameters
    ----------
    client_app : ClientApp
        Answers every message.
    clients : int
        Number of nodes; node ``i + 2`` holds partition ``i``.
    run_config : UserConfig, optional
        What ``flwr run`` would give to the clients.
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
        self._late: dict[int, Future[Message]] = {}
        TaskIdentity.run_id = TaskIdentity.task_id = TaskIdentity.node_id = _SERVER_NODE

    def get_node_ids(self) -> list[int]:
        """Return the ids of all nodes, in the order of their partitions."""
        return list(self._contexts)

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        """Take messages in; none is answered yet."""
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

        A client is given ``timeout`` seconds for its reply. One that is late is missing, and is not
        asked again while it is still at work: nothing can stop it in one process.
        """
        ids = self.push_messages(messages)
        if timeout is None:
            yield from self.pull_messages(ids)
            return
        worker = _Worker(self._answer)
        try:
            for message_id in ids:
                message = self._pending.pop(message_id)
                node = message.metadata.dst_node_id
                if node in self._late and not self._late[node].done():
                    continue
                reply = worker.ask(message)
                try:
                    yield reply.result(timeout)
                except TimeoutError:
                    self._late[node] = reply
                    worker.end()
                    worker = _Worker(self._answer)
        finally:
            worker.end()

    def _answer(self, message: Message) -> Message:
        context = self._contexts[message.metadata.dst_node_id]
        try:
            return self._client_app(message, context)
        except Exception:
            reason = traceback.format_exc(limit=-1)
            return Message(Error(_CLIENT_APP_ERROR, reason), reply_to=message)

    def set_run(self, run: Any) -> None:
        """Do nothing: an in-process grid serves one run."""

    @property
    def run(self) -> Any:
        """There is no SuperLink that could describe the run."""
        raise NotImplementedError("An in-process grid has no run record.")

    def create_message(self, *args: Any, **kwargs: Any) -> Message:
        """Flower deprecates it; build a `Message` instead."""
        raise NotImplementedError("Build a flwr.app.Message instead.")

    def get_nodes(self) -> Any:
        """There is no SuperLink that could describe the nodes."""
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

    run_simulation(
        server_app=server_app,
        client_app=client_app,
        num_supernodes=clients,
        backend_config={
            "client_resources": {"num_cpus": 1, "num_gpus": 0.0},
            "init_args": {"address": address, "log_to_driver": False, "logging_level": "error"},
        },
    )
