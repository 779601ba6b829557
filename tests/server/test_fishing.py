"""A server that fishes for a class or a feature, the search that reads it, and who notices."""

from dataclasses import replace
from math import exp

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from attacker.presets import build_attack, suite
from clients.signs import LIMITS, sign_of_loss, signs_of_weights
from fl_sim.coding.cell import Cell
from fl_sim.models import ModelSpec
from fl_sim.plans import Fishing, parse_plan
from fl_sim.updates.layers import find_head
from fl_sim.updates.local_update import LocalWork, flat_model, one_hot
from tests.attacker.observing import digits, initial_weights, observe

TARGET = 3
PLAN = Fishing(TARGET)
OF_CLASS = Fishing(TARGET, share=0.125)
OF_OTHERS = Fishing(TARGET, share=0.125, wanted="others")
SPEC = ModelSpec("mlp", (1, 8, 8), 10)
ATTACK = build_attack("active_fishing")
SHORT = build_attack("active_fishing:iterations=5,restarts=0")


def planted(spec=SPEC, plan=PLAN):
    return plan.weights(spec, initial_weights(spec).detach(), digits(100, seed=1)[0])


def isolated(plan, spec=SPEC, own_class=True, surely=(-torch.inf, -20)):
    """Return eight digits that a plan may fish, of which the last is caught and no other."""
    images, labels = digits(1700)
    mine = (labels == plan.target) == own_class
    silent = plan.silence(spec, planted(spec, plan), images)
    caught = mine & (surely[0] < silent) & (silent < surely[1])
    others = mine & (silent > 20)
    chosen = torch.cat([others.nonzero()[:7, 0], caught.nonzero()[:1, 0]])
    assert len(chosen) == 8
    return images[chosen], labels[chosen]


def batch(caught):
    """Return eight digits, of which ``caught`` are threes."""
    images, labels = digits(100)
    threes, others = (labels == TARGET).nonzero()[:, 0], (labels != TARGET).nonzero()[:, 0]
    chosen = torch.cat([others[: 8 - caught], threes[:caught]])
    return images[chosen], labels[chosen]


def seen(images, labels, quantizer="none", spec=SPEC, plan=PLAN, **work):
    facts = {"spec": spec, "weights": planted(spec, plan), "server": plan.spec}
    return observe(images, labels, quantizer, LocalWork(batch_size=len(images), **work), **facts)


def below_the_head(gradient, spec):
    """Return a gradient without the classifier's rows of other classes."""
    tensors = flat_model(spec).layout.unflatten(gradient.clone())
    head = find_head(spec)
    for name in (head.weight, head.bias):
        tensors[name][torch.arange(10) != TARGET] = 0
    return flat_model(spec).layout.flatten(tensors)


@pytest.mark.parametrize("model", ["mlp", "lenet", "convnet"])
def test_a_batch_has_the_gradient_of_its_images_of_the_class_times_their_share(model):
    spec = ModelSpec(model, (1, 8, 8), 10)
    images, labels = batch(caught=2)
    flat, weights, targets = flat_model(spec), planted(spec), one_hot(labels, 10)
    whole = below_the_head(flat.eager_gradient(weights, images, targets), spec)
    own = labels == TARGET
    caught = below_the_head(flat.eager_gradient(weights, images[own], targets[own]), spec)
    assert whole.norm() > 0
    torch.testing.assert_close(8 / 2 * whole, caught, rtol=1e-3, atol=1e-5 * float(caught.max()))


def test_others_count_less_by_the_boost():
    plan = Fishing(TARGET, boost=5)
    images, labels = batch(caught=0)
    flat, weights = flat_model(SPEC), planted(plan=plan)
    others = below_the_head(flat.eager_gradient(weights, images, one_hot(labels, 10)), SPEC)
    as_target = one_hot(torch.full((8,), TARGET), 10)
    caught = below_the_head(flat.eager_gradient(weights, images, as_target), SPEC)
    assert float(others.norm() / caught.norm()) == pytest.approx(exp(-5) / 9, rel=1)


@pytest.mark.parametrize("plan", [PLAN, OF_CLASS, OF_OTHERS])
def test_only_the_classifier_is_touched(plan):
    before, after = (
        flat_model(SPEC).layout.unflatten(w) for w in (initial_weights(SPEC), planted(plan=plan))
    )
    head = find_head(SPEC)
    changed = {name for name in after if not torch.equal(after[name], before[name])}
    assert changed == {head.weight, head.bias}
    kept = torch.equal(after[head.weight][TARGET], before[head.weight][TARGET])
    assert kept == (plan is PLAN)


