import gc
import threading
import time

import pytest
from flwr.app import Context, Message, MessageType, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import ServerApp

from fl_sim.engines.grids import LocalGrid, run_apps
from fl_sim.exchange.messages import partition_query, partition_reply, read_partition
from fl_sim.study.settings import EngineSettings


def make_client_app():
    app = ClientApp()

    @app.query()
    def query(message: Message, context: Context) -> Message:
        return partition_reply(int(context.node_config["partition-id"]), message)

    @app.train()
    def train(message: Message, context: Context) -> Message:
        raise RuntimeError("this client always fails")

    return app


def test_each_node_holds_its_partition_and_replies_to_the_message_it_was_sent():
    # Fails loudly when Flower moves the two private touches that LocalGrid needs.
    grid = LocalGrid(make_client_app(), 3)
    queries = [partition_query(node) for node in grid.get_node_ids()]
    replies = list(grid.send_and_receive(queries))
    assert [read_partition(reply) for reply in replies] == [0, 1, 2]
    assert [r.metadata.src_node_id for r in replies] == grid.get_node_ids()
    ids = [q.metadata.message_id for q in queries]
    assert len(set(ids)) == 3
    assert [r.metadata.reply_to_message_id for r in replies] == ids


def test_a_client_that_raises_is_an_error_reply_and_not_a_crash():
    grid = LocalGrid(make_client_app(), 1)
    message = Message(RecordDict(), grid.get_node_ids()[0], MessageType.TRAIN)
    (reply,) = grid.send_and_receive([message])
    assert reply.has_error()
    assert "this client always fails" in reply.error.reason


def test_what_the_server_app_raises_reaches_the_caller():
    server_app = ServerApp()

    @server_app.main()
    def main(grid, context):
        raise ValueError("the study is impossible")

    with pytest.raises(ValueError, match="the study is impossible"):
        run_apps(server_app, make_client_app(), 2, EngineSettings())


def waiting_app(asleep, wake):
    """Return an app of which the clients in ``asleep`` answer once ``wake`` is set."""
    app = ClientApp()

    @app.query()
    def query(message: Message, context: Context) -> Message:
        partition = int(context.node_config["partition-id"])
        if partition in asleep:
            wake.wait(60)
        return partition_reply(partition, message)

    return app


def partitions_that_answer(grid, timeout):
    queries = [partition_query(node) for node in grid.get_node_ids()]
    return [read_partition(reply) for reply in grid.send_and_receive(queries, timeout=timeout)]


def test_clients_that_are_late_are_missing_until_they_have_come_back():
    asleep, wake = {1, 3}, threading.Event()
    grid = LocalGrid(waiting_app(asleep, wake), 5)
    assert partitions_that_answer(grid, 0.2) == [0, 2, 4]
    began = time.monotonic()
    assert partitions_that_answer(grid, 30) == [0, 2, 4]
    assert time.monotonic() - began < 10  # nobody waited for them a second time
    asleep.clear()
    wake.set()
    deadline = time.monotonic() + 10
    while partitions_that_answer(grid, 30) != [0, 1, 2, 3, 4]:
        assert time.monotonic() < deadline


def test_a_timeout_is_for_each_client_and_not_for_all():
    app = ClientApp()

    @app.query()
    def query(message: Message, context: Context) -> Message:
        time.sleep(0.2)
        return partition_reply(int(context.node_config["partition-id"]), message)

    assert partitions_that_answer(LocalGrid(app, 5), 0.6) == [0, 1, 2, 3, 4]


def test_what_ends_a_client_for_good_reaches_the_caller():
    app = ClientApp()

    @app.query()
    def query(message: Message, context: Context) -> Message:
        raise SystemExit("enough")

    with pytest.raises(SystemExit, match="enough"):
        partitions_that_answer(LocalGrid(app, 2), 30)


def test_the_thread_of_a_grid_ends_with_it():
    before = set(threading.enumerate())
    grid = LocalGrid(make_client_app(), 2)
    assert partitions_that_answer(grid, 30) == [0, 1]
    (thread,) = set(threading.enumerate()) - before
    del grid
    gc.collect()
    thread.join(timeout=10)
    assert not thread.is_alive()
