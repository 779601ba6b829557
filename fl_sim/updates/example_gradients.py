"""Gradients of many batches in two passes, with neither a loop nor ``vmap``.

One pass over all images gives the gradient with respect to the output of every layer. What a layer
would sum over all of them for its parameters is then summed for each batch on its own: an outer
product, for a convolution one of patches (Goodfellow 2015, arXiv 1510.01799). As nothing is shared
between images on the way, each batch may have weights of its own.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, group_norm, linear, unfold

from fl_sim.updates.batch_norm import couples_images


def supports(module: nn.Module) -> bool:
    """Tell whether every parameter is of one layer, which `example_gradients` knows."""
    names = list(module.named_parameters(remove_duplicate=False))
    if len(names) > len(list(module.parameters())) or list(module.buffers()):
        return False
    if couples_images(module):  # all images are one batch here
        return False
    owners = [layer for layer in module.modules() if list(layer.parameters(recurse=False))]
    return all(type(layer) in _PASSES and _PASSES[type(layer)].knows(layer) for layer in owners)


def example_gradients(
    module: nn.Module, parameters: Mapping[str, Tensor], images: Tensor, targets: Tensor
) -> Tensor:
    """Return the gradient of the mean cross-entropy of every batch.

    Parameters
    ----------
    module : Module
        One that `supports` accepts and that uses no layer twice.
    parameters : Mapping[str, Tensor]
        Its weights, the same for all batches or, with a first dimension b, those of each.
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
    with torch.enable_grad(), _passes(module, parameters, count) as passes:
        logits = module(images.flatten(0, 1))
        loss = cross_entropy(logits, targets.flatten(0, 1), reduction="sum") / count
    differentiable = images.requires_grad or targets.requires_grad
    outputs = [one.output for one in passes if one.used]
    slopes = iter(torch.autograd.grad(loss, outputs, create_graph=differentiable))
    gradients: list[Tensor] = []
    for one in passes:
        if not one.used:
            gradients += [logits.new_zeros(batches, size) for size in one.sizes]
            continue
        slope = next(slopes)
        for summand in one.gradients(slope)[: 1 if one.bias is None else 2]:
            each = summand.reshape(batches, count, -1)
            gradients.append(each.sum(dim=1) if count > 1 else each.squeeze(1))
    result = torch.cat(gradients, dim=1)
    return result if differentiable else result.detach()


class _Pass(ABC):
    """One pass of images through one layer, and what is left behind for its gradients.

    Parameters
    ----------
    layer : Module
        Whose type and shape it has.
    weight, bias : Tensor
        Of all images, or with a first dimension those of each batch.
    count : int
        Images in a batch.
    """

    output: Tensor  # of all images, attached to the graph

    def __init__(self, layer: Any, weight: Tensor, bias: Tensor | None, count: int) -> None:
        self.layer, self.weight, self.bias, self.count = layer, weight, bias, count
        self.shared = weight.dim() == layer.weight.dim()

    @property
    def used(self) -> bool:
        """Whether images came through."""
        return hasattr(self, "output")

    @property
    def sizes(self) -> list[int]:
        """Number of elements of each parameter."""
        return [parameter.numel() for parameter in self.layer.parameters()]

    @staticmethod
    def knows(layer: Any) -> bool:
        """Tell whether a layer of this type does nothing that the pass does not."""
        del layer
        return True

    def __call__(self, inputs: Tensor) -> Tensor:
        """Compute what the layer would."""
        output = self.compute(inputs)
        self.output = output if output.requires_grad else output.requires_grad_()
        return self.output.clone()  # what follows may work in place

    def by_image(self, parameter: Tensor) -> Tensor:
        """Return a parameter with the images as its first dimension, which is 1 if it is shared."""
        if self.shared:
            return parameter[None]
        return parameter if self.count == 1 else parameter.repeat_interleave(self.count, dim=0)

    @abstractmethod
    def compute(self, inputs: Tensor) -> Tensor:
        """Map inputs ``(b n, ...)`` to what the layer puts out."""

    @abstractmethod
    def gradients(self, slope: Tensor) -> tuple[Tensor, Tensor]:
        """Return the gradients of weight and bias of each image, from the slope at its output."""


class _Linear(_Pass):
    def compute(self, inputs: Tensor) -> Tensor:
        self.inputs = inputs
        if self.shared:
            return linear(inputs, self.weight, self.bias)
        output = torch.bmm(inputs[:, None], self.by_image(self.weight).mT).squeeze(1)
        return output if self.bias is None else output + self.by_image(self.bias)

    def gradients(self, slope: Tensor) -> tuple[Tensor, Tensor]:
        return slope[:, :, None] * self.inputs[:, None], slope


class _Convolution(_Pass):
    @staticmethod
    def knows(layer: Any) -> bool:
        plain = layer.padding_mode == "zeros" and not isinstance(layer.padding, str)
        return plain and layer.groups == 1

    def compute(self, inputs: Tensor) -> Tensor:
        self.patches = unfold(inputs, **self._window)
        weight = self.by_image(self.weight).flatten(2).expand(len(inputs), -1, -1)
        if self.bias is None:
            output = torch.bmm(weight, self.patches)
        else:
            bias = self.by_image(self.bias)[:, :, None]
            output = torch.baddbmm(bias, weight, self.patches)
        return output.view(len(inputs), -1, *self._sides(inputs))

    @property
    def _window(self) -> dict[str, tuple[int, int]]:
        names = ("kernel_size", "dilation", "padding", "stride")
        return {name: getattr(self.layer, name) for name in names}

    def _sides(self, inputs: Tensor) -> list[int]:
        sizes = zip(inputs.shape[2:], *self._window.values(), strict=True)
        return [
            (size + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1
            for size, kernel, dilation, padding, stride in sizes
        ]

    def gradients(self, slope: Tensor) -> tuple[Tensor, Tensor]:
        slope = slope.flatten(2)
        return torch.bmm(slope, self.patches.transpose(1, 2)), slope.sum(dim=2)


class _GroupNorm(_Pass):
    def compute(self, inputs: Tensor) -> Tensor:
        assert self.bias is not None
        self.normalized = group_norm(inputs, self.layer.num_groups, eps=self.layer.eps)
        weight, bias = (self.by_image(p)[:, :, None, None] for p in (self.weight, self.bias))
        return self.normalized * weight + bias

    def gradients(self, slope: Tensor) -> tuple[Tensor, Tensor]:
        return (slope * self.normalized).sum(dim=(2, 3)), slope.sum(dim=(2, 3))


_PASSES: dict[type[nn.Module], type[_Pass]] = {
    nn.Linear: _Linear,
    nn.Conv2d: _Convolution,
    nn.GroupNorm: _GroupNorm,
}


@contextmanager
def _passes(
    module: nn.Module, parameters: Mapping[str, Tensor], count: int
) -> Iterator[list[_Pass]]:
    """Let every layer with parameters compute by a `_Pass` with the parameters given."""
    passes = []
    for name, layer in module.named_modules():
        if type(layer) in _PASSES:
            weight, bias = (parameters.get(f"{name}.{kind}") for kind in ("weight", "bias"))
            assert weight is not None
            passes.append(_PASSES[type(layer)](layer, weight, bias, count))
    try:
        for one in passes:
            one.layer.__dict__["forward"] = one  # in the place of its own
        yield passes
    finally:
        for one in passes:
            one.layer.__dict__.pop("forward", None)
