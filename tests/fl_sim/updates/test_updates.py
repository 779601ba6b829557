import pytest
import torch

from fl_sim.models import ModelSpec, build_model
from fl_sim.updates.local_update import Layout, LocalWork, Update, flat_model, local_update, one_hot

SPEC = ModelSpec("lenet", (1, 8, 8), 10)


def initial(spec, seed=0):
    module = build_model(spec, seed)
    return Layout.of(module).flatten(dict(module.named_parameters())).detach()


@pytest.mark.parametrize(
    ("name", "shape", "parameters"),
    [("lenet", (1, 8, 8), 8_026), ("lenet_dlg", (3, 32, 32), 15_826)],
)
def test_parameter_counts(name, shape, parameters):
    assert flat_model(ModelSpec(name, shape, 10)).layout.size == parameters


def test_the_dlg_lenet_starts_from_the_papers_uniform_weights():
    weights = initial(ModelSpec("lenet_dlg", (3, 32, 32), 10))
    assert float(weights.abs().max()) <= 0.5
    assert float(weights.std()) == pytest.approx(1 / 12**0.5, rel=0.02)


def test_initial_weights_are_a_function_of_the_seed_alone():
    torch.manual_seed(5)
    first = initial(SPEC)
    state = torch.get_rng_state()
    assert torch.equal(first, initial(SPEC))
    assert not torch.equal(first, initial(SPEC, seed=1))
    assert torch.equal(state, torch.get_rng_state())


def test_a_gradient_equals_autograds():
    module, images, labels = build_model(SPEC), torch.rand(3, 1, 8, 8), torch.tensor([1, 2, 3])
    torch.nn.functional.cross_entropy(module(images), labels).backward()
    expected = torch.cat([p.grad.reshape(-1) for p in module.parameters()])
    work = LocalWork(batch_size=3)
    found = local_update(flat_model(SPEC), work, initial(SPEC), images, one_hot(labels, 10))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-7)


def test_a_delta_equals_torchs_own_sgd_over_cycled_batches():
    module, images, labels = build_model(SPEC), torch.rand(4, 1, 8, 8), torch.tensor([1, 2, 3, 4])
    optimizer = torch.optim.SGD(module.parameters(), lr=0.3)
    for rows in (slice(0, 2), slice(2, 4), slice(0, 2)):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(module(images[rows]), labels[rows]).backward()
        optimizer.step()
    moved = torch.cat([p.detach().reshape(-1) for p in module.parameters()])
    work = LocalWork("delta", 2, learning_rate=0.3, local_steps=3, local_batches=2)
    weights = initial(SPEC)
    found = local_update(flat_model(SPEC), work, weights, images, one_hot(labels, 10))
    torch.testing.assert_close(found, weights - moved, rtol=1e-4, atol=1e-6)


def test_an_update_is_differentiable_in_the_images():
    images = torch.rand(1, 1, 8, 8, requires_grad=True)
    update = local_update(
        flat_model(SPEC), LocalWork(), initial(SPEC), images, one_hot(torch.tensor([1]), 10)
    )
    update.square().sum().backward()
    assert float(images.grad.abs().max()) > 0


def test_layouts_flatten_and_unflatten_exactly():
    model = flat_model(SPEC)
    vector = torch.randn(model.layout.size)
    assert torch.equal(model.layout.flatten(model.layout.unflatten(vector)), vector)
    assert sum(len(piece) for piece in model.layout.split(vector)) == model.layout.size
    other = flat_model(ModelSpec("lenet", (1, 8, 8), 9)).layout
    assert other.fingerprint != model.layout.fingerprint


def test_an_update_of_another_size_is_refused():
    layout = flat_model(SPEC).layout
    with pytest.raises(ValueError, match=r"8026 elements.*\(3,\)"):
        Update(torch.zeros(3), layout)
