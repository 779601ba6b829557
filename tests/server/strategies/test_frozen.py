"""What an audit knows of a model of which a part is frozen, tied or constant."""

from functools import partial

import pytest
import torch
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp.strategy import FedAvg
from torch import nn

from clients.mods import Quantize
from fl_sim.engines.grids import LocalGrid
from fl_sim.models import ModelSpec, register_model
from fl_sim.observed.observations import load_observations, round_path
from fl_sim.quantizers import parse_quantizer
from fl_sim.updates.local_update import LocalWork, flat_model, local_update, one_hot
from server.auditing.app_audit import audit
from server.strategies.curious import HonestButCurious


class Net(nn.Module):
    def __init__(self, tied=False):
        super().__init__()
        self.body = nn.Linear(4, 4)
        self.middle = nn.Linear(4, 4)
        if tied:
            self.middle.weight = self.body.weight
        self.register_buffer("std", torch.tensor([0.1, 0.2, 0.3, 0.4]))
        self.scale = nn.Parameter(torch.tensor(1.5))
        self.head = nn.Linear(4, 3)

    def forward(self, x):
        return self.head(self.scale * self.middle((self.body(x.flatten(1)) / self.std).tanh()))


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("frozen", ["none", ("body", "scale"), ("body", "middle"), "head"])
def test_the_update_of_the_clients_own_batch_is_the_one_it_sent(tied, frozen, tmp_path):
    app = ClientApp(mods=[Quantize("none")])
    images, labels = torch.rand(2, 1, 2, 2), torch.tensor([0, 2])

    @app.train()
    def train(message: Message, context: Context) -> Message:
        model = Net(tied)
        model.load_state_dict(message.content["arrays"].to_torch_state_dict())
        moved = [p for name, p in model.named_parameters() if not name.startswith(frozen)]
        optimizer = torch.optim.SGD(moved, lr=0.1)
        nn.functional.cross_entropy(model(images), labels).backward()
        optimizer.step()
        metrics = MetricRecord({"num-examples": 2})
        content = {"arrays": ArrayRecord(model.state_dict()), "metrics": metrics}
        return Message(RecordDict(content), reply_to=message)

    work = LocalWork("delta", batch_size=2, learning_rate=0.1)
    strategy = HonestButCurious(FedAvg(fraction_evaluate=0.0), tmp_path, work=work)
    strategy.start(LocalGrid(app, 2), ArrayRecord(Net(tied).state_dict()), num_rounds=2)
    register_model("frozen-net", partial(Net, tied))
    spec = ModelSpec("frozen-net", (1, 2, 2), 3)
    seen = [
        one
        for server_round in (1, 2)
        for one in load_observations(round_path(tmp_path, "flower", server_round), spec)
    ]
    assert len(seen) == 4
    for one in seen:
        model = flat_model(one.model)
        targets = one_hot(labels, 3)
        sent = parse_quantizer("none").decode(one.payload).vector
        for eager in (False, True):
            found = local_update(model, one.work, one.weights, images, targets, eager=eager)
            torch.testing.assert_close(found, sent, rtol=1e-3, atol=1e-6)
    found = audit(
        tmp_path,
        partial(Net, tied),
        shape=(1, 2, 2),
        classes=3,
        attacks=["cell:iterations=2,restarts=0"],
    )
    assert len(found) == 4


def test_an_audit_says_that_clients_train_with_dropout(tmp_path):
    def net():
        return nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(4, 3))

    app = ClientApp(mods=[Quantize("none")])

    @app.train()
    def train(message: Message, context: Context) -> Message:
        model = net()
        model.load_state_dict(message.content["arrays"].to_torch_state_dict())
        nn.functional.cross_entropy(model(torch.rand(1, 1, 2, 2)), torch.tensor([1])).backward()
        torch.optim.SGD(model.parameters(), lr=0.1).step()
        metrics = MetricRecord({"num-examples": 1})
        content = {"arrays": ArrayRecord(model.state_dict()), "metrics": metrics}
        return Message(RecordDict(content), reply_to=message)

    work = LocalWork("delta", learning_rate=0.1)
    strategy = HonestButCurious(FedAvg(fraction_evaluate=0.0), tmp_path, work=work)
    strategy.start(LocalGrid(app, 2), ArrayRecord(net().state_dict()), num_rounds=1)
    with pytest.warns(RuntimeWarning, match=r"train with dropout \(1\)"):
        audit(tmp_path, net, shape=(1, 2, 2), classes=3, attacks=["cell:iterations=1,restarts=0"])
