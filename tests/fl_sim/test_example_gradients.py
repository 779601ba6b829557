import pytest
import torch
from torch import nn
from torch.func import vmap

from fl_sim.example_gradients import example_gradients, supports
from fl_sim.models import MODELS, ModelSpec, build_model
from fl_sim.updates import convolutions_for, flat_model


def batches(classes):
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(3, 2, 3, 16, 16, generator=generator)
    targets = torch.randn(3, 2, classes, generator=generator).softmax(dim=-1)
    return images.requires_grad_(), targets.requires_grad_()


@pytest.mark.parametrize("name", MODELS)
def test_gradients_and_their_slopes_are_those_of_each_batch_alone(name):
    spec = ModelSpec(name, (3, 16, 16), 5)
    model = flat_model(spec)
    weights = nn.utils.parameters_to_vector(build_model(spec, 1).parameters()).detach()
    images, targets = batches(spec.classes)

    def slopes(gradients):
        return torch.autograd.grad(gradients.square().sum(), [images, targets])

    assert supports(model.module)
    expected = vmap(model.gradient, in_dims=(None, 0, 0))(weights, images, targets)
    parameters = model.layout.unflatten(weights)
    found = example_gradients(model.module, parameters, images, targets)
    size = expected.detach().square().mean().sqrt()
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4 * float(size))
    for mine, theirs in zip(slopes(found), slopes(expected), strict=True):
        scale = float(theirs.square().mean().sqrt())
        torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-4 * scale)


def test_nothing_is_differentiated_that_need_not_be():
    model = flat_model(ModelSpec("convnet", (3, 16, 16), 5))
    images, targets = (one.detach() for one in batches(5))
    parameters = dict(model.module.named_parameters())
    with torch.no_grad():
        found = example_gradients(model.module, parameters, images, targets)
    assert not found.requires_grad


def test_layers_that_are_not_known_are_not_supported():
    assert not supports(nn.Sequential(nn.Conv2d(4, 4, 3, groups=2)))
    assert not supports(nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)))


def test_convolutions_of_few_pixels_do_without_onednn_and_leave_the_setting_as_it_was():
    usual = torch.backends.mkldnn.enabled
    with convolutions_for(torch.zeros(2, 3, 16, 16)):
        assert not torch.backends.mkldnn.enabled
    with convolutions_for(torch.zeros(2, 3, 64, 64)):
        assert torch.backends.mkldnn.enabled == usual
    assert torch.backends.mkldnn.enabled == usual
