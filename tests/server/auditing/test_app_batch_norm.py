"""Apps whose model has BatchNorm: what an audit knows of layers in training and evaluation mode."""

import logging
from functools import partial

import numpy as np
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
from fl_sim.updates.local_update import LocalWork, flat_model, local_reply, one_hot
from results.assumptions import assumptions
from server.auditing.app_audit import audit
from server.strategies.curious import HonestButCurious

MODES = {"training": (True, True), "evaluation": (False, False), "mixed": (True, False)}
WORK = LocalWork("delta", 3, 0.1, 2, 1, momentum=0.9)


class Net(nn.Module):
    """Two layers with BatchNorm; of each, ``modes`` says whether it is in training mode."""

    def __init__(self, modes=(True, True), counted=False):
        super().__init__()
        self.first, self.one = nn.Linear(4, 5), nn.BatchNorm1d(5)
        self.second, self.other = nn.Linear(5, 4), nn.BatchNorm1d(4)
        self.head = nn.Linear(4, 3)
        self.modes = modes
        if counted:
            self.register_buffer("calls", torch.tensor(0))

    def forward(self, x):
        hidden = torch.tanh(self.one(self.first(x.flatten(1))))
        return self.head(torch.tanh(self.other(self.second(hidden))))

    def for_training(self):
        self.one.train(self.modes[0])
        self.other.train(self.modes[1])
        return self


def batch(partition):
    draw = torch.Generator().manual_seed(partition)
    return torch.rand(3, 1, 2, 2, generator=draw), torch.randint(3, (3,), generator=draw)


def observe(folder, build, rounds=2):
    app = ClientApp(mods=[Quantize("none")])

    @app.train()
    def train(message: Message, context: Context) -> Message:
        model = build()
        model.load_state_dict(message.content["arrays"].to_torch_state_dict())
        images, labels = batch(int(context.node_config["partition-id"]))
        sgd = torch.optim.SGD(model.for_training().parameters(), 0.1, 0.9)
        for _ in range(2):
            sgd.zero_grad()
            nn.functional.cross_entropy(model(images), labels).backward()
            sgd.step()
        if hasattr(model, "calls"):
            model.calls += 1
        metrics = MetricRecord({"num-examples": 3})
        content = {"arrays": ArrayRecord(model.state_dict()), "metrics": metrics}
        return Message(RecordDict(content), reply_to=message)

    strategy = HonestButCurious(FedAvg(fraction_evaluate=0.0), folder, work=WORK)
    torch.manual_seed(0)
    return strategy.start(LocalGrid(app, 2), ArrayRecord(build().state_dict()), num_rounds=rounds)


@pytest.mark.parametrize("mode", MODES)
def test_layers_are_attacked_in_the_mode_in_which_they_were_trained(mode, tmp_path):
    build = partial(Net, MODES[mode])
    observe(tmp_path, build)
    register_model("batch-norm-net", build)
    decode = parse_quantizer("none").decode
    for server_round in (1, 2):
        path = round_path(tmp_path, "flower", server_round)
        for one in load_observations(path, ModelSpec("batch-norm-net", (1, 2, 2), 3)):
            model = flat_model(one.model)
            names = {name.partition(".")[0] for name, _ in model.statistics.segments}
            assert names == {n for n, on in zip(("one", "other"), MODES[mode], strict=True) if on}
            assert (one.statistics is None) == (mode == "evaluation")
            sent = torch.zeros(0) if one.statistics is None else one.statistics.sent
            images, labels = batch(one.partition)
            reply = local_reply(model, WORK, one.weights, sent, images, one_hot(labels, 3))
            update = decode(one.payload).vector
            torch.testing.assert_close(reply.update, update, rtol=1e-3, atol=1e-5)
            if one.statistics is not None:
                change = decode(one.statistics.payload).vector
                torch.testing.assert_close(reply.statistics, change, rtol=1e-3, atol=1e-6)
                assert change.norm() > 0


def test_an_audit_reads_the_statistics_and_its_report_says_so(tmp_path):
    trained = observe(tmp_path, Net, rounds=1)
    facts = {"shape": (1, 2, 2), "classes": 3, "work": WORK}
    found = audit(tmp_path, Net, attacks=["cell:iterations=2,restarts=0"], **facts)
    assert len(found) == 2
    assert "BatchNorm layers are in training mode; their running statistics are read." in (
        assumptions(found.observations)
    )
    seen = found.observations[0].statistics
    assert torch.equal(seen.sent[:5], torch.zeros(5))
    assert np.abs(trained.arrays["one.running_mean"].numpy()).max() > 0


def test_other_buffers_that_training_changes_are_named(tmp_path, caplog):
    build = partial(Net, counted=True)
    with caplog.at_level(logging.WARNING, "fl_sim"):
        observe(tmp_path, build)
    (said,) = [r for r in caplog.records if getattr(r, "event", "") == "not attackable"]
    assert "changes buffers (calls)" in said.getMessage()
    register_model("counting-net", build)
    spec = ModelSpec("counting-net", (1, 2, 2), 3)
    path, unreadable = round_path(tmp_path, "flower", 1), []
    assert load_observations(path, spec, unreadable=unreadable) == []
    assert all("training changes 'calls', which is no parameter" in one for one in unreadable)
