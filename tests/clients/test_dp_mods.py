"""Flower's mods of differential privacy in front of ours, through the in-process engine."""

import logging
import re

import pytest
import torch
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.clientapp.mod import LocalDpMod, adaptiveclipping_mod, fixedclipping_mod
from flwr.serverapp.strategy import (
    DifferentialPrivacyClientSideAdaptiveClipping,
    DifferentialPrivacyClientSideFixedClipping,
    FedAvg,
)
from torch import nn

from clients import Quantize
from fl_sim.engines.grids import LocalGrid
from fl_sim.models import spec_of_app
from fl_sim.observed.observations import load_observations, round_path
from fl_sim.privacy.accountant import GaussianGuarantee
from fl_sim.privacy.local_dp import local_dp_spec
from fl_sim.quantizers import parse_quantizer
from fl_sim.updates.local_update import LocalWork
from server import HonestButCurious
from server.strategies.reception import RoundFailedError

SIZE = 50 * 10 + 10


def build():
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(50, 10))


def change(partition):
    """Return what a client adds to the weights: far longer than the norm it is clipped to."""
    return torch.full((SIZE,), 1.0 + partition)


def make_app(*mods):
    app = ClientApp(mods=list(mods))

    @app.train()
    def train(message: Message, context: Context) -> Message:
        model = build()
        model.load_state_dict(message.content["arrays"].to_torch_state_dict())
        with torch.no_grad():
            vector = nn.utils.parameters_to_vector(model.parameters())
            moved = vector + change(int(context.node_config["partition-id"]))
            nn.utils.vector_to_parameters(moved, model.parameters())
        content = {
            "arrays": ArrayRecord(model.state_dict()),
            "metrics": MetricRecord({"num-examples": 1}),
        }
        return Message(RecordDict(content), reply_to=message)

    return app


def observe(root, strategy, *mods):
    """Train one round; return what the server receives of each client, new minus old weights."""
    curious = HonestButCurious(strategy, root)
    start = ArrayRecord(build().state_dict())
    result = curious.start(LocalGrid(make_app(*mods), 3), start, num_rounds=1)
    model = spec_of_app(build, (1, 5, 10), 10)
    seen = load_observations(round_path(root, "flower", 1), model, LocalWork("delta"))
    received = [parse_quantizer(one.payload.spec).decode(one.payload).vector for one in seen]
    return [-one for one in received], result


def without_evaluation():
    return FedAvg(fraction_evaluate=0)


def test_what_local_dp_clips_and_noises_is_quantized(tmp_path):
    mod = LocalDpMod(clipping_norm=0.5, sensitivity=1.0, epsilon=1e6, delta=1e-5)
    received, _ = observe(tmp_path, without_evaluation(), Quantize("fp16"), mod)
    for one in received:
        assert float(one.norm()) == pytest.approx(0.5, rel=1e-2)


def test_its_noise_and_its_epsilon_are_those_of_the_spec(tmp_path):
    facts = (0.5, 1.0, 1.0, 1e-5)
    spec = local_dp_spec(*facts)
    quantizer = parse_quantizer(spec)
    received, _ = observe(tmp_path, without_evaluation(), Quantize("none"), LocalDpMod(*facts))
    noise = torch.cat([one - 0.5 * change(0) / change(0).norm() for one in received])
    assert float(noise.std()) == pytest.approx(quantizer.noise_deviation, rel=0.1)
    guarantee = quantizer.guarantee(SIZE)
    assert guarantee == GaussianGuarantee(0.5 / quantizer.noise_deviation)
    # The sensitivity is twice the norm: the exact epsilon is a little below the mod's own.
    assert 0.5 < guarantee.epsilon(1, 1e-5) < 1
    assert guarantee.epsilon(10, 1e-5) > 2
    with pytest.raises(ValueError, match="epsilon=0 is not allowed"):
        local_dp_spec(0.5, 1.0, 0, 1e-5)
    with pytest.raises(ValueError, match="delta=2 is not allowed"):
        local_dp_spec(0.5, 1.0, 1.0, 2)


@pytest.mark.parametrize(
    ("wrapper", "mod"),
    [
        (
            lambda inner: DifferentialPrivacyClientSideFixedClipping(inner, 0.0, 0.25, 3),
            fixedclipping_mod,
        ),
        (
            lambda inner: DifferentialPrivacyClientSideAdaptiveClipping(
                inner, 0.0, 3, initial_clipping_norm=0.25, clipped_count_stddev=0.0
            ),
            adaptiveclipping_mod,
        ),
    ],
    ids=["fixed", "adaptive"],
)
def test_clipping_by_the_norm_that_the_server_names(tmp_path, wrapper, mod):
    strategy = wrapper(without_evaluation())
    received, result = observe(tmp_path, strategy, Quantize("stochastic:bits=8"), mod)
    assert len(received) == 3
    for one in received:
        assert float(one.norm()) == pytest.approx(0.25, rel=0.05)
    moved = nn.utils.parameters_to_vector(
        [torch.from_numpy(array.numpy()) for array in result.arrays.values()]
    ) - nn.utils.parameters_to_vector(build().parameters())
    assert float(moved.norm()) == pytest.approx(0.25, rel=0.05)


@pytest.mark.parametrize("mod", [LocalDpMod(0.5, 1.0, 1.0, 1e-5), fixedclipping_mod])
def test_the_wrong_order_is_refused_with_its_reason(tmp_path, caplog, mod):
    strategy = DifferentialPrivacyClientSideFixedClipping(without_evaluation(), 0.0, 0.25, 3)
    with (
        caplog.at_level(logging.WARNING, "fl_sim.server"),
        pytest.raises(RoundFailedError, match="none of 3 clients"),
    ):
        observe(tmp_path, strategy, mod, Quantize("sign"))
    lines = [r.getMessage() for r in caplog.records if r.name == "fl_sim.server"]
    reason = "the client failed: .* expects the keys in the ArrayRecord of the reply .* do not"
    assert sum(bool(re.search(reason, line)) for line in lines) == 3
    assert not any("\n" in line for line in lines)
