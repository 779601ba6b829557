"""A client that inspects what it is sent: honest models pass, planted ones are declined."""

import logging

import pytest
import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp.strategy import FedAvg
from torch import nn

from clients import Inspect, Quantize
from clients.signs import (
    LIMITS,
    layers_of,
    signs_of_batch,
    signs_of_change,
    signs_of_weights,
    suspicion,
)
from fl_sim.engines.grids import LocalGrid
from fl_sim.models import ModelSpec
from fl_sim.plans import Imprint, Traps
from fl_sim.updates.local_update import flat_model
from server import Malicious
from server.strategies.reception import RoundFailedError
from tests.attacker.observing import digits, initial_weights


def build():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10))


def tensors(spec, plan=None):
    weights = initial_weights(spec)
    if plan is not None:
        weights = plan.weights(spec, weights, digits(500, seed=1)[0])
    return flat_model(spec).layout.unflatten(weights.detach())


RELU = ModelSpec("mlp:activation=relu", (1, 8, 8), 10)
IMPRINTED = ModelSpec("imprint(lenet)", (1, 8, 8), 10)


@pytest.mark.parametrize("model", ["lenet", "mlp", "convnet", "mlp:activation=relu"])
def test_models_as_they_are_built_are_not_suspicious(model):
    assert suspicion(signs_of_weights(tensors(ModelSpec(model, (1, 8, 8), 10)))) < 1


@pytest.mark.parametrize(
    ("spec", "plan", "expected"),
    [(RELU, Traps(), {"even"}), (IMPRINTED, Imprint(), {"copies", "alike", "constant"})],
)
def test_planted_weights_show_the_signs_that_they_are_made_of(spec, plan, expected):
    signs = signs_of_weights(tensors(spec, plan))
    assert {name for name, value in signs.items() if value > LIMITS[name]} >= expected


def test_signs_of_weights_whose_values_are_known():
    eye = {"weight": torch.eye(16), "bias": torch.full((16,), 0.5)}
    signs = signs_of_weights(eye)
    assert signs["concentrated"] == 1
    assert signs["empty"] == pytest.approx(15 / 16)
    assert signs["biased"] == pytest.approx(0.5)
    assert signs["constant"] == pytest.approx(1 / 4)
    assert signs["copies"] == 0
    rows = torch.randn(8, 20, generator=torch.Generator().manual_seed(0))
    rows[5] = -3 * rows[2]
    assert signs_of_weights({"weight": rows})["copies"] == pytest.approx(2 / 8)
    assert signs_of_weights({"bias": torch.ones(9), "weight": torch.ones(2, 2)}) == {}
    assert signs_of_weights({"weight": torch.zeros(8, 20)})["empty"] == 1


def test_a_bias_belongs_to_the_weight_of_its_name():
    (layer,) = layers_of({"a.weight": torch.ones(4, 5), "a.bias": torch.ones(4)})
    assert layer.bias is not None
    (layer,) = layers_of({"a.weight": torch.ones(4, 5), "b.bias": torch.ones(4)})
    assert layer.bias is None


def test_signs_of_change():
    old = {"one": torch.ones(4, 4), "two": torch.ones(4, 4)}
    assert signs_of_change(old, old) == {"moved": 0, "still": 0}
    new = {"one": torch.full((4, 4), 3.0), "two": torch.ones(4, 4)}
    assert signs_of_change(new, old) == {"moved": 2, "still": 0.5}


def test_an_image_that_has_a_unit_and_a_layer_to_itself_is_noticed():
    spec = ModelSpec("mlp:activation=relu", (1, 8, 8), 10)
    model, images = flat_model(spec), torch.zeros(4, 1, 8, 8)
    images[2] = 1
    views = model.layout.unflatten(initial_weights(spec).detach().clone())
    views["body.0.weight"].fill_(0.01)
    views["body.0.bias"].fill_(-0.1)  # what is black does not pass
    weights = model.layout.flatten(views)
    signs = signs_of_batch(model, weights, images, torch.tensor([0, 1, 2, 3]))
    assert signs["lonely"] == 1
    assert signs["disaggregated"] > 1e6
    alike = signs_of_batch(model, weights, torch.ones(4, 1, 8, 8), torch.tensor([3, 3, 3, 3]))
    assert alike["lonely"] == 0
    assert alike["disaggregated"] == pytest.approx(1 / 3, rel=1e-4)


