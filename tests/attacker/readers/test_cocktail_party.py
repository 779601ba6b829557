"""The cocktail-party attack: batches behind any activation, unmixed, and where it applies."""

import pytest
import torch
from sklearn.datasets import load_sample_image

from attacker.presets import build_attack
from fl_sim.models import ModelSpec
from fl_sim.observed.evidence import HeldBack
from fl_sim.updates.local_update import LocalWork
from tests.attacker.observing import SPEC, digits, initial_weights, observe
from tests.attacker.readers.test_spear import apart, error

MODEL = ModelSpec("mlp:width=64", (3, 24, 24), 10)  # sigmoid
SMALL = ModelSpec("mlp", (1, 8, 8), 10)


def photographs(count):
    """Return colour crops ``(count, 3, 24, 24)`` of a photograph, and labels."""
    picture = torch.from_numpy(load_sample_image("china.jpg").copy()).float() / 255
    crops = picture[:408, :624].permute(2, 0, 1).unfold(1, 24, 24).unfold(2, 24, 24)
    crops = crops.permute(1, 2, 0, 3, 4).flatten(0, 1)
    chosen = torch.randperm(len(crops), generator=torch.Generator().manual_seed(3))[:count]
    return crops[chosen], torch.arange(count) % 10


def seen_of(count, quantizer="none", **work):
    """Return the observation of a batch of photographs, and these."""
    images, labels = photographs(count)
    given = {"spec": MODEL, "weights": initial_weights(MODEL).detach()}
    return observe(images, labels, quantizer, LocalWork(batch_size=count, **work), **given), images


@pytest.mark.parametrize(
    ("count", "quantizer", "most"),
    [(4, "none", 3e-3), (8, "none", 2e-2), (4, "uniform:bits=8", 3e-3)],
)
def test_images_are_unmixed_whatever_the_activation(count, quantizer, most):
    seen, images = seen_of(count, quantizer)
    attack = build_attack("cocktail_party")
    assert attack.applies(seen)
    (found,) = attack.reconstruct(seen, seed=0)
    assert float(apart(found, images).min(dim=0).values.median()) < most


def test_inputs_may_be_normalised():
    plain, images = seen_of(4)
    normalised, _ = seen_of(4, mean=(0.4, 0.5, 0.6), std=(0.2, 0.25, 0.3))
    attack = build_attack("cocktail_party")
    for seen in (plain, normalised):
        (found,) = attack.reconstruct(seen, seed=0)
        assert float(apart(found, images).min(dim=0).values.median()) < 5e-3


def test_images_come_in_the_order_of_their_labels():
    seen, images = seen_of(4)
    (found,) = build_attack("cocktail_party").reconstruct(seen, seed=0)
    assert torch.equal(found.labels, torch.arange(4)[apart(found, images).argmin(dim=1)])


def test_hidden_elements_are_completed_first():
    seen, images = seen_of(3)
    hidden = [one.hold_back(HeldBack()) for one in seen]
    (found,) = build_attack("cocktail_party").reconstruct(hidden, seed=0)
    assert float(apart(found, images).min(dim=0).values.median()) < 5e-3


def test_the_search_from_it_is_nearer():
    seen, images = seen_of(8)
    near, nearer = (
        apart(build_attack(name).reconstruct(seen, seed=0)[0], images).min(dim=0).values.median()
        for name in ("cocktail_party", "cocktail_party_cell")
    )
    assert nearer < near / 2


def test_the_same_seed_gives_the_same_images():
    seen, _ = seen_of(4)
    attack = build_attack("cocktail_party")
    first, again = (attack.reconstruct(seen, seed=1)[0].images for _ in range(2))
    assert torch.equal(first, again)


def test_images_that_are_not_told_apart_stay_grey():
    images, labels = photographs(2)
    given = {"spec": MODEL, "weights": initial_weights(MODEL).detach()}
    twice = observe(images[[0, 0]], labels[[0, 0]], "none", LocalWork(batch_size=2), **given)
    (found,) = build_attack("cocktail_party").reconstruct(twice, seed=0)
    assert error(found, images[:1]) < 1e-4
    assert float((found.images - 0.5).abs().flatten(1).amax(dim=1).min()) < 1e-6


def test_a_payload_of_zeros_is_answered_by_finite_images():
    (found,) = build_attack("cocktail_party").reconstruct(seen_of(2, "topk:keep=0.0001")[0], seed=0)
    assert found.images.isfinite().all()


def test_it_applies_to_one_step_of_a_batch_on_a_layer_that_sees_the_pixels():
    attack = build_attack("cocktail_party")
    images, labels = digits(80)
    small = {"spec": SMALL, "weights": initial_weights(SMALL).detach()}

    def applies(count, kind=None, **facts):
        work = LocalWork(batch_size=count, **(kind or {}))
        return attack.applies(observe(images[:count], labels[:count], "none", work, **facts))

    assert applies(1, **small)
    assert applies(56, **small)
    assert not applies(57, **small)  # 112 differences of pixels
    assert not applies(2, spec=SPEC, weights=initial_weights(SPEC).detach())
    assert not applies(2, {"kind": "delta", "learning_rate": 0.1, "local_steps": 2}, **small)
