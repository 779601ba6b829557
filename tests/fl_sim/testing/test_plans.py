"""The check of server plans passes ours, and finds what is broken."""

from dataclasses import dataclass
from itertools import count
from typing import ClassVar

import numpy as np
import pytest
import torch

from fl_sim import register
from fl_sim.plans import ServerPlan
from fl_sim.registry import names
from fl_sim.testing import ContractError, check_server_plan

RELU = "mlp:activation=relu,width=16"
FITTING = {"traps": RELU, "thresholds": "cnn", "ares": RELU, "inconsistent": RELU}
"""Models for plans that need more than any."""

_numbers = count()


@dataclass(frozen=True)
class Zeros(ServerPlan):
    """A plan that keeps all promises: sets the first weights to zero."""

    threat: ClassVar[str] = "malicious: zeroes"
    share: float = 0.5

    def weights(self, model, weights, public):
        changed = weights.clone()
        changed[: int(self.share * len(changed))] = 0
        return changed


class Again(Zeros):
    def weights(self, model, weights, public):
        return weights + 1


class InPlace(Zeros):
    def weights(self, model, weights, public):
        return weights.zero_()


class InPlacePublic(Zeros):
    def weights(self, model, weights, public):
        public.zero_()
        return weights


class Short(Zeros):
    def weights(self, model, weights, public):
        return weights[1:]


class Infinite(Zeros):
    def weights(self, model, weights, public):
        return weights / 0


class Draws(Zeros):
    def weights(self, model, weights, public):
        return torch.full_like(weights, float(np.random.default_rng().random()))


class DrawsGlobally(Zeros):
    def weights(self, model, weights, public):
        return torch.rand(weights.shape)


class NoThreat(Zeros):
    threat = ""


class NoModel(Zeros):
    def model(self, name):
        return f"{name}-planted"


class Forgets(Zeros):
    def __eq__(self, other):
        return self is other

    __hash__ = None


BROKEN = {
    Again: "planting twice is not the same as once",
    InPlace: "changes the weights or public images",
    InPlacePublic: "changes the weights or public images",
    Short: "weights are torch.float32",
    Infinite: "a weight is not finite",
    Draws: "the same weights are planted differently",
    DrawsGlobally: "changes the global random state of PyTorch",
    NoThreat: "threat '' is not one line",
    Forgets: "parses to another plan",
}


def registered(kind):
    name = f"broken{next(_numbers)}"
    register("server", name)(kind)
    return name


@pytest.mark.parametrize("name", names("server"))
def test_our_plans_pass(name):
    spec = "inconsistent:target=1(traps)" if name == "inconsistent" else name
    check_server_plan(spec, FITTING.get(name, "lenet"))


def test_a_plan_that_keeps_all_promises_passes():
    check_server_plan(registered(Zeros))
    check_server_plan(Zeros(0.25))


@pytest.mark.parametrize("kind", BROKEN, ids=lambda kind: kind.__name__)
def test_what_is_broken_is_named(kind):
    name = registered(kind)
    with pytest.raises(ContractError, match=BROKEN[kind]) as caught:
        check_server_plan(name)
    assert name in str(caught.value)


def test_a_model_that_is_none_is_refused():
    with pytest.raises(ValueError, match="no model 'lenet-planted'"):
        check_server_plan(registered(NoModel))
