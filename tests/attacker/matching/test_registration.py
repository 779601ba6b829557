"""What an attack finds does not depend on the order in which a model registers its layers."""

import itertools
import zlib

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from attacker.matching.labels import recover_labels
from attacker.matching.problems import Problems
from attacker.presets import build_attack
from attacker.readers.closed_forms import has_linear_input
from fl_sim.models import ModelSpec, register_model
from fl_sim.updates.layers import find_head, find_input
from fl_sim.updates.local_update import LocalWork, flat_model
from tests.attacker.observing import digits, observe

PARTS = ("body", "head", "norm", "unused", "temperature")
BEHIND = ("nothing", "norm", "temperature")
ORDERS = list(itertools.permutations(PARTS))
_names = itertools.count()


class Net(nn.Module):
    """A network whose weights depend on the names of its parts, not on their order."""

    def __init__(self, order=PARTS, *, bias=True, behind="nothing", unused=True, kind="conv"):
        super().__init__()
        conv = nn.Sequential(
            nn.Conv2d(1, 12, 5, 2, 2), nn.Tanh(), nn.Conv2d(12, 12, 5, 1, 2), nn.Tanh()
        )
        mlp = nn.Sequential(nn.Flatten(), nn.Linear(64, 192), nn.Tanh())
        parts = {
            "body": conv if kind == "conv" else mlp,
            "head": nn.Linear(192, 10, bias=bias),
            "unused": nn.Linear(7, 10) if unused else None,
            "norm": nn.LayerNorm(10, bias=False) if behind == "norm" else None,
            "temperature": nn.Parameter(torch.tensor([1.5])) if behind == "temperature" else None,
        }
        for name in order:
            if isinstance(parts[name], nn.Parameter):
                self.register_parameter(name, parts[name])
            elif parts[name] is not None:
                self.add_module(name, parts[name])
        self.behind = behind
        for name, parameter in self.named_parameters():
            if name.startswith(("body", "head")):
                rng = torch.Generator().manual_seed(zlib.crc32(name.encode()))
                fan = parameter[0].numel() if parameter.dim() > 1 else 100
                parameter.data = torch.randn(parameter.shape, generator=rng) / fan**0.5

    def forward(self, images):
        logits = self.head(self.body(images).flatten(1))
        if self.behind == "norm":
            return self.norm(logits)
        return logits * self.temperature if self.behind == "temperature" else logits


def register(build):
    """Return the spec of a model of ten digits."""
    name = f"other-{next(_names)}"
    register_model(name, build)
    return ModelSpec(name, (1, 8, 8), 10)


def of(*arguments, **choices):
    return register(lambda: Net(*arguments, **choices))


@settings(max_examples=15, deadline=None)
@given(st.permutations(PARTS), st.booleans(), st.booleans(), st.sampled_from(("conv", "mlp")))
def test_the_head_and_the_labels_are_found_in_any_order(order, bias, unused, kind):
    spec = of(order, bias=bias, unused=unused, kind=kind)
    head = find_head(spec)
    assert (head.weight, head.bias) == ("head.weight", "head.bias" if bias else None)
    images, labels = digits(8)
    found = recover_labels(Problems.of([[o] for o in observe(images, labels, spec=spec)]))
    assert found.squeeze(1).tolist() == labels.tolist()


@pytest.mark.parametrize(
    ("order", "bias", "behind"),
    [
        (("head", "temperature", "norm", "body", "unused"), True, "nothing"),
        (("body", "unused", "head", "norm", "temperature"), False, "nothing"),
        (("temperature", "head", "unused", "body", "norm"), True, "temperature"),
        (("head", "unused", "norm", "body", "temperature"), True, "norm"),
    ],
)
def test_status_and_pictures_of_a_default_attack_do_not_depend_on_the_order(order, bias, behind):
    images, labels = digits(1)
    for one in (PARTS, order):
        seen = observe(images, labels, spec=of(one, bias=bias, behind=behind, kind="mlp"))
        (found,) = build_attack("idlg").reconstruct(seen, seed=0)
        error = (found.images[0] - images[0]).square().mean()
        assert (found.status, int(found.labels)) == ("converged", int(labels))
        assert error < 1e-3


@settings(max_examples=4, deadline=None, derandomize=True)
@given(
    order=st.permutations(PARTS),
    bias=st.booleans(),
    behind=st.sampled_from(BEHIND),
    unused=st.booleans(),
    kind=st.sampled_from(("conv", "mlp")),
)
def test_a_default_attack_finds_the_same_in_any_order(order, bias, behind, unused, kind):
    images, labels = digits(1)
    facts = {"bias": bias, "behind": behind, "unused": unused, "kind": kind}
    found = []
    for one in (PARTS, order):
        seen = observe(images, labels, "uniform:bits=8", spec=of(one, **facts))
        found += build_attack("cell:restarts=0,iterations=400").reconstruct(seen, seed=0)
    errors = [(one.images[0] - images[0]).square().mean() for one in found]
    assert found[0].status == found[1].status
    assert found[0].labels.tolist() == found[1].labels.tolist()
    assert abs(10 * (errors[0] / errors[1]).log10()) < 1  # dB


@pytest.mark.parametrize("bias", [True, False])
def test_behind_a_scale_the_weight_tells_and_behind_a_norm_nothing(bias):
    head = find_head(of(behind="temperature", bias=bias))
    assert (head.weight, head.bias) == ("head.weight", None)
    assert find_head(of(behind="norm", bias=bias)) is None


@pytest.mark.parametrize("quantizer", ["none", "uniform:bits=4", "sign", "topk:keep=0.1"])
def test_labels_are_read_without_a_bias_however_coarse_the_payload(quantizer):
    images, labels = digits(16)
    seen = observe(images, labels, quantizer, spec=of(bias=False))
    found = recover_labels(Problems.of([[one] for one in seen])).squeeze(1)
    assert (found == labels).float().mean() >= 0.9


def test_labels_of_batches_are_counted_without_a_bias():
    images, labels = digits(16)
    seen = observe(images, labels, spec=of(bias=False), work=LocalWork(batch_size=4))
    found = recover_labels(Problems.of([[one] for one in seen]))
    right = sum(
        len(set(a.tolist()) & set(b.tolist())) / len(set(b.tolist()))
        for a, b in zip(found, labels.reshape(-1, 4), strict=True)
    )
    assert right / len(found) >= 0.8


@pytest.mark.parametrize("order", ORDERS[::17])
def test_the_pixels_are_read_from_the_layer_that_sees_them(order):
    spec = of(order, kind="mlp")
    assert find_input(spec).weight == "body.1.weight"
    images, labels = digits(3)
    found = build_attack("analytic").reconstruct(observe(images, labels, spec=spec), seed=0)
    errors = [(r.images[0] - i).square().mean() for r, i in zip(found, images, strict=True)]
    assert max(errors) < 1e-6
    assert not has_linear_input(of(kind="conv"))


def test_a_layer_that_nobody_uses_has_no_gradient():
    images, labels = digits(3)
    model = flat_model(of(unused=True))
    weights = model.layout.flatten(dict(model.module.named_parameters()))
    targets = nn.functional.one_hot(labels, 10).float()
    slow = model.gradient(weights, images, targets)
    together = model.gradients(weights, images[None], targets[None])[0]
    eager = model.eager_gradient(weights, images, targets)
    assert torch.allclose(slow, together, atol=1e-6)
    assert torch.allclose(slow, eager, atol=1e-6)
    assert not model.layout.unflatten(slow)["unused.weight"].any()
