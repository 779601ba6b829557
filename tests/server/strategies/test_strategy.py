import logging

import pytest
import torch
from flwr.app import Array, ArrayRecord, Error, Message, MetricRecord

from clients.app import app
from clients.local_training import compute_reply
from fl_sim.engines.grids import LocalGrid
from fl_sim.exchange.messages import pack_weights, train_config, unpack_weights
from fl_sim.observed.observations import load_observations, round_path
from fl_sim.quantizers import parse_quantizer
from fl_sim.study.settings import load_settings
from fl_sim.study.trials import trials_of
from fl_sim.updates.local_update import Update, flat_model
from server.strategies.averaging import QuantizedAveraging
from server.strategies.curious import HonestButCurious
from server.strategies.reception import RoundFailedError
from server.training import find_nodes, initial_state


class Server:
    """A strategy and a grid of three clients, one round at a time."""

    def __init__(self, spec="none", **overrides):
        plain = {"server_optimizer": "sgd", "server_momentum": "0", "server_learning_rate": "0.5"}
        chosen = {"quantizers": spec, "clients": "3", **plain, **overrides}
        self.settings = load_settings(None, chosen)
        self.trial = trials_of(self.settings)[0]
        self.grid = LocalGrid(app, self.settings.data.clients)
        self.nodes = find_nodes(self.grid, self.settings.data.clients)
        self.weights, _ = initial_state(self.trial, None)
        self.strategy = QuantizedAveraging(
            self.trial, self.settings.training, self.nodes, self.weights
        )
        self.arrays = pack_weights(self.weights.clone())

    def instructions(self, server_round=1):
        config = train_config(self.trial)
        return list(self.strategy.configure_train(server_round, self.arrays, config, self.grid))

    def replies(self, server_round=1):
        return list(self.grid.send_and_receive(self.instructions(server_round)))


def mean_of_updates(server, partitions, server_round=1):
    start = unpack_weights(server.arrays)
    updates = [compute_reply(server.trial, p, server_round, start).update for p in partitions]
    return sum(u.double() for u in updates) / len(updates)


def test_fedsgd_steps_along_the_mean_gradient():
    server = Server()
    arrays, metrics = server.strategy.aggregate_train(1, server.replies())
    expected = unpack_weights(server.arrays) - 0.5 * mean_of_updates(server, [0, 1, 2]).float()
    torch.testing.assert_close(unpack_weights(arrays), expected)
    assert metrics["uplink-bytes"] == 3 * (4 * 8026 + 2 + len("none") + 4)
    assert (metrics["updates"], metrics["dropped"]) == (3, 0)


def test_fedavg_moves_to_the_mean_of_the_clients_weights():
    server = Server(update="delta", local_steps="2", server_learning_rate="1")
    arrays, _ = server.strategy.aggregate_train(1, server.replies())
    start = unpack_weights(server.arrays)
    ends = [start - compute_reply(server.trial, p, 1, start).update for p in range(3)]
    torch.testing.assert_close(unpack_weights(arrays), sum(ends) / 3, rtol=1e-4, atol=1e-6)


def test_the_sum_does_not_depend_on_the_order_of_arrival():
    one, other = Server("stochastic:bits=2"), Server("stochastic:bits=2")
    forward, _ = one.strategy.aggregate_train(1, one.replies())
    backward, _ = other.strategy.aggregate_train(1, reversed(other.replies()))
    assert torch.equal(unpack_weights(forward), unpack_weights(backward))


def test_sampling_is_by_partition_and_seed():
    first, again = (
        Server(clients="10", fraction_train="0.3"),
        Server(clients="10", fraction_train="0.3"),
    )
    samples = [first.strategy.sample(r) for r in range(1, 20)]
    assert samples == [again.strategy.sample(r) for r in range(1, 20)]
    assert {len(sample) for sample in samples} == {3}
    assert {partition for sample in samples for partition in sample} == set(range(10))


def broken(reply, kind):
    """Return a reply spoiled in one way."""
    if kind == "error":
        instruction = reply  # only its ids matter
        message = Message(Error(0, "boom"), reply_to=instruction)
        message.metadata.__dict__["_src_node_id"] = reply.metadata.src_node_id
        return message
    array = reply.content.array_records["arrays"]["payload"]
    data = bytearray(array.data)
    if kind == "flipped":
        data[100] ^= 4
    if kind == "truncated":
        data = data[:-9]
    raw = Array("uint8", (len(data),), array.stype, bytes(data))
    if kind == "foreign":
        layout = flat_model(Server().trial.model_spec).layout
        payload = parse_quantizer("sign").encode(
            Update(torch.ones(layout.size), layout), torch.Generator()
        )
        raw = Array("uint8", (payload.nbytes,), array.stype, payload.to_bytes())
    examples = {"no examples": 0, "lies": 999}.get(kind, 1)
    reply.content["arrays"] = ArrayRecord({"payload": raw})
    reply.content["metrics"] = MetricRecord({"num-examples": examples})
    facts = reply.content.config_records["facts"]
    if kind == "replayed":
        facts["nonce"] = "that of another round"
    if kind == "poses":
        facts["partition-id"] = 2
    if kind == "silent":
        del facts["partition-id"]
    if kind == "uninvited":
        reply.metadata.__dict__["_src_node_id"] = 99
    return reply


