"""What clients of anybody's app send of generated models: frozen parts, ties, buffers, scalars."""

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp.strategy import FedAvg
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from clients.mods import Quantize
from fl_sim.engines.grids import LocalGrid
from server.strategies.dequantize import Dequantize

SPECS = (
    *(
        "sign",
        "uniform:bits=2",
        "gaussian:sigma=0.1",
        "eden:bits=2",
        "drive",
        "qsgd:levels=4,norm=l2",
    ),
    *("topk:keep=0.3", "error_feedback(sign)", "none"),
)


class Generated(nn.Module):
    """Two layers, and what people put beside them."""

    def __init__(self, tied, buffers, scalar):
        super().__init__()
        self.first = nn.Linear(4, 4)
        self.second = nn.Linear(4, 4)
        if tied:
            self.second.weight = self.first.weight
        if buffers:
            self.register_buffer("std", torch.tensor([0.1, 0.2, 0.3, 0.4]))
            self.register_buffer("epsilon", torch.tensor(1e-5))
        self.scale = nn.Parameter(torch.tensor(1.5)) if scalar else 1.5

    def forward(self, x):
        x = x / self.std if hasattr(self, "std") else x
        return self.scale * self.second(self.first(x).tanh())


def one_round(model, frozen, spec, rounds=1):
    """Return the weights that went out, a reply as it travelled, and one as the strategy saw it."""
    app = ClientApp(mods=[Quantize(spec)])

    @app.train()
    def train(message: Message, context: Context) -> Message:
        model.load_state_dict(message.content["arrays"].to_torch_state_dict())
        partition = int(context.node_config["partition-id"])
        generator = torch.Generator().manual_seed(partition)
        images = torch.rand(6, 4, generator=generator)
        moved = [p for name, p in model.named_parameters() if not name.startswith(frozen)]
        loss = nn.functional.cross_entropy(model(images), torch.tensor([0, 1, 2, 3, 0, 1]))
        for parameter, slope in zip(
            moved, torch.autograd.grad(loss, moved) if moved else (), strict=True
        ):
            parameter.data -= 0.1 * slope
        metrics = MetricRecord({"num-examples": 6})
        arrays = ArrayRecord(model.state_dict())
        return Message(RecordDict({"arrays": arrays, "metrics": metrics}), reply_to=message)

    grid, strategy = LocalGrid(app, 2), Dequantize(FedAvg())
    arrays = ArrayRecord(model.state_dict())
    seen = []
    for server_round in range(1, rounds + 1):
        messages = strategy.configure_train(server_round, arrays, ConfigRecord(), grid)
        replies = list(grid.send_and_receive(messages))
        sent = [RecordDict(dict(reply.content)) for reply in replies]
        given = arrays
        arrays, _ = strategy.aggregate_train(server_round, replies)
        seen.append((given, sent[0], replies[0].content["arrays"]))
    return seen


