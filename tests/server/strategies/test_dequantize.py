"""Somebody else's Flower app, with the two lines that quantize its uplinks and audit it."""

import logging

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp.strategy import (
    DifferentialPrivacyServerSideFixedClipping,
    FedAdam,
    FedAvg,
    FedProx,
)
from torch import nn

from clients.mods import Quantize
from fl_sim.coding.payload import Payload
from fl_sim.engines.grids import LocalGrid
from fl_sim.observed.observations import load_observations, round_path
from fl_sim.quantizers import parse_quantizer
from fl_sim.storage.files import StoreError, read_tensors
from fl_sim.updates.local_update import LocalWork
from server.strategies.curious import HonestButCurious
from server.strategies.dequantize import Dequantize
from server.strategies.reception import RoundFailedError


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))

    def forward(self, x):
        return self.body(x)


def make_app(*mods):
    """Return an app as Flower's PyTorch quick-start has it: replies with weights."""
    app = ClientApp(mods=list(mods))

    @app.train()
    def train(message: Message, context: Context) -> Message:
        model = Net()
        model.load_state_dict(message.content["arrays"].to_torch_state_dict())
        partition = int(context.node_config["partition-id"])
        generator = torch.Generator().manual_seed(partition)
        images, labels = torch.rand(6, 4, generator=generator), torch.tensor([0, 1, 2, 0, 1, 2])
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        for _ in range(3):
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(images), labels)
            loss.backward()
            optimizer.step()
        content = {
            "arrays": ArrayRecord(model.state_dict()),
            "metrics": MetricRecord({"train_loss": loss.item(), "num-examples": 6 + partition}),
        }
        return Message(RecordDict(content), reply_to=message)

    @app.evaluate()
    def evaluate(message: Message, context: Context) -> Message:
        metrics = MetricRecord({"accuracy": 0.5, "num-examples": 6})
        return Message(RecordDict({"metrics": metrics}), reply_to=message)

    return app


def start():
    torch.manual_seed(0)
    return ArrayRecord(Net().state_dict())


def train(strategy, *mods, rounds=2):
    grid = LocalGrid(make_app(*mods), 3)
    return strategy.start(grid, start(), num_rounds=rounds)


STRATEGIES = {
    "FedAvg": FedAvg,
    "FedAdam": FedAdam,
    "FedProx": lambda: FedProx(proximal_mu=0.1),
    "DP": lambda: DifferentialPrivacyServerSideFixedClipping(FedAvg(), 0.0, 1e6, 3),
}


@pytest.mark.parametrize("name", STRATEGIES)
def test_without_loss_in_quantization_any_strategy_gives_what_it_gives_alone(name, tmp_path):
    alone = train(STRATEGIES[name]())
    curious = HonestButCurious(STRATEGIES[name](), tmp_path)
    wrapped = train(curious, Quantize("none"))
    assert list(wrapped.arrays) == list(alone.arrays)
    for key, array in alone.arrays.items():
        np.testing.assert_allclose(wrapped.arrays[key].numpy(), array.numpy(), atol=1e-5)
    assert set(wrapped.train_metrics_clientapp[2]) == set(alone.train_metrics_clientapp[2])
    assert wrapped.evaluate_metrics_clientapp[1]["accuracy"] == 0.5


