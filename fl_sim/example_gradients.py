"""Gradients of many batches at the same weights in two passes, with neither a loop nor ``vmap``.

One pass over all images gives the gradient with respect to the output of every layer. What a layer
would sum over all of them for its parameters is then summed for each batch on its own: an outer
product, for a convolution one of patches (Goodfellow 2015, arXiv 1510.01799).
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import cross_entropy, group_norm, unfold


def supports(module: nn.Module) -> bool:
    """Tell whether every parameter belongs to a layer that `example_gradients` knows."""
    owners = [layer for layer in module.modules() if list(layer.parameters(recurse=False))]
    return all(type(layer) in _RULES and getattr(layer, "groups", 1) == 1 for layer in owners)


def example_gradients(
    module: nn.Module, parameters: Mapping[str, Tensor], images: Tensor, targets: Tensor
) -> Tensor:
    """Return the gradient of the mean cross-entropy of every batch.

    Parameters
    ----------
    module : Module
        One that `supports` accepts and that uses no layer twice.
    parameters : Mapping[str, Tensor]
        Its weights, the same for all batches.
    images : Tensor
        ``(b, n, C, H, W)``: b batches of n.
    targets : Tensor
        ``(b, n, classes)`` target probabilities.

    Returns
    -------
    Tensor
        ``(b, size)``, the parameters in the module's order; differentiable in images and targets.
    """
    batches, count = images.shape[:2]
    seen: dict[nn.Module, tuple[Tensor, Tensor]] = {}

    def note(layer: nn.Module, inputs: tuple[Tensor], output: Tensor) -> Tensor:
        output = output if output.requires_grad else output.requires_grad_()
        seen[layer] = inputs[0], output
        return output.clone()  # what follows may work in place

    hooks = [m.register_forward_hook(note) for m in module.modules() if type(m) in _RULES]
    try:
        with torch.enable_grad():
            logits = functional_call(module, dict(parameters), (images.flatten(0, 1),))
            loss = cross_entropy(logits, targets.flatten(0, 1), reduction="sum") / count
    finally:
        for hook in hooks:
            hook.remove()
    layers = [layer for layer in module.modules() if layer in seen]
    outputs = [seen[layer][1] for layer in layers]
    differentiable = images.requires_grad or targets.requires_grad
    slopes = torch.autograd.grad(loss, outputs, create_graph=differentiable)
    gradients: list[Tensor] = []
    for layer, slope in zip(layers, slopes, strict=True):
        inputs, _ = seen[layer]
        weight, bias = _RULES[type(layer)](layer, inputs, slope)
        for summand in (weight, bias)[: 1 if layer.bias is None else 2]:
            gradients.append(summand.reshape(batches, count, -1).sum(dim=1))
    result = torch.cat(gradients, dim=1)
    return result if differentiable else result.detach()


def _linear(layer: nn.Linear, inputs: Tensor, slope: Tensor) -> tuple[Tensor, Tensor]:
    del layer
    return slope[:, :, None] * inputs[:, None], slope


def _convolution(layer: nn.Conv2d, inputs: Tensor, slope: Tensor) -> tuple[Tensor, Tensor]:
    patches = unfold(inputs, layer.kernel_size, layer.dilation, layer.padding, layer.stride)  # type: ignore[arg-type]
    return torch.bmm(slope.flatten(2), patches.transpose(1, 2)), slope.sum(dim=(2, 3))


def _group_norm(layer: nn.GroupNorm, inputs: Tensor, slope: Tensor) -> tuple[Tensor, Tensor]:
    normalized = group_norm(inputs, layer.num_groups, eps=layer.eps)
    return (slope * normalized).sum(dim=(2, 3)), slope.sum(dim=(2, 3))


# Each maps layer, inputs and the slope at its output to the gradients of weight and bias, by image.
_RULES: dict[type[nn.Module], Callable[[Any, Tensor, Tensor], tuple[Tensor, Tensor]]] = {
    nn.Linear: _linear,
    nn.Conv2d: _convolution,
    nn.GroupNorm: _group_norm,
}
