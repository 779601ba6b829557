import pytest
import torch

from attacker.presets import build_attack
from attacker.readers.closed_forms import conjugate_gradients
from fl_sim.models import ModelSpec
from fl_sim.updates.local_update import LocalWork
from tests.attacker.observing import SPEC, digits, initial_weights, observe

MLP = ModelSpec("mlp", (1, 8, 8), 10)


def test_conjugate_gradients_solve_least_squares():
    generator = torch.Generator().manual_seed(0)
    matrix = torch.randn(3, 7, 4, generator=generator, dtype=torch.float64)
    right = torch.randn(3, 7, generator=generator, dtype=torch.float64)
    found = conjugate_gradients(
        lambda x: (matrix @ x[..., None])[..., 0],
        lambda y: (matrix.transpose(1, 2) @ y[..., None])[..., 0],
        right,
    )
    exact = torch.linalg.lstsq(matrix, right[..., None]).solution[..., 0]
    assert torch.allclose(found, exact, atol=1e-9)


def test_a_linear_first_layer_gives_the_image_away():
    images, labels = digits(4)
    weights = initial_weights(MLP)
    attack = build_attack("analytic")
    seen = observe(images, labels, spec=MLP, weights=weights)
    assert attack.applies(seen)
    for found, image in zip(attack.reconstruct(seen, seed=0), images, strict=True):
        assert torch.allclose(found.images[0], image, atol=1e-4)
        assert found.status == "converged"


@pytest.mark.parametrize("name", ["lenet", "lenet_dlg"])
def test_the_recursive_closed_form_inverts_convolutions_with_the_label_unknown(name):
    spec = ModelSpec(name, (1, 8, 8), 10)
    images, labels = digits(4)
    seen = observe(images, labels, spec=spec, weights=initial_weights(spec))
    found = build_attack("rgap:iterations=1,restarts=0").reconstruct(seen, seed=0)
    for reconstruction, image, label in zip(found, images, labels, strict=True):
        assert torch.allclose(reconstruction.images[0], image, atol=1e-2)
        assert int(reconstruction.labels) == int(label)


def test_closed_forms_apply_only_where_their_equations_hold():
    images, labels = digits(4)
    seen = observe(images, labels)
    assert build_attack("rgap").applies(seen)
    assert not build_attack("analytic").applies(seen)
    assert not build_attack("rgap").applies(observe(images, labels, "sign"))
    batches = observe(images, labels, work=LocalWork(batch_size=2))
    assert not build_attack("rgap").applies(batches)
    assert seen[0].model == SPEC
