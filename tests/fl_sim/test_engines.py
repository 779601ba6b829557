import pytest
from flwr.app import Context, Message, MessageType, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import ServerApp

from fl_sim.engines import LocalGrid, run_apps
from fl_sim.messages import partition_query, partition_reply, read_partition
from fl_sim.settings import EngineSettings


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
