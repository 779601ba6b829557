"""The check of models finds what is broken; ours pass it in ``tests/fl_sim/updates``."""

from itertools import count
from math import prod

import numpy as np
import pytest
import torch
from torch import nn

from fl_sim import register
from fl_sim.testing import ContractError, check_model

_numbers = count()


class Plain(nn.Module):
    """A linear model that keeps all promises."""

    def __init__(self, spec):
        super().__init__()
        self.head = nn.Linear(prod(spec.shape), spec.classes)

    def forward(self, images):
        return self.head(images.flatten(1))


class OtherClasses(Plain):
    def forward(self, images):
        return super().forward(images)[:, 1:]


class OneRow(Plain):
    def forward(self, images):
        return super().forward(images).mean(0)


class InPlace(Plain):
    def forward(self, images):
        return super().forward(images.mul_(2))


class Infinite(Plain):
    def forward(self, images):
        return super().forward(images) / 0


class NumpyWeights(Plain):
    def __init__(self, spec):
        super().__init__(spec)
        self.head.weight.data *= np.random.default_rng().random()


class GlobalNumPy(Plain):
    def __init__(self, spec):
        super().__init__(spec)
        np.random.random()


class Untrained(Plain):
    def __init__(self, spec):
        super().__init__(spec)
        self.requires_grad_(False)


class Blind(Plain):
    def forward(self, images):
        return super().forward(torch.zeros_like(images))


BROKEN = {
    OtherClasses: r"1 images give logits of shape \(1, 6\), not \(1, 7\)",
    OneRow: r"1 images give logits of shape \(7,\), not",
    InPlace: "changes its images",
    Infinite: "logits are not finite",
    NumpyWeights: "initial weights are not a function of the seed",
    GlobalNumPy: "changes the global random state of NumPy",
    Untrained: "has no parameter that is trained",
    Blind: "does not change with the images",
}


def registered(kind):
    name = f"broken{next(_numbers)}"
    register("model", name)(kind)
    return name


def test_batch_norm_is_allowed():
    def normalised(spec):
        return nn.Sequential(nn.BatchNorm2d(spec.shape[0]), Plain(spec))

    check_model(registered(normalised))


@pytest.mark.parametrize("kind", BROKEN, ids=lambda kind: kind.__name__)
def test_what_is_broken_is_named(kind):
    check_model(registered(Plain))
    name = registered(kind)
    with pytest.raises(ContractError, match=BROKEN[kind]) as caught:
        check_model(name)
    assert name in str(caught.value)


def test_an_unknown_model_is_no_broken_one():
    with pytest.raises(ValueError, match="did you mean 'lenet'"):
        check_model("lenett")
