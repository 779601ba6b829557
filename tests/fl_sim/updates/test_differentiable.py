"""Models that other people write: attention, dropout, layers used in ways of their own."""

import pytest
import torch
from torch import nn
from torch.autograd.function import once_differentiable
from torch.nn.functional import scaled_dot_product_attention

from fl_sim.models import ModelSpec, register_model
from fl_sim.updates.differentiable import (
    NotDifferentiableError,
    check_differentiable,
    dropout_layers,
)
from fl_sim.updates.local_update import flat_model


class Tokens(nn.Module):
    """Cut an image of 4 x 4 pixels into rows, mix them, and classify."""

    def __init__(self, mix):
        super().__init__()
        self.embed = nn.Linear(4, 8)
        self.mix = mix
        self.head = nn.Linear(32, 3)

    def forward(self, images):
        return self.head(self.mix(self.embed(images.flatten(0, 1)).tanh()).flatten(1))


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, x):
        return self.layer(x, x, x, need_weights=False)[0]


class Fused(nn.Module):
    def forward(self, x):
        return scaled_dot_product_attention(x, x, x)


class Twice(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(8, 8)

    def forward(self, x):
        return self.layer(self.layer(x).tanh())


class _Once(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(x):
        return 2 * x

    @staticmethod
    def setup_context(ctx, inputs, output):
        pass

    @staticmethod
    @once_differentiable
    def backward(ctx, slope):
        return 2 * slope


class Once(nn.Module):
    def forward(self, x):
        return _Once.apply(x)


class Blind(nn.Module):
    def forward(self, x):
        return torch.zeros_like(x)


MIXES = {
    "nothing": nn.Identity,
    "attention": Attention,
    "fused attention": Fused,
    "transformer": lambda: nn.TransformerEncoderLayer(8, 2, 16, batch_first=True),
    "layer used twice": Twice,
    "dropout": lambda: nn.Dropout(0.5),
    "layer norm": lambda: nn.LayerNorm(8),
    "change in place": lambda: nn.Sequential(nn.Linear(8, 8), nn.ReLU(inplace=True)),
}


@pytest.fixture
def spec(request):
    register_model("tokens", lambda: Tokens(request.param()))
    flat_model.cache_clear()
    yield ModelSpec("tokens", (1, 4, 4), 3)
    flat_model.cache_clear()


@pytest.mark.parametrize("spec", MIXES.values(), ids=MIXES, indirect=True)
def test_gradients_of_many_batches_are_those_of_plain_autograd_and_twice_differentiable(spec):
    check_differentiable(spec)
    model = flat_model(spec)
    weights = torch.randn(model.layout.size, generator=torch.Generator().manual_seed(1)) / 4
    images = torch.rand((3, 2, 1, 4, 4), generator=torch.Generator().manual_seed(2))
    targets = torch.eye(3)[torch.tensor([[0, 1], [2, 0], [1, 1]])]
    together = model.gradients(weights, images, targets)
    for one, image, target in zip(together, images, targets, strict=True):
        plain = model.eager_gradient(weights, image, target)
        torch.testing.assert_close(one, plain, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("spec", [Once], indirect=True)
def test_a_layer_without_a_second_derivative_is_refused_by_name(spec):
    with pytest.raises(NotDifferentiableError, match=r"layer 'mix' \(Once\) cannot be"):
        check_differentiable(spec)


@pytest.mark.parametrize("spec", [Blind], indirect=True)
def test_a_model_that_does_not_see_the_images_is_refused(spec):
    with pytest.raises(NotDifferentiableError, match="does not change with the images"):
        check_differentiable(spec)


def test_layers_that_drop_something_are_named():
    layers = nn.Sequential(nn.Dropout(0.0), nn.Dropout2d(0.1), nn.MultiheadAttention(4, 2, 0.1))
    assert dropout_layers(layers) == ["1", "2"]
