import pytest
import torch

from attacker.choice import with_evidence
from attacker.presets import build_attack, suite
from fl_sim.models import ModelSpec
from fl_sim.plans import Traps, parse_plan
from fl_sim.testing import check_attack
from fl_sim.updates.layers import find_relu_input
from fl_sim.updates.local_update import LocalWork, flat_model
from results.scores.scoring import score_batch
from tests.attacker.observing import digits, initial_weights, observe

PLAN = Traps(share=0.1)
SPEC = ModelSpec("mlp:activation=relu,width=256", (1, 8, 8), 10)
ATTACK = build_attack("active_traps")


def planted():
    return PLAN.weights(SPEC, initial_weights(SPEC), digits(1000, seed=1)[0])


def seen(images, labels, quantizer="none", **work):
    work = LocalWork(batch_size=len(images), **work)
    facts = {"spec": SPEC, "weights": planted(), "server": PLAN.spec}
    return observe(images, labels, quantizer, work, **facts)


@pytest.mark.parametrize("model", ["mlp", "lenet", "convnet"])
def test_a_model_without_a_relu_layer_on_the_pixels_is_refused_in_one_line(model):
    with pytest.raises(ValueError, match=r"^the plan needs a model whose first layer[^\n]*$"):
        parse_plan("traps").check(ModelSpec(model, (1, 8, 8), 10))


def test_a_unit_passes_the_asked_share_of_public_images():
    public = digits(1000, seed=1)[0]
    tensors = flat_model(SPEC).layout.unflatten(planted())
    passed = public.flatten(1) @ tensors["body.0.weight"].T + tensors["body.0.bias"] > 0
    assert float(passed.float().mean()) == pytest.approx(0.1, abs=0.002)


def test_only_the_first_layer_is_touched():
    before, after = initial_weights(SPEC), planted()
    layout = flat_model(SPEC).layout
    changed = {
        name
        for name, tensor in layout.unflatten(after).items()
        if not torch.equal(tensor, layout.unflatten(before)[name])
    }
    layer = find_relu_input(SPEC)
    assert changed == {layer.weight, layer.bias} == {"body.0.weight", "body.0.bias"}


@pytest.mark.parametrize("kind", ["gradient", "delta"])
def test_images_that_pass_a_unit_alone_are_read_exactly_with_their_labels(kind):
    images, labels = digits(8)
    tensors = flat_model(SPEC).layout.unflatten(planted())
    passed = images.flatten(1) @ tensors["body.0.weight"].T > 0
    alone = (passed & (passed.sum(dim=0) == 1)).any(dim=1)
    assert alone.sum() >= 6
    (found,) = ATTACK.reconstruct(seen(images, labels, kind=kind), seed=0)
    scores = score_batch(found.images, found.labels, images, labels)
    assert (scores.mse[alone.numpy()] < 1e-6).all()
    assert scores.label_hit[alone.numpy()].mean() >= 0.9


def test_it_reads_coarse_payloads_and_those_of_which_a_tenth_is_hidden():
    images, labels = digits(8)
    attack = with_evidence(suite("active_traps", "analytic"))
    (found,) = attack.reconstruct(seen(images, labels, "uniform:bits=8"), seed=0)
    scores = score_batch(found.images, found.labels, images, labels)
    assert (scores.mse < 1e-2).mean() >= 0.6


def test_the_attack_keeps_what_every_attack_promises_and_refuses_other_observations():
    images, labels = digits(8)
    check_attack(ATTACK, seen(images, labels))
    assert not ATTACK.applies(observe(images, labels, work=LocalWork(batch_size=8), spec=SPEC))
    assert not ATTACK.applies(seen(images, labels, kind="delta", local_steps=2))
