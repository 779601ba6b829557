"""Find the layers that leak in closed form by what they compute; names and order do not matter."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor
from torch.func import vjp

from fl_sim.models import ModelSpec
from fl_sim.updates.local_update import FlatModel, flat_model

_JITTER = 0.1  # moves the probed weights from values at which a norm or a scale has no effect
_CLOSE = 1e-4  # relative difference of two gradients that are equal but for rounding


@dataclass(frozen=True)
class Layer:
    """Names of the weight and the bias of a layer; it may lack one."""

    weight: str | None
    bias: str | None


def find_head(model: ModelSpec) -> Layer | None:
    """Find the layer whose output is the logits; None if there is none.

    The gradient of its bias is the slope of the loss at the logits, that of its weight the outer
    product of this slope and the features. This is tested at random weights, on a random image
    with a random slope.
    """
    return _find_head(flat_model(model))


def find_input(model: ModelSpec) -> Layer | None:
    """Find a fully connected layer with a bias that sees the pixels; None if there is none.

    The gradient of its weight is the outer product of that of its bias and the image.
    """
    return _find_input(flat_model(model))


def find_relu_input(model: ModelSpec) -> Layer | None:
    """Find a `find_input` layer behind which a ReLU stands; None if there is none.

    Units that are negative at an image get no gradient from it, and units that are positive do.
    """
    layer = find_input(model)
    return layer if layer is not None and _is_cut_off(flat_model(model), layer) else None


@lru_cache(maxsize=8)
def _is_cut_off(model: FlatModel, layer: Layer) -> bool:
    image, weights, slope = _draw(model)
    tensors = model.layout.unflatten(weights)
    assert layer.weight is not None
    assert layer.bias is not None
    tensors[layer.weight].zero_()
    passed = []
    for value in (-1.0, 1.0):
        tensors[layer.bias].fill_(value)
        slopes = model.layout.unflatten(_pull(model, weights, image, slope))[layer.bias]
        passed.append(bool(slopes.any()))
    return passed == [False, True]


@lru_cache(maxsize=8)
def _find_head(model: FlatModel) -> Layer | None:
    _, slope, gradients = _probe(model)
    rows = {name: g for name, g in gradients.items() if g.dim() and len(g) == len(slope)}
    biases = (name for name, g in rows.items() if g.dim() == 1 and _same(g, slope))
    weights = (name for name, g in rows.items() if g.dim() > 1 and _is_outer(g, slope))
    weight, bias = next(weights, None), next(biases, None)
    return None if weight is None and bias is None else Layer(weight, bias)


@lru_cache(maxsize=8)
def _find_input(model: FlatModel) -> Layer | None:
    image, _, gradients = _probe(model)
    pixels = image.flatten()
    return next(_input_layers(gradients, pixels), None)


def _input_layers(gradients: dict[str, Tensor], pixels: Tensor) -> Iterator[Layer]:
    for weight, slopes in gradients.items():
        if slopes.dim() == 2 and slopes.shape[1] == len(pixels):
            units = slopes @ pixels / pixels.square().sum()
            if bool(units.any()) and _same(slopes, torch.outer(units, pixels)):
                same = (n for n, g in gradients.items() if g.shape == units.shape)
                yield from (Layer(weight, n) for n in same if _same(gradients[n], units))


def _probe(model: FlatModel) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """Return a random image, a random slope at its logits, and the gradient of every tensor."""
    image, weights, slope = _draw(model)
    return image, slope, model.layout.unflatten(_pull(model, weights, image, slope))


def _draw(model: FlatModel) -> tuple[Tensor, Tensor, Tensor]:
    """Return a random image, random weights, and a random slope at the logits."""
    generator = torch.Generator().manual_seed(0)
    image = torch.rand(model.spec.shape, generator=generator)
    given = model.layout.flatten({n: p.detach() for n, p in model.module.named_parameters()})
    weights = given + _JITTER * torch.randn(given.shape, generator=generator)
    return image, weights, torch.randn(model.spec.classes, generator=generator)


def _pull(model: FlatModel, weights: Tensor, image: Tensor, slope: Tensor) -> Tensor:
    """Return the gradient ``(size,)`` of the logits of an image, times a slope."""
    known = model.initial_statistics  # no batch is needed to find a layer
    _, pull = vjp(lambda w: model.logits(w, image[None], known)[0], weights)  # type: ignore[misc]
    (gradient,) = pull(slope)
    moved: Tensor = gradient.detach()
    return moved


def _is_outer(gradient: Tensor, slope: Tensor) -> bool:
    """Tell whether the rows of a gradient are one vector times the slope."""
    rows = gradient.flatten(1)
    features = slope @ rows / slope.square().sum()
    return bool(features.any()) and _same(rows, torch.outer(slope, features))


def _same(one: Tensor, other: Tensor) -> bool:
    return bool((one - other).norm() <= _CLOSE * other.norm())