def test_what_travels_is_packed_and_batch_norm_statistics_are_not_quantized():
    grid = LocalGrid(make_app(Quantize("sign")), 3)
    strategy = Dequantize(FedAvg())
    messages = strategy.configure_train(1, start(), ConfigRecord(), grid)
    reply = next(iter(grid.send_and_receive(messages)))
    arrays = reply.content["arrays"]
    size = sum(p.numel() for p in Net().parameters())
    assert len(arrays["payload"].data) == 6 + len("sign") + -(-size // 8)
    assert set(arrays) == {
        "payload",
        "body.1.running_mean",
        "body.1.running_var",
        "body.1.num_batches_tracked",
    }
    assert np.frombuffer(arrays["body.1.num_batches_tracked"].data, "<i8") == [3]


def test_the_audit_sees_the_payload_the_weights_and_the_public_facts(tmp_path):
    work = LocalWork("delta", batch_size=6, learning_rate=0.1, local_steps=3)
    strategy = HonestButCurious(FedAvg(), tmp_path, work=work, rounds=[1])
    train(strategy, Quantize("uniform:bits=8"))
    (path,) = tmp_path.rglob("*.safetensors")
    assert path == round_path(tmp_path, "flower", 1)
    assert path.stat().st_mode & 0o077 == 0
    floats = sum(t.numel() for t in Net().state_dict().values() if t.is_floating_point())
    tensors, _ = read_tensors(path)
    assert tensors.pop("weights").numel() == floats
    kinds = ("payload", "statistics")  # one of each, from each client
    assert sorted(tensors) == [f"{kind}.{client}" for kind in kinds for client in range(3)]


def test_replies_are_repeatable_and_rounding_differs_by_round(tmp_path):
    def payloads(seed, folder):
        train(HonestButCurious(FedAvg(), folder), Quantize("stochastic:bits=2", seed))
        return [path.read_bytes() for path in sorted(folder.rglob("*.safetensors"))]

    assert payloads(1, tmp_path / "a") == payloads(1, tmp_path / "b")
    assert payloads(1, tmp_path / "a") != payloads(2, tmp_path / "c")


def test_error_feedback_owes_nothing_over_rounds():
    result = train(
        HonestButCurious(FedAvg(), "unused", rounds=[]), Quantize("error_feedback(sign)")
    )
    assert all(np.isfinite(array.numpy()).all() for array in result.arrays.values())


def test_a_server_that_does_not_expect_payloads_is_told_so(caplog):
    grid = LocalGrid(make_app(Quantize("sign")), 3)
    messages = list(FedAvg().configure_train(1, start(), ConfigRecord(), grid))
    (reply, *_) = grid.send_and_receive(messages)
    assert reply.has_error()
    assert "Dequantize" in reply.error.reason


class Hostile:
    """One round of three clients, whose last one can be made to misbehave."""

    def __init__(self, **agreed):
        self.strategy = Dequantize(FedAvg(), **agreed)
        grid = LocalGrid(make_app(Quantize("uniform:bits=4")), 3)
        messages = self.strategy.configure_train(1, start(), ConfigRecord(), grid)
        self.replies = list(grid.send_and_receive(messages))
        self.replies.sort(key=lambda r: r.metadata.src_node_id)
        self.last = self.replies[2].content

    def arrays(self):
        return self.last["arrays"]


def huge(hostile):
    """Declare a terabyte, and send a few bytes."""
    hostile.arrays()["body.1.running_var"] = Array("float64", (2**37,), "fl_sim.raw", b"\0" * 8)


def flower_typed(hostile):
    hostile.arrays()["body.1.running_var"] = Array(np.zeros(8, np.float32))


def infinite(hostile):
    array = hostile.arrays()["body.1.running_var"]
    hostile.arrays()["body.1.running_var"] = Array(
        array.dtype, array.shape, array.stype, np.full(8, np.inf, np.float32).tobytes()
    )


def surplus(hostile):
    hostile.arrays()["more"] = Array(np.zeros(8, np.float32))


def two_records(hostile):
    hostile.last["more"] = ArrayRecord({"payload": hostile.arrays()["payload"]})


def odd_metrics(hostile):
    hostile.last["metrics"] = MetricRecord({"num-examples": 8, "other": 1.0})


def infinite_metrics(hostile):
    hostile.last["metrics"] = MetricRecord({"num-examples": 8, "train_loss": float("nan")})


def listed_metrics(hostile):
    hostile.last["metrics"]["train_loss"] = [0.5, 0.5]


def long_count(hostile):
    hostile.last["metrics"]["train_loss"] = 10**400


def metrics_elsewhere(hostile):
    hostile.last["more"] = hostile.last["metrics"]
    del hostile.last["metrics"]


def arrays_elsewhere(hostile):
    hostile.last["more"] = hostile.arrays()
    del hostile.last["arrays"]


def empty_topk(hostile):
    layout = hostile.strategy.reception.parse(hostile.replies[2]).payload.layout
    raw = Payload("topk:keep=1e-300", b"", layout).to_bytes()
    hostile.arrays()["payload"] = Array("uint8", (len(raw),), "fl_sim.payload", raw)
    hostile.strategy.reception.quantizer = None


def true_partition(hostile):
    hostile.last["facts"]["partition-id"] = True


def another_quantizer(hostile):
    payload = hostile.strategy.reception.parse(hostile.replies[2]).payload
    update = parse_quantizer(payload.spec).decode(payload)
    other = parse_quantizer("none").encode(update, torch.Generator())
    raw = Array("uint8", (other.nbytes,), "fl_sim.payload", other.to_bytes())
    hostile.arrays()["payload"] = raw


def lie(hostile):
    hostile.last["metrics"]["num-examples"] = 10**9


def steal_partition(hostile):
    hostile.last["facts"]["partition-id"] = 0


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (huge, "shape"),
        (flower_typed, "plain type"),
        (infinite, "not finite"),
        (surplus, "arrays are not those"),
        (two_records, "one record of arrays"),
        (odd_metrics, "metrics"),
        (infinite_metrics, "metrics"),
        (listed_metrics, "metrics"),
        (long_count, "reply of partition 2"),
        (metrics_elsewhere, "metrics"),
        (arrays_elsewhere, "records"),
        (empty_topk, "reply of partition 2"),
        (true_partition, "does not say which partition"),
        (another_quantizer, "not as agreed"),
        (lie, "1000000000 examples"),
        (steal_partition, "partition 0"),
    ],
)
def test_a_client_that_misbehaves_is_refused_and_reported(spoil, reason, caplog):
    honest, hostile = (
        Hostile(quantizer="uniform:bits=4", examples=range(1, 100)) for _ in range(2)
    )
    expected, _ = honest.strategy.aggregate_train(1, honest.replies[:2])
    spoil(hostile)
    with caplog.at_level(logging.WARNING, "fl_sim"):
        arrays, _ = hostile.strategy.aggregate_train(1, hostile.replies)
    assert reason in caplog.text
    for key, array in expected.items():
        assert np.array_equal(arrays[key].numpy(), array.numpy())


