"""BatchNorm in training mode as a pure function, with the statistics of every batch as a result.

A layer in training mode normalises by mean and variance of its own batch, and moves its running
statistics towards them (Ioffe and Szegedy 2015, arXiv 1502.03167). PyTorch moves them in place,
which neither ``vmap`` nor a second derivative survives. Here each layer computes by plain tensor
operations.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from math import prod

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

MEAN, VARIANCE = "running_mean", "running_var"


def couples_images(module: nn.Module) -> bool:
    """Tell whether the images of a batch change each other's logits while clients train."""
    return any(isinstance(one, _BatchNorm) and _uses_batch(one) for one in module.modules())


def trained_as_built(module: nn.Module) -> nn.Module:
    """Switch dropout and the like off; BatchNorm layers keep the mode that they were built in."""
    training = [m for m in module.modules() if isinstance(m, _BatchNorm) and m.training]
    module.eval()
    for layer in training:
        layer.train()
    return module


def tracked_layers(module: nn.Module) -> dict[str, _BatchNorm]:
    """Return the BatchNorm layers by name whose running statistics training changes."""
    return {
        name: layer
        for name, layer in module.named_modules()
        if isinstance(layer, _BatchNorm) and layer.training and layer.running_mean is not None
    }


def fewest_values(module: nn.Module, shape: tuple[int, int, int], images: int) -> int | None:
    """Return over how many values a BatchNorm layer in training mode averages, at least.

    One value has no variance, and PyTorch refuses it. None if there is no such layer.
    """
    seen: list[int] = []

    def note(layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        del layer
        seen.append(inputs[0].numel() // inputs[0].shape[1])

    layers = [m for m in module.modules() if isinstance(m, _BatchNorm) and _uses_batch(m)]
    hooks = [layer.register_forward_pre_hook(note) for layer in layers]
    modes = [(layer, layer.training) for layer in layers]
    try:
        for layer in layers:
            layer.eval()  # which takes any number, if there are running statistics
        with torch.no_grad():
            module(torch.zeros(max(2, images), *shape))
    finally:
        for hook in hooks:
            hook.remove()
        for layer, training in modes:
            layer.train(training)
    return min(seen) * images // max(2, images) if seen else None


class FunctionalBatchNorm:
    """Takes the place of ``forward`` in all BatchNorm layers of a module that use their batch.

    Attributes
    ----------
    shapes : dict[str, int]
        Features of each layer with running statistics, by name.
    """

    def __init__(self, module: nn.Module) -> None:
        self.shapes = {n: layer.num_features for n, layer in tracked_layers(module).items()}
        self._fixed: Mapping[str, Tensor] | None = None
        self._seen: dict[str, tuple[Tensor, Tensor]] = {}
        for name, layer in module.named_modules():
            if isinstance(layer, _BatchNorm) and _uses_batch(layer):
                layer.__dict__["forward"] = _Forward(name, layer, self)

    @contextmanager
    def fixed(self, statistics: Mapping[str, Tensor] | None) -> Iterator[None]:
        """Normalise by these statistics within a block, as in evaluation mode; None: by batches."""
        before, self._fixed = self._fixed, statistics
        try:
            yield
        finally:
            self._fixed = before

    def seen(self) -> list[Tensor]:
        """Return mean and unbiased variance of each layer's last batch, layer by layer; once."""
        seen, self._seen = self._seen, {}
        return [one for name in self.shapes for one in seen[name]]

    def normalise(self, name: str, layer: _BatchNorm, inputs: Tensor) -> Tensor:
        """Return what a layer puts out."""
        over = [0, *range(2, inputs.dim())]
        if self._fixed is not None and name in self.shapes:
            mean, variance = (self._fixed[f"{name}.{one}"] for one in (MEAN, VARIANCE))
        else:
            mean, variance = inputs.mean(over), inputs.var(over, unbiased=False)
            self._note(name, mean, variance, prod(inputs.shape[one] for one in over))
        shape = (1, -1, *([1] * (inputs.dim() - 2)))
        scale = (variance + layer.eps).rsqrt()
        output = (inputs - mean.view(shape)) * scale.view(shape)
        if layer.affine:
            output = output * layer.weight.view(shape) + layer.bias.view(shape)
        return output

    def _note(self, name: str, mean: Tensor, variance: Tensor, count: int) -> None:
        if name in self._seen:
            raise RuntimeError(f"layer {name!r} (BatchNorm) is used twice")
        if name in self.shapes:
            self._seen[name] = mean, variance * (count / max(1, count - 1))

    def forget(self) -> None:
        """Forget batches that nobody asked about."""
        self._seen = {}


class _Forward:
    def __init__(self, name: str, layer: _BatchNorm, all_layers: FunctionalBatchNorm) -> None:
        self.name, self.layer, self.all_layers = name, layer, all_layers

    def __call__(self, inputs: Tensor) -> Tensor:
        return self.all_layers.normalise(self.name, self.layer, inputs)


def _uses_batch(layer: _BatchNorm) -> bool:
    return layer.training or layer.running_mean is None