def client(*mods, **inspect):
    app = ClientApp(mods=[Inspect(build, **inspect), *mods])

    @app.train()
    def train(message: Message, context: Context) -> Message:
        model = build()
        model.load_state_dict(message.content["arrays"].to_torch_state_dict())
        images, labels = batch(context)
        nn.functional.cross_entropy(model(images), labels).backward()
        torch.optim.SGD(model.parameters(), lr=0.1).step()
        content = {
            "arrays": ArrayRecord(model.state_dict()),
            "metrics": MetricRecord({"num-examples": len(images)}),
        }
        return Message(RecordDict(content), reply_to=message)

    return app


def batch(context):
    first = 8 * int(context.node_config["partition-id"])
    images, labels = digits(100)
    return images[first : first + 8], labels[first : first + 8]


def arrays(net=build):
    torch.manual_seed(0)
    return ArrayRecord(net().state_dict())


def start(strategy, app, sent=None, rounds=3):
    grid = LocalGrid(app, 2)
    config = ConfigRecord({"lr": 0.1})
    strategy.start(grid, sent or arrays(), num_rounds=rounds, train_config=config)


def test_an_honest_training_is_not_suspected(caplog):
    with caplog.at_level(logging.WARNING, "fl_sim.clients"):
        start(FedAvg(fraction_evaluate=0), client(batch=batch, decline=True))
    assert "suspicious" not in caplog.text


def test_a_planted_model_is_logged_with_its_signs_and_trained(tmp_path, caplog):
    facts = {"model": build, "public": digits(500, seed=1)[0], "store": tmp_path}
    with caplog.at_level(logging.WARNING, "fl_sim.clients"):
        start(
            Malicious(FedAvg(fraction_evaluate=0), "traps", **facts),
            client(Quantize("none"), batch=batch),
            rounds=1,
        )
    assert "the model that was sent is suspicious: even" in caplog.text
    assert len(list(tmp_path.rglob("*.safetensors"))) == 1


def test_a_client_that_declines_is_named_and_counted_by_the_server(tmp_path, caplog):
    facts = {"model": build, "public": digits(500, seed=1)[0], "store": tmp_path}
    strategy = Malicious(FedAvg(fraction_evaluate=0), "traps", **facts)
    with pytest.raises(RoundFailedError, match="none of 2 clients"):
        start(strategy, client(Quantize("none"), decline=True), rounds=1)
    assert "the client failed: declined a suspicious model: even" in caplog.text
    assert not list(tmp_path.rglob("*.safetensors"))


def test_another_architecture_is_declined_whatever_its_weights(tmp_path, caplog):
    def wider():
        return nn.Sequential(nn.Flatten(), nn.Linear(64, 99), nn.ReLU(), nn.Linear(99, 10))

    facts = {"model": wider, "public": digits(500, seed=1)[0], "store": tmp_path}
    strategy = Malicious(FedAvg(fraction_evaluate=0), "traps", **facts)
    with pytest.raises(RoundFailedError):
        start(strategy, client(Quantize("none"), decline=True), arrays(wider), rounds=1)
    assert "1.weight is (99, 64), not (128, 64) as expected" in caplog.text


def test_a_limit_that_is_no_sign_or_not_positive_is_refused():
    with pytest.raises(ValueError, match=r"^limits: 'evn' = 1; give positive limits of copies,"):
        Inspect(build, limits={"evn": 1})
    with pytest.raises(ValueError, match=r"^limits: 'even' = 0; "):
        Inspect(build, limits={"even": 0})