@pytest.mark.parametrize(
    "spoilt",
    [
        {"metrics": MetricRecord({"accuracy": [0.5, 0.5], "num-examples": 6})},
        {"metrics": MetricRecord({"accuracy": float("nan"), "num-examples": 6})},
        {"metrics": MetricRecord({"accuracy": 10**400, "num-examples": 6})},
        {"metrics": MetricRecord({"accuracy": 0.5, "num-examples": -12})},
        {"metrics": MetricRecord({"accuracy": 0.5})},
        {"more": MetricRecord({"accuracy": 0.5, "num-examples": 6})},
        {},
    ],
)
def test_a_client_that_spoils_an_evaluation_is_refused_and_the_others_count(spoilt, caplog):
    strategy = HonestButCurious(FedAvg(), "unused", rounds=[])
    grid = LocalGrid(make_app(Quantize("none")), 3)
    messages = strategy.configure_evaluate(1, start(), ConfigRecord(), grid)
    replies = list(grid.send_and_receive(messages))
    replies[0].content = RecordDict(spoilt)
    with caplog.at_level(logging.WARNING, "fl_sim"):
        metrics = strategy.aggregate_evaluate(1, replies)
    assert metrics["accuracy"] == 0.5
    assert f"node {replies[0].metadata.src_node_id}" in caplog.text
    for reply in replies:
        reply.content = RecordDict()
    assert strategy.aggregate_evaluate(1, replies) is None


def dp(strategy):
    return DifferentialPrivacyServerSideFixedClipping(strategy, 0.0, 1e6, 3)


@pytest.mark.parametrize("wrap", [lambda strategy: strategy, dp])
def test_metrics_may_have_any_name_and_averages_any_weight(wrap):
    class Renamed:
        """Call the metrics of a reply what an app likes, and weigh clients by 0.5, 1 and 1.5."""

        def __call__(self, message, context, call_next):
            reply = call_next(message, context)
            reply.content["mine"] = MetricRecord(
                {"loss": 1.0, "weight": (context.node_config["partition-id"] + 1) / 2}
            )
            del reply.content["metrics"]
            return reply

    def averaged(strategy, *mods):
        return strategy.start(LocalGrid(make_app(*mods), 3), start(), num_rounds=1)

    def make():
        return wrap(FedAvg(fraction_evaluate=0.0, weighted_by_key="weight"))

    alone = averaged(make(), Renamed())
    found = averaged(Dequantize(make()), Quantize("none"), Renamed())
    for name, array in alone.arrays.items():
        np.testing.assert_allclose(found.arrays[name].numpy(), array.numpy(), atol=1e-5)
    assert found.train_metrics_clientapp[1]["loss"] == pytest.approx(1)


def test_a_round_in_which_all_misbehave_raises():
    hostile = Hostile(quantizer="sign")
    with pytest.raises(RoundFailedError, match="none of 3 clients"):
        hostile.strategy.aggregate_train(1, hostile.replies)


def test_observations_without_a_model_ask_for_it(tmp_path):
    train(HonestButCurious(FedAvg(), tmp_path), Quantize("sign"), rounds=1)
    with pytest.raises(StoreError, match="not an observation"):
        load_observations(round_path(tmp_path, "flower", 1))