@pytest.mark.parametrize("plan", [OF_CLASS, OF_OTHERS])
@pytest.mark.parametrize("model", ["mlp", "lenet"])
def test_a_feature_leaves_the_gradient_of_one_image_of_the_batch(plan, model):
    spec = ModelSpec(model, (1, 8, 8), 10)
    images, labels = isolated(plan, spec, plan is OF_CLASS)
    flat, weights, targets = flat_model(spec), planted(spec, plan), one_hot(labels, 10)
    whole = below_the_head(flat.eager_gradient(weights, images, targets), spec)
    caught = below_the_head(flat.eager_gradient(weights, images[-1:], targets[-1:]), spec)
    assert whole.norm() > 0
    torch.testing.assert_close(8 * whole, caught, rtol=1e-3, atol=1e-5 * float(caught.abs().max()))


@given(st.floats(0.05, 0.5), st.integers(0, 100))
@settings(max_examples=10, deadline=None)
def test_the_share_of_public_images_that_is_caught_is_the_one_asked_for(share, feature):
    public = digits(100, seed=1)[0]
    for wanted in ("class", "others"):
        plan = Fishing(TARGET, share=share, wanted=wanted, feature=feature)
        silent = plan.silence(SPEC, planted(plan=plan), public)
        assert float((silent < 0).float().mean()) == pytest.approx(share, abs=0.011)


def test_each_feature_catches_other_images():
    images, caught = digits(100)[0], []
    for feature in range(4):
        plan = replace(OF_CLASS, feature=feature)
        caught.append(plan.silence(SPEC, planted(plan=plan), images) < 0)
    assert len({tuple(one.tolist()) for one in caught}) == 4


def test_a_class_that_the_data_does_not_have_is_refused_in_one_line():
    with pytest.raises(ValueError, match=r"^target=10 is not a class of the data; give 0 to 9$"):
        parse_plan("fishing:target=10").check(SPEC)
    with pytest.raises(ValueError, match=r"^target=-1 is not allowed; give 0 to [^\n]*$"):
        Fishing(-1)


def test_a_feature_that_a_plan_does_not_use_is_refused_in_one_line():
    with pytest.raises(ValueError, match=r"^wanted='others' needs a feature; give a share [^\n]*$"):
        parse_plan("fishing:target=3,wanted=others")
    with pytest.raises(ValueError, match=r"^share=0 is not allowed; give 0.0001 to 1\.$"):
        parse_plan("fishing:target=3,share=0")


def test_a_model_without_a_linear_classifier_with_a_bias_is_refused_in_one_line(monkeypatch):
    monkeypatch.setattr("fl_sim.plans.fishing.find_head", lambda model: None)
    with pytest.raises(ValueError, match=r"^the plan needs a model whose logits [^\n]*$"):
        PLAN.check(SPEC)


@pytest.mark.parametrize("kind", ["gradient", "delta"])
@pytest.mark.parametrize("quantizer", ["none", "uniform:bits=8"])
def test_the_one_image_of_the_class_in_a_batch_of_eight_is_found(quantizer, kind):
    images, labels = batch(caught=1)
    (found,) = ATTACK.reconstruct(seen(images, labels, quantizer, kind=kind), seed=0)
    assert float((found.images[0] - images[-1]).square().mean()) < 1e-3
    assert found.labels[0] == TARGET
    assert sorted(found.labels.tolist()) == sorted(labels.tolist())
    assert (found.images[1:] == 0.5).all()


def test_two_images_of_the_class_are_found_together():
    images, labels = batch(caught=2)
    (found,) = ATTACK.reconstruct(seen(images, labels, "uniform:bits=8"), seed=0)
    errors = (found.images[:2, None] - images[None, -2:]).square().mean(dim=(2, 3, 4))
    assert (errors.amin(dim=0) < 1e-3).all()
    assert (found.images[2:] == 0.5).all()


@pytest.mark.parametrize(
    ("plan", "quantizer", "kind"),
    [(OF_CLASS, "uniform:bits=8", "gradient"), (OF_OTHERS, "none", "delta")],
)
def test_one_image_of_eight_is_found_by_its_feature(plan, quantizer, kind):
    images, labels = isolated(plan, own_class=plan is OF_CLASS)
    (found,) = ATTACK.reconstruct(seen(images, labels, quantizer, plan=plan, kind=kind), seed=0)
    assert float((found.images[0] - images[-1]).square().mean()) < 1e-3
    assert (found.labels[0] == TARGET) == (plan is OF_CLASS)
    if plan is OF_CLASS:
        assert (found.labels == TARGET).all()


def test_an_image_near_the_quantile_is_found_by_the_part_of_its_gradient_that_is_left():
    images, labels = isolated(OF_OTHERS, own_class=False, surely=(-6, -3))
    (found,) = ATTACK.reconstruct(seen(images, labels, plan=OF_OTHERS), seed=0)
    assert float((found.images[0] - images[-1]).square().mean()) < 1e-3


