"""Find three layers with ReLUs between them, by what a model computes."""

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from fl_sim.models import ModelSpec
from fl_sim.updates.local_update import FlatModel, flat_model

_CLOSE = 1e-4  # relative difference of logits that are equal but for rounding


@dataclass(frozen=True)
class Layer:
    """Names of a layer's weight and bias."""

    weight: str
    bias: str


@dataclass(frozen=True)
class Chain:
    """The three layers of a model convolution or linear - ReLU - linear - ReLU - linear.

    Attributes
    ----------
    first : Layer
        Fully connected to the pixels, or a convolution that keeps the size of the image: stride 1,
        and as much padding as its kernel needs.
    hidden : Layer
        Fully connected to every unit, or to every pixel of every channel.
    head : Layer
        Its output is the logits.
    convolves : bool
        Whether the first layer is a convolution.
    """

    first: Layer
    hidden: Layer
    head: Layer
    convolves: bool


def find_chain(model: ModelSpec) -> Chain | None:
    """Find the three layers; None if the model is not such a chain.

    The order of the layers is that in which a probe passes them. Whether nothing else happens in
    between is tested on random images.
    """
    return _find_chain(flat_model(model))


def answers(weight: Tensor, bias: Tensor, images: Tensor) -> Tensor:
    """Return what the first layer of a chain answers before the ReLU, ``(N, features)``.

    Parameters
    ----------
    weight : Tensor
        ``(K, I, h, w)`` of a convolution, or ``(K, pixels)``.
    bias : Tensor
        ``(K,)``.
    images : Tensor
        ``(N, C, H, W)``.
    """
    if weight.dim() == 2:
        return F.linear(images.flatten(1), weight, bias)
    return F.conv2d(images, weight, bias, padding="same").flatten(1)


@lru_cache(maxsize=8)
def _find_chain(model: FlatModel) -> Chain | None:
    layers = [one for one in _passed(model) if isinstance(one[1], nn.Conv2d | nn.Linear)]
    kinds = [type(layer) for _, layer in layers]
    if kinds not in ([nn.Conv2d, nn.Linear, nn.Linear], [nn.Linear] * 3):
        return None
    first, hidden, head = (Layer(f"{name}.weight", f"{name}.bias") for name, _ in layers)
    chain = Chain(first, hidden, head, convolves=kinds[0] is nn.Conv2d)
    return chain if _agrees(model, chain) else None


def _passed(model: FlatModel) -> list[tuple[str, nn.Module]]:
    """Return the layers with weights in the order in which a probe passes them."""
    passed: list[tuple[str, nn.Module]] = []
    leaves = [(n, m) for n, m in model.module.named_modules() if not list(m.children())]
    hooks = [
        leaf.register_forward_hook(lambda *_, one=(name, leaf): passed.append(one))
        for name, leaf in leaves
        if list(leaf.parameters(recurse=False))
    ]
    try:
        with torch.no_grad():
            model.module(torch.zeros(1, *model.spec.shape))
    finally:
        for hook in hooks:
            hook.remove()
    return passed


def _agrees(model: FlatModel, chain: Chain) -> bool:
    tensors = dict(model.module.named_parameters())
    parts = (chain.first, chain.hidden, chain.head)
    if any(name not in tensors for part in parts for name in (part.weight, part.bias)):
        return False
    rng = torch.Generator().manual_seed(0)
    images = torch.rand((2, *model.spec.shape), generator=rng)
    try:
        features = answers(*_of(tensors, chain.first), images).relu()
        hidden = F.linear(features, *_of(tensors, chain.hidden)).relu()
        logits = F.linear(hidden, *_of(tensors, chain.head))
    except RuntimeError:
        return False
    exact = model.module(images)
    return bool((logits - exact).norm() <= _CLOSE * exact.norm())


def _of(tensors: dict[str, nn.Parameter], layer: Layer) -> tuple[Tensor, Tensor]:
    return tensors[layer.weight], tensors[layer.bias]
