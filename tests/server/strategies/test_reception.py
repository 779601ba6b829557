"""A reply is opened and decoded once, however many strategies are wrapped around each other."""

from collections import Counter

import pytest
from flwr.app import ArrayRecord, ConfigRecord
from flwr.serverapp.strategy import FedAvg

from clients.mods import Quantize
from fl_sim.engines.grids import LocalGrid
from fl_sim.observed.observations import round_path
from fl_sim.quantizers.sign import Sign
from fl_sim.storage.files import read_tensors
from server.strategies.curious import HonestButCurious
from server.strategies.dequantize import Dequantize
from server.strategies.sampling import SampleBySeed
from server.strategies.wrapper import Wrapper
from tests.server.strategies.test_dequantize import make_app, start
from tests.server.strategies.test_strategy import Server

NODES = {partition: partition + 2 for partition in range(3)}


@pytest.fixture
def decoded(monkeypatch):
    """Count how often each payload is decoded, by its bytes."""
    counts, decode = Counter(), Sign.decode

    def counted(self, payload):
        counts[payload.to_bytes()] += 1
        return decode(self, payload)

    monkeypatch.setattr(Sign, "decode", counted)
    return counts


def app_round(strategy, server_round=1):
    """Carry out one round of an app with three clients."""
    grid = LocalGrid(make_app(Quantize("sign")), 3)
    messages = strategy.configure_train(server_round, start(), ConfigRecord(), grid)
    return strategy.aggregate_train(server_round, grid.send_and_receive(messages))


STRATEGIES = {
    "curious": lambda store: HonestButCurious(FedAvg(), store),
    "agreed": lambda store: HonestButCurious(Dequantize(FedAvg()), store),
    "sampled": lambda store: HonestButCurious(
        SampleBySeed(Dequantize(FedAvg()), NODES, seed=0), store
    ),
    "deep": lambda store: HonestButCurious(
        Wrapper(SampleBySeed(Dequantize(FedAvg()), NODES, seed=0)), store
    ),
    "sampled inside": lambda store: HonestButCurious(SampleBySeed(FedAvg(), NODES, seed=0), store),
}


@pytest.mark.parametrize("name", STRATEGIES)
def test_the_reply_of_an_app_is_decoded_once_and_observed(name, decoded, tmp_path):
    arrays, _ = app_round(STRATEGIES[name](tmp_path))
    assert list(arrays) == list(start())
    assert sorted(decoded.values()) == [1, 1, 1]
    tensors, _ = read_tensors(round_path(tmp_path, "flower", 1))
    kept = {tensors[f"payload.{partition}"].numpy().tobytes() for partition in range(3)}
    assert kept == set(decoded)


def test_the_reply_of_a_study_is_decoded_once_and_observed(decoded, tmp_path):
    server = Server("sign")
    server.strategy = HonestButCurious(server.strategy, tmp_path)
    server.strategy.aggregate_train(1, server.replies())
    assert sorted(decoded.values()) == [1, 1, 1]
    tensors, _ = read_tensors(round_path(tmp_path, "flower", 1))
    assert sorted(tensors) == ["payload.0", "payload.1", "payload.2", "weights"]


def test_two_curious_servers_around_each_other_see_the_same(decoded, tmp_path):
    inner = HonestButCurious(FedAvg(), tmp_path, trial="inner")
    app_round(HonestButCurious(inner, tmp_path, trial="outer"))
    assert sorted(decoded.values()) == [1, 1, 1]
    one, other = (read_tensors(round_path(tmp_path, t, 1))[0] for t in ("inner", "outer"))
    assert one.keys() == other.keys()
    assert all(one[name].equal(other[name]) for name in one)


def test_parsing_a_reply_claims_no_partition():
    strategy = Dequantize(FedAvg())
    grid = LocalGrid(make_app(Quantize("sign")), 3)
    messages = strategy.configure_train(1, start(), ConfigRecord(), grid)
    first, second, _ = grid.send_and_receive(messages)
    strategy.reception.parse(first)
    second.content["facts"]["partition-id"] = first.content["facts"]["partition-id"]
    assert strategy.reception.parse(second).partition == strategy.reception.parse(first).partition
    accepted = [received for _, received, _ in strategy.reception.usable(1, [first, second])]
    assert [one.partition for one in accepted] == [first.content["facts"]["partition-id"]]


def test_what_was_received_is_of_the_last_round_alone():
    strategy = Dequantize(FedAvg())
    app_round(strategy)
    assert sorted(strategy.reception.received) == [0, 1, 2]
    assert list(strategy.reception.usable(2, [])) == []
    assert strategy.reception.received == {}
    assert isinstance(strategy.reception.sent_weights, ArrayRecord)
