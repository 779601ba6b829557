"""DP-SGD: the gradient of each image is clipped before gradients are averaged."""

from math import inf

import pytest
import torch

from attacker.presets import build_attack
from fl_sim.models import ModelSpec
from fl_sim.observed.candidates import candidate_updates
from fl_sim.privacy.accountant import GaussianGuarantee
from fl_sim.study.settings import SettingsError, load_settings
from fl_sim.updates.local_update import LocalWork, flat_model, local_reply, local_update, one_hot
from results.reading.guarantees import epsilon_of
from results.scores.scoring import score_batch
from tests.attacker.observing import digits, initial_weights, observe

SPEC = ModelSpec("lenet", (1, 8, 8), 10)
GAUSSIAN = "gaussian:sigma=0.2"


def facts(count=3):
    images, labels = digits(count)
    return flat_model(SPEC), initial_weights(SPEC).detach(), images, one_hot(labels, 10)


@pytest.mark.parametrize("clip", [0.3, 1e6])
def test_the_update_is_the_mean_of_clipped_gradients(clip):
    model, weights, images, targets = facts()
    plain, clipped = LocalWork(batch_size=1), LocalWork(batch_size=3, example_clip=clip)
    each = [
        local_update(model, plain, weights, images[k : k + 1], targets[k : k + 1]) for k in range(3)
    ]
    assert all(0.3 < float(one.norm()) < 1e6 for one in each)
    nothing = torch.zeros(0)
    mean = torch.stack([one * min(1, clip / float(one.norm())) for one in each]).mean(dim=0)
    for eager in (False, True):
        found = local_update(model, clipped, weights, images, targets, eager=eager)
        torch.testing.assert_close(found, mean, rtol=1e-4, atol=1e-6)
        reply = local_reply(model, clipped, weights, nothing, images, targets, eager=eager)
        assert torch.equal(reply.update, found)
    batch = (images[None], targets[None])
    shared = candidate_updates(model, clipped, weights, *batch)[0]
    own = candidate_updates(model, clipped, weights[None], *batch)[0]
    torch.testing.assert_close(shared, mean, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(own, mean, rtol=1e-4, atol=1e-6)


def test_each_local_step_is_clipped_and_candidates_are_what_clients_compute():
    model, weights, images, targets = facts(4)
    work = LocalWork("delta", 2, 0.1, 4, 2, example_clip=0.01)
    found = local_update(model, work, weights, images, targets, eager=True)
    assert float(found.norm()) <= work.image_norm == pytest.approx(0.1 * 4 * 0.01)
    candidate = candidate_updates(model, work, weights, images[None], targets[None])[0]
    torch.testing.assert_close(candidate, found, rtol=1e-4, atol=1e-7)


def test_attacks_know_the_clip():
    images, labels = digits(2)
    seen = observe(images, labels, work=LocalWork(batch_size=2, example_clip=0.01))
    made = build_attack("cell:restarts=0").reconstruct(seen, seed=0)
    scores = score_batch(made[0].images, made[0].labels, images, labels)
    assert scores["mse"].median() < 1e-3


def test_epsilon_is_that_of_one_image():
    work = LocalWork(batch_size=8, example_clip=0.5)
    assert work.image_norm == 0.5 / 8
    exact = GaussianGuarantee(0.5 / 8 / 0.2).epsilon(9, 1e-5)
    assert epsilon_of(GAUSSIAN, 10, 9, 1e-5, work) == exact
    tighter = epsilon_of("clip:norm=0.01+gaussian:sigma=0.2", 10, 9, 1e-5, work)
    assert tighter == GaussianGuarantee(0.01 / 0.2).epsilon(9, 1e-5) < exact
    skellam = "skellam:clip=1,noise=1"
    assert epsilon_of(skellam, 10, 9, 1e-5, work) == epsilon_of(skellam, 10, 9, 1e-5)
    assert epsilon_of("sign", 10, 9, 1e-5, work) != epsilon_of("sign", 10, 9, 1e-5, work)  # none


def test_one_image_moves_an_update_by_no_more_than_twice_its_norm():
    model, weights, images, targets = facts(8)
    for work in (
        LocalWork(batch_size=4, example_clip=0.2),
        LocalWork("delta", 4, 0.3, weight_decay=0.1, example_clip=0.2),
    ):
        one = local_update(model, work, weights, images[:4], targets[:4])
        others = torch.cat([images[:3], images[7:]]), torch.cat([targets[:3], targets[7:]])
        other = local_update(model, work, weights, *others)
        assert 0 < float((one - other).norm()) <= 2 * work.image_norm
    several = LocalWork("delta", 4, 0.3, 2, weight_decay=0.1, example_clip=0.2)
    assert several.image_norm == LocalWork().image_norm == inf


def test_a_clip_is_not_negative():
    with pytest.raises(SettingsError, match="example_clip"):
        load_settings(None, {"example_clip": "-1"})
    with pytest.raises(ValueError, match="A clip of -1 is not"):
        LocalWork(example_clip=-1)
    work = load_settings(None, {"example_clip": "0.5"}).training.work
    assert LocalWork(**work.facts) == work
    assert "example_clip" not in LocalWork().facts
