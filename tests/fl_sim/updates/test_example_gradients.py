import pytest
import torch
from torch import nn
from torch.func import vmap

from fl_sim.choices import MODEL_NAMES
from fl_sim.models import ModelSpec, build_model
from fl_sim.updates.example_gradients import example_gradients, supports
from fl_sim.updates.local_update import convolutions_for, flat_model

# Neither BatchNorm nor attention is one of the layers that `example_gradients` knows.
LAYERED = [*(one for one in MODEL_NAMES if one not in ("resnet20", "vit")), "imprint(lenet)"]


def batches(classes):
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(3, 2, 3, 16, 16, generator=generator)
    targets = torch.randn(3, 2, classes, generator=generator).softmax(dim=-1)
    return images.requires_grad_(), targets.requires_grad_()


def weights_of(spec, seed):
    return nn.utils.parameters_to_vector(build_model(spec, seed).parameters()).detach()


def require_same(found, expected, images, targets):
    """Compare gradients, and the slopes of their squares."""

    def slopes(gradients):
        return torch.autograd.grad(gradients.square().sum(), [images, targets])

    pairs = [(found, expected), *zip(slopes(found), slopes(expected), strict=True)]
    for mine, theirs in pairs:
        scale = float(theirs.detach().square().mean().sqrt())
        torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-4 * scale)


@pytest.mark.parametrize("name", LAYERED)
def test_gradients_and_their_slopes_are_those_of_each_batch_alone(name):
    spec = ModelSpec(name, (3, 16, 16), 5)
    model, weights = flat_model(spec), weights_of(spec, 1)
    images, targets = batches(spec.classes)
    assert supports(model.module)
    expected = vmap(model.gradient, in_dims=(None, 0, 0))(weights, images, targets)
    parameters = model.layout.unflatten(weights)
    found = example_gradients(model.module, parameters, images, targets)
    require_same(found, expected, images, targets)


@pytest.mark.parametrize("name", LAYERED)
def test_batches_may_have_weights_of_their_own(name):
    spec = ModelSpec(name, (3, 16, 16), 5)
    model = flat_model(spec)
    weights = torch.stack([weights_of(spec, seed) for seed in (1, 2, 3)])
    images, targets = batches(spec.classes)
    alone = torch.stack([*map(model.gradient, weights, images, targets)])
    found = model.gradients(weights, images, targets)
    assert found.shape == (3, model.layout.size)
    require_same(found, alone, images, targets)


def test_a_module_is_left_as_it_was():
    model = flat_model(ModelSpec("lenet", (3, 16, 16), 5))
    images, targets = batches(5)
    before = model.module(images[0])
    model.gradients(weights_of(model.spec, 3), images, targets)
    torch.testing.assert_close(model.module(images[0]), before, rtol=0, atol=0)
    with pytest.raises(RuntimeError):
        model.gradients(weights_of(model.spec, 3), images[:, :, :2], targets)
    torch.testing.assert_close(model.module(images[0]), before, rtol=0, atol=0)


def test_nothing_is_differentiated_that_need_not_be():
    model = flat_model(ModelSpec("convnet", (3, 16, 16), 5))
    images, targets = (one.detach() for one in batches(5))
    parameters = dict(model.module.named_parameters())
    with torch.no_grad():
        found = example_gradients(model.module, parameters, images, targets)
    assert not found.requires_grad


def test_layers_that_are_not_known_are_not_supported():
    assert not supports(nn.Sequential(nn.Conv2d(4, 4, 3, groups=2)))
    assert not supports(nn.Sequential(nn.Conv2d(4, 4, 3, padding="same")))
    assert not supports(nn.Sequential(nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect")))
    assert not supports(nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)))


def test_convolutions_of_few_pixels_do_without_onednn_and_leave_the_setting_as_it_was():
    usual = torch.backends.mkldnn.enabled
    with convolutions_for(torch.zeros(2, 3, 16, 16)):
        assert not torch.backends.mkldnn.enabled
    with convolutions_for(torch.zeros(2, 3, 64, 64)):
        assert torch.backends.mkldnn.enabled == usual
    assert torch.backends.mkldnn.enabled == usual