BREAKS = {
    "error": "boom",
    "flipped": "checksum",
    "truncated": "checksum",
    "foreign": "'sign'",
    "no examples": "examples",
    "lies": "claims 999 examples, but 1 to 1 are agreed",
    "replayed": "answers another round",
    "poses": "claims partition 2, which is not its own",
    "silent": "does not say which partition",
    "uninvited": "its node was not asked",
}


@pytest.mark.parametrize("kind", BREAKS)
def test_a_reply_that_cannot_be_used_is_dropped_counted_and_reported(kind, caplog):
    server = Server()
    replies = server.replies()
    replies[1] = broken(replies[1], kind)
    with caplog.at_level(logging.WARNING, "fl_sim"):
        arrays, metrics = server.strategy.aggregate_train(1, replies)
    assert (metrics["updates"], metrics["dropped"]) == (2, 1)
    assert BREAKS[kind] in caplog.text
    assert ("partition unknown" if kind == "uninvited" else "partition 1") in caplog.text
    expected = unpack_weights(server.arrays) - 0.5 * mean_of_updates(server, [0, 2]).float()
    torch.testing.assert_close(unpack_weights(arrays), expected)


def test_a_client_that_replies_twice_counts_once(caplog):
    server = Server()
    replies = server.replies()
    arrays, metrics = server.strategy.aggregate_train(1, [*replies, replies[2]])
    assert (metrics["updates"], metrics["dropped"]) == (3, 0)
    assert "already replied" in caplog.text
    expected = unpack_weights(server.arrays) - 0.5 * mean_of_updates(server, [0, 1, 2]).float()
    torch.testing.assert_close(unpack_weights(arrays), expected)


def test_the_reply_to_an_old_round_is_refused():
    server = Server()
    old = server.replies(1)
    server.instructions(2)
    with pytest.raises(RoundFailedError):
        server.strategy.aggregate_train(2, old)


def test_a_payload_of_infinities_is_dropped():
    server = Server()
    replies = server.replies()
    layout = flat_model(server.trial.model_spec).layout
    quantizer = parse_quantizer("none")
    honest = quantizer.encode(Update(torch.zeros(layout.size), layout), torch.Generator())
    hostile = type(honest)(honest.spec, b"\x00\x00\x80\x7f" * layout.size, layout)
    array = Array("uint8", (hostile.nbytes,), "fl_sim.payload", hostile.to_bytes())
    replies[0].content.array_records["arrays"]["payload"] = array
    _, metrics = server.strategy.aggregate_train(1, replies)
    assert metrics["dropped"] == 1


def test_a_round_with_no_usable_reply_raises():
    server = Server()
    replies = [broken(reply, "flipped") for reply in server.replies()]
    with pytest.raises(RoundFailedError, match="Round 1 .* none of 3 clients"):
        server.strategy.aggregate_train(1, replies)


def test_the_curious_server_keeps_weights_and_payloads_and_changes_nothing(tmp_path):
    plain, watched = Server("uniform:bits=4"), Server("uniform:bits=4")
    trial = watched.trial
    curious = HonestButCurious(
        watched.strategy, tmp_path, trial=trial.name, model=trial.model_spec, work=trial.work
    )
    config = train_config(watched.trial)
    messages = curious.configure_train(1, watched.arrays, config, watched.grid)
    seen, _ = curious.aggregate_train(1, watched.grid.send_and_receive(messages))
    unseen, _ = plain.strategy.aggregate_train(1, plain.replies())
    assert torch.equal(unpack_weights(seen), unpack_weights(unseen))
    kept = load_observations(round_path(tmp_path, watched.trial.name, 1))
    assert [o.partition for o in kept] == [0, 1, 2]
    assert torch.equal(kept[0].weights, unpack_weights(watched.arrays))
    update = compute_reply(watched.trial, 2, 1, kept[2].weights).update
    quantizer = parse_quantizer("uniform:bits=4")
    assert float(quantizer.misfit(kept[2].payload, update).max()) == 0


def test_only_the_observed_rounds_are_kept(tmp_path):
    server = Server()
    curious = HonestButCurious(server.strategy, tmp_path, rounds=[5])
    config = train_config(server.trial)
    messages = curious.configure_train(1, server.arrays, config, server.grid)
    curious.aggregate_train(1, server.grid.send_and_receive(messages))
    assert list(tmp_path.iterdir()) == []
