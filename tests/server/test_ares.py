"""Activations that a server separates in the second layer, and the images recovered from them."""

import pytest
import torch

from attacker.matching.problems import Problems
from attacker.presets import build_attack
from attacker.readers.imprints.ares import _separated, has_separation
from attacker.readers.imprints.lasso import Layer, sparse_recovery
from fl_sim.models import ModelSpec
from fl_sim.plans import Ares, parse_plan
from fl_sim.plans.chain import answers, find_chain
from fl_sim.testing import check_attack
from fl_sim.updates.local_update import LocalWork, flat_model
from results.scores.scoring import score_batch
from tests.attacker.observing import digits, initial_weights, observe

WIDE = "mlp:activation=relu,width=256"  # four measurements a pixel
MODELS = (WIDE, "cnn:channels=12,hidden=128")
PLAN = Ares()
ATTACK = build_attack("active_ares")


def planted(model, plan=PLAN):
    spec = ModelSpec(model, (1, 8, 8), 10)
    return plan.weights(spec, initial_weights(spec).detach(), digits(1000, seed=1)[0])


def seen(model, images, labels, quantizer="none", plan=PLAN, **work):
    work = LocalWork(batch_size=len(images), **work)
    facts = {"spec": ModelSpec(model, (1, 8, 8), 10), "weights": planted(model, plan)}
    return observe(images, labels, quantizer, work, server=plan.spec, **facts)


def scores(observations, images, labels):
    (found,) = ATTACK.reconstruct(observations, seed=0)
    return score_batch(found.images, found.labels, images, labels)


@pytest.mark.parametrize("model", ["mlp", "lenet", "convnet", "imprint:bins=8(lenet)"])
def test_another_chain_of_layers_is_refused_in_one_line(model):
    with pytest.raises(ValueError, match=r"^the plan needs a model convolution or linear[^\n]*$"):
        parse_plan("ares").check(ModelSpec(model, (1, 8, 8), 10))


@pytest.mark.parametrize("rows", ["components", "random"])
@pytest.mark.parametrize("model", MODELS)
def test_planting_again_changes_nothing(model, rows):
    plan, spec = Ares(rows=rows), ModelSpec(model, (1, 8, 8), 10)
    public = digits(200, seed=1)[0]
    once = plan.weights(spec, initial_weights(spec).detach(), public)
    assert torch.equal(once, plan.weights(spec, once.clone(), public))


def test_few_units_are_used_where_most_elements_are_pruned():
    assert parse_plan("ares").for_quantizer("uniform:bits=4") == Ares()
    assert parse_plan("ares").for_quantizer("topk:keep=0.1") == Ares(share=0.09)
    assert Ares(share=0.5).for_quantizer("topk:keep=0.1") == Ares(share=0.5)


@pytest.mark.parametrize("model", MODELS)
def test_activations_are_exact_without_noise(model):
    images, labels = digits(6)
    observations = seen(model, images, labels)
    layers, (found,) = _separated(Problems.of([observations]))
    own = answers(layers.kernel, layers.offset, images).relu()
    order = own.mean(dim=1).argsort()
    assert found.full.all()
    assert torch.allclose(found.activations.float(), own[order], atol=1e-3)
    assert torch.equal(found.labels(layers), labels[order])


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("kind", ["gradient", "delta"])
def test_images_are_recovered_where_measurements_are_as_many_as_pixels(model, kind):
    images, labels = digits(6)
    score = scores(seen(model, images, labels, kind=kind), images, labels)
    assert (score.mse < 1e-6).all()
    assert score.label_hit.all()


def test_few_random_measurements_recover_more_than_their_least_squares():
    images, _ = digits(10)
    rng = torch.Generator().manual_seed(0)
    layer = Layer(torch.randn(40, 64, generator=rng) / 8, torch.full((40,), 5.0), (1, 8, 8))
    activations = layer(images)
    nearest = torch.linalg.pinv(layer.kernel) @ (activations - layer.bias).T
    found = sparse_recovery(layer, activations, torch.full_like(activations, 1e8))
    assert torch.allclose(layer(found), activations, atol=1e-2)
    assert (found - images).square().mean() < (nearest.T - images.flatten(1)).square().mean()


def test_an_activation_of_zero_says_that_the_answer_is_not_positive():
    images, _ = digits(4)
    rng = torch.Generator().manual_seed(0)
    layer = Layer(torch.randn(256, 64, generator=rng) / 8, torch.zeros(256), (1, 8, 8))
    activations = layer(images).relu()
    assert (activations == 0).float().mean() > 0.3
    found = sparse_recovery(layer, activations, torch.full_like(activations, 1e12))
    assert (found - images).square().mean() < 1e-5


def test_what_is_hidden_is_not_measured():
    images, _ = digits(4)
    rng = torch.Generator().manual_seed(0)
    layer = Layer(torch.randn(256, 64, generator=rng) / 8, torch.full((256,), 5.0), (1, 8, 8))
    activations, known = layer(images), torch.full((4, 256), 1e12)
    activations[:, ::2], known[:, ::2] = 17.0, 0.0
    assert (sparse_recovery(layer, activations, known) - images).square().mean() < 1e-5


def test_sizes_of_error_signals_average_coarse_rounding():
    images, labels = digits(4)
    score = scores(seen(WIDE, images, labels, "uniform:bits=4"), images, labels)
    assert (score.mse < 1e-2).all()


@pytest.mark.parametrize(
    "quantizer",
    [
        "sign",
        "terngrad",
        "topk:keep=0.1",
        "drive",
        "dp_gaussian:clip=1,noise=0.1",
        "fp8:format=e4m3",
    ],
)
@pytest.mark.parametrize("model", MODELS)
def test_what_quantizers_leave_is_read_as_finite_images(model, quantizer):
    images, labels = digits(3)
    (found,) = ATTACK.reconstruct(seen(model, images, labels, quantizer), seed=0)
    assert found.status != "diverged"
    assert found.images.isfinite().all()
    assert ((found.images >= 0) & (found.images <= 1)).all()


def test_a_batch_larger_than_the_second_layer_leaves_grey_images():
    images, labels = digits(5)
    observations = seen("mlp:activation=relu,width=4", images, labels)
    (found,) = ATTACK.reconstruct(observations, seed=0)
    assert (found.images == 0.5).flatten(1).all(dim=1).any()


def test_a_pruned_batch_keeps_its_images_and_labels():
    images, labels = digits(3)
    plan = Ares().for_quantizer("topk:keep=0.1")
    score = scores(seen(WIDE, images, labels, "topk:keep=0.1", plan), images, labels)
    assert score.label_hit.all()
    assert (score.mse < 1e-4).all()


@pytest.mark.parametrize("model", MODELS)
def test_only_what_the_plan_planted_is_read(model):
    spec = ModelSpec(model, (1, 8, 8), 10)
    images, labels = digits(2)
    assert not ATTACK.applies(observe(images, labels, spec=spec))
    weights, layers = planted(model), find_chain(spec)
    assert has_separation(spec, LocalWork(), weights)
    assert not has_separation(spec, LocalWork("delta", local_steps=2), weights)
    for name in (layers.hidden.weight, layers.head.weight):
        moved = flat_model(spec).layout.unflatten(weights.clone())
        moved[name][0, 1] += 1
        changed = flat_model(spec).layout.flatten(moved)
        assert not has_separation(spec, LocalWork(), changed)


def test_the_attack_keeps_what_every_attack_promises():
    images, labels = digits(6)
    check_attack(ATTACK, seen(WIDE, images, labels))