@settings(max_examples=30, deadline=None)
@given(
    tied=st.booleans(),
    buffers=st.booleans(),
    scalar=st.booleans(),
    frozen=st.sampled_from(["none", "first", "second", ("first", "second"), "first.bias", ""]),
    spec=st.sampled_from(SPECS),
)
def test_what_a_client_did_not_change_arrives_to_the_bit(tied, buffers, scalar, frozen, spec):
    torch.manual_seed(0)
    model = Generated(tied, buffers, scalar)
    start = {name: array.numpy().copy() for name, array in ArrayRecord(model.state_dict()).items()}
    changed = {name for name, _ in model.named_parameters() if not name.startswith(frozen)}
    ((_, sent, seen),) = one_round(model, frozen, spec)
    assert list(seen) == list(start)
    for name, before in start.items():
        own = "first.weight" if tied and name == "second.weight" else name
        if own not in changed:
            assert seen[name].numpy().tobytes() == before.tobytes(), name
    if tied:
        assert np.array_equal(seen["first.weight"].numpy(), seen["second.weight"].numpy())
    assert list(sent["arrays"]) == ["payload"]
    size = sum(p.numel() for name, p in model.named_parameters() if name in changed)
    if spec == "sign":
        assert len(sent["arrays"]["payload"].data) == 6 + len("sign") + -(-size // 8)


@pytest.mark.parametrize("spec", SPECS)
def test_frozen_weights_and_constants_stay_where_they_are_over_rounds(spec):
    torch.manual_seed(0)
    model = Generated(tied=False, buffers=True, scalar=True)
    start = {name: value.clone() for name, value in model.state_dict().items()}
    *_, (given, _, _) = one_round(model, "first", spec, rounds=4)
    for name in ("first.weight", "first.bias", "std", "epsilon"):
        np.testing.assert_allclose(given[name].numpy(), start[name].numpy(), rtol=1e-6)
    assert not np.array_equal(given["second.weight"].numpy(), start["second.weight"].numpy())


@pytest.mark.parametrize(
    "changes",
    [
        {"quantized": [0, 0], "same": []},
        {"quantized": [99], "same": []},
        {"quantized": [0], "same": [1]},
        {"quantized": [0], "same": [1, 0]},
        {"quantized": [0], "same": [2, 3]},
        {"quantized": [0.5], "same": []},
        {"quantized": [], "same": "ab"},
    ],
)
def test_a_client_that_misstates_what_it_changed_is_refused_and_the_round_goes_on(changes, caplog):
    model = Generated(tied=False, buffers=False, scalar=False)
    app = ClientApp(mods=[Quantize("sign")])

    @app.train()
    def train(message: Message, context: Context) -> Message:
        arrays = {
            n: Array(a.numpy() + np.float32(0.1)) for n, a in message.content["arrays"].items()
        }
        content = {"arrays": ArrayRecord(arrays), "metrics": MetricRecord({"num-examples": 6})}
        return Message(RecordDict(content), reply_to=message)

    grid, strategy = LocalGrid(app, 2), Dequantize(FedAvg())
    start = ArrayRecord(model.state_dict())
    replies = list(grid.send_and_receive(strategy.configure_train(1, start, ConfigRecord(), grid)))
    replies[1].content["changes"] = ConfigRecord(changes)
    arrays, _ = strategy.aggregate_train(1, replies)
    assert arrays is not None
    assert caplog.text.count("dropped the reply") == 1


def test_weights_that_overflow_their_own_type_are_refused(caplog):
    model = Generated(tied=False, buffers=False, scalar=False).half()
    app = ClientApp(mods=[Quantize("none")])

    @app.train()
    def train(message: Message, context: Context) -> Message:
        high = 1 if context.node_config["partition-id"] == 0 else -1
        arrays = {
            n: Array(np.full_like(a.numpy(), high * 6e4))
            for n, a in message.content["arrays"].items()
        }
        content = {"arrays": ArrayRecord(arrays), "metrics": MetricRecord({"num-examples": 6})}
        return Message(RecordDict(content), reply_to=message)

    grid, strategy = LocalGrid(app, 2), Dequantize(FedAvg())
    start = ArrayRecord(
        {
            n: Array(np.full(v.shape, 6e4 if n == "first.bias" else 0, np.float16))
            for n, v in model.state_dict().items()
        }
    )
    replies = list(grid.send_and_receive(strategy.configure_train(1, start, ConfigRecord(), grid)))
    own = strategy.reception.parse(replies[0]).payload
    spoiled = type(own)(own.spec, (np.frombuffer(own.body, "<f4") * 3).tobytes(), own.layout)
    raw = spoiled.to_bytes()
    replies[0].content["arrays"]["payload"] = Array("uint8", (len(raw),), "fl_sim.payload", raw)
    arrays, _ = strategy.aggregate_train(1, replies)
    assert "is not finite as float16" in caplog.text
    assert all(np.isfinite(array.numpy()).all() for array in arrays.values())