def test_the_suite_chooses_the_image_that_was_caught():
    images, labels = isolated(OF_CLASS)
    attack = suite("active_fishing", "cell:iterations=5,restarts=0,prior=fixed")
    (found,) = attack.reconstruct(seen(images, labels, "uniform:bits=8", plan=OF_CLASS), seed=0)
    errors = (found.images[:, None] - images[None, -1:]).square().mean(dim=(2, 3, 4))
    assert float(errors.min()) < 1e-3


@pytest.mark.parametrize("quantizer", ["none", "uniform:bits=4"])
@pytest.mark.parametrize("plan", [OF_CLASS, OF_OTHERS])
def test_a_batch_without_a_gradient_gives_no_image(plan, quantizer):
    images, labels = isolated(plan, own_class=plan is OF_CLASS)
    images = images[:1].repeat(8, 1, 1, 1)  # which the feature silences
    (found,) = SHORT.reconstruct(seen(images, labels[:1].repeat(8), quantizer, plan=plan), seed=0)
    assert found.evaluations == 0


@pytest.mark.parametrize(
    "quantizer", ["none", "uniform:bits=4", "uniform:bits=1", "sign", "terngrad", "topk:keep=0.1"]
)
def test_a_batch_without_the_class_gives_no_image(quantizer):
    (found,) = SHORT.reconstruct(seen(*batch(caught=0), quantizer), seed=0)
    assert (found.images == 0.5).all()
    assert TARGET not in found.labels
    assert (found.evaluations, found.status) == (0, "stalled")


@pytest.mark.parametrize(
    ("quantizer", "caught", "told"),
    [("uniform:bits=8", 4, 4), ("scaled_sign", 2, 1), ("terngrad", 1, 1), ("natural", 1, 1)],
)
def test_the_images_of_the_class_are_counted_where_the_payload_is_fine_enough(
    quantizer, caught, told
):
    (found,) = SHORT.reconstruct(seen(*batch(caught), quantizer), seed=0)
    assert int((found.labels == TARGET).sum()) == told
    assert int((found.images != 0.5).flatten(1).any(dim=1).sum()) == told


def test_batches_that_were_fished_for_other_classes_are_solved_side_by_side():
    images, labels = batch(caught=1)
    other = int(labels[0])
    for_other = seen(images[:1], labels[:1], plan=Fishing(other))
    for_three = seen(images[-1:], labels[-1:])
    found = SHORT.reconstruct([*for_other, *for_three], seed=0)
    assert [one.labels.tolist() for one in found] == [[other], [TARGET]]


def test_signs_tell_that_the_class_is_there():
    (found,) = SHORT.reconstruct(seen(*batch(caught=1), "sign"), seed=0)
    assert found.labels[0] == TARGET
    assert (found.images[0] != 0.5).any()
    assert (found.images[1:] == 0.5).all()


def test_it_refuses_other_servers_several_steps_and_rotations():
    images, labels = batch(caught=1)
    assert ATTACK.applies(seen(images, labels))
    assert not ATTACK.applies(observe(images, labels, work=LocalWork(batch_size=8), spec=SPEC))
    assert not ATTACK.applies(seen(images, labels, kind="delta", local_steps=2))
    assert not ATTACK.applies(seen(images, labels, "drive"))
    (unplanted,) = seen(images, labels)
    assert not ATTACK.applies([replace(unplanted, weights=initial_weights(SPEC).detach())])


@pytest.mark.parametrize("plan", [OF_CLASS, OF_OTHERS])
def test_a_client_notices_a_feature_by_its_weights(plan):
    signs = signs_of_weights(flat_model(SPEC).layout.unflatten(planted(plan=plan)))
    assert signs["empty"] > LIMITS["empty"]


@pytest.mark.parametrize("model", ["mlp", "lenet", "convnet"])
def test_a_client_notices(model):
    spec = ModelSpec(model, (1, 8, 8), 10)
    weights = planted(spec)
    signs = signs_of_weights(flat_model(spec).layout.unflatten(weights))
    assert {name for name, value in signs.items() if value > LIMITS[name]} >= {"empty", "biased"}
    surprise = [sign_of_loss(flat_model(spec), weights, *batch(caught)) for caught in (0, 1)]
    assert surprise[0] < LIMITS["surprise"] < surprise[1]


@given(st.floats(0.1, 10), st.floats(-2, 2))
def test_the_cell_of_a_multiple_of_an_update_is_as_far_from_the_multiple(factor, value):
    ends = [torch.tensor([one]) for one in (0.5, 0.0, 1.0, 1.0)]
    cell, candidate = Cell(*ends, sizes=(1,)), torch.tensor([value])
    expected = cell.misfit(candidate)
    torch.testing.assert_close(cell.times(factor).misfit(factor * candidate), expected)
