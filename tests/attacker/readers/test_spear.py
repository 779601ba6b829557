"""SPEAR: batches in front of a ReLU, exact without noise, and where it applies."""

import pytest
import torch

from attacker.presets import build_attack
from fl_sim.models import ModelSpec
from fl_sim.observed.evidence import HeldBack
from fl_sim.updates.local_update import LocalWork
from tests.attacker.observing import SPEC, digits, initial_weights, observe

RELU = ModelSpec("mlp:activation=relu", (1, 8, 8), 10)
TANH = ModelSpec("mlp", (1, 8, 8), 10)
UNITS = 128  # of the first layer


def seen_of(batch, quantizer="none", count=4, spec=RELU, **work):
    """Return observations of batches, and their images and labels ``(count, batch, ...)``."""
    images, labels = digits(count * batch)
    given = {"spec": spec, "weights": initial_weights(spec).detach()}
    seen = observe(images, labels, quantizer, LocalWork(batch_size=batch, **work), **given)
    return seen, images.unflatten(0, (count, batch)), labels.unflatten(0, (count, batch))


def apart(found, images):
    """Return the mean squared errors of found images (rows) from true ones (columns)."""
    return (found.images[:, None] - images[None]).square().mean(dim=(2, 3, 4))


def error(found, images):
    """Return the largest mean squared error of the images of a batch, in any order."""
    return float(apart(found, images).min(dim=0).values.max())


@pytest.mark.parametrize("batch", [1, 2, 4])
def test_batches_in_front_of_a_relu_are_exact_and_in_the_order_of_their_labels(batch):
    seen, images, labels = seen_of(batch)
    attack = build_attack("spear")
    assert attack.applies(seen)
    for found, truth, classes in zip(attack.reconstruct(seen, seed=0), images, labels, strict=True):
        assert error(found, truth) < 1e-6
        assert found.status == "converged"
        assert torch.equal(found.labels, classes[apart(found, truth).argmin(dim=1)])


def test_a_batch_of_20_is_exact_where_inputs_are_normalised():
    """As networks are fed: units that some images turn on and others off."""
    spec = ModelSpec("mlp:activation=relu,width=256", (1, 16, 16), 10)
    images = torch.rand(20, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    work = LocalWork(batch_size=20, mean=(0.5,), std=(0.3,))
    given = {"spec": spec, "weights": initial_weights(spec).detach()}
    seen = observe(images, torch.arange(20) % 10, "none", work, **given)
    (found,) = build_attack("spear").reconstruct(seen, seed=0)
    assert error(found, images) < 1e-6


def test_hidden_elements_are_completed_first():
    seen, images, _ = seen_of(3, count=2)
    hidden = [one.hold_back(HeldBack()) for one in seen]
    found = build_attack("spear").reconstruct(hidden, seed=0)
    assert max(error(one, truth) for one, truth in zip(found, images, strict=True)) < 1e-6


def test_zeros_that_a_quantizer_decodes_to_small_values_are_zeros():
    seen, images, _ = seen_of(4, "uniform:bits=16", count=2)
    for found, truth in zip(build_attack("spear").reconstruct(seen, seed=0), images, strict=True):
        assert error(found, truth) < 1e-4


def test_the_same_seed_gives_the_same_images_alone_and_beside_others():
    seen, _, _ = seen_of(4, count=2)
    attack = build_attack("spear")
    both, alone = attack.reconstruct(seen, seed=3), attack.reconstruct(seen[1:], seed=3)
    assert torch.allclose(both[1].images, alone[0].images, atol=1e-5)


def test_it_applies_to_one_step_of_a_small_batch_before_a_relu():
    attack = build_attack("spear")
    assert not attack.applies(seen_of(2, spec=TANH)[0])
    assert not attack.applies(seen_of(2, spec=SPEC)[0])
    assert attack.applies(seen_of(UNITS // 4, count=1)[0])
    assert not attack.applies(seen_of(UNITS // 4 + 1, count=1)[0])
    several = {"kind": "delta", "learning_rate": 0.1, "local_steps": 2}
    assert not attack.applies(seen_of(2, count=1, **several)[0])


def test_an_image_that_leaves_no_slope_stays_grey():
    images, labels = digits(2)
    twice, same = images[[0, 0]], labels[[0, 0]]
    given = {"spec": RELU, "weights": initial_weights(RELU).detach()}
    seen = observe(twice, same, "none", LocalWork(batch_size=2), **given)
    (found,) = build_attack("spear").reconstruct(seen, seed=0)
    assert error(found, images[:1]) < 1e-6
    assert float((found.images - 0.5).abs().flatten(1).amax(dim=1).min()) == 0


def test_a_payload_of_zeros_is_answered_by_grey_images():
    seen, _, _ = seen_of(2, "topk:keep=0.0001", count=1)
    (found,) = build_attack("spear").reconstruct(seen, seed=0)
    assert found.images.isfinite().all()


def test_inputs_may_be_normalised():
    seen, images, _ = seen_of(4, count=2, mean=(0.3,), std=(0.2,))
    for found, truth in zip(build_attack("spear").reconstruct(seen, seed=0), images, strict=True):
        assert error(found, truth) < 1e-6
        assert found.status == "converged"


@pytest.mark.parametrize("shape", [(3, 1, 1), (1, 1, 6), (1, 2, 2)])
def test_pictures_without_enough_neighbouring_pixels_are_read_too(shape):
    spec = ModelSpec("mlp:activation=relu", shape, 10)
    images = torch.rand(4, *shape, generator=torch.Generator().manual_seed(0))
    given = {"spec": spec, "weights": initial_weights(spec).detach()}
    seen = observe(images, torch.arange(4), "none", LocalWork(batch_size=4), **given)
    (found,) = build_attack("spear").reconstruct(seen, seed=0)
    assert error(found, images) < 1e-6
