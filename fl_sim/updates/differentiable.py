"""Check that a model can be attacked: its update must change with the images, differentiably."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.dropout import _DropoutNd

from fl_sim.models import ModelSpec, build_model
from fl_sim.updates.batch_norm import couples_images
from fl_sim.updates.local_update import differentiable_kernels, flat_model


class NotDifferentiableError(ValueError):
    """A model whose update cannot be differentiated with respect to the images."""


def check_differentiable(spec: ModelSpec) -> None:
    """Differentiate the update of a random image once, as every attack will.

    Raises
    ------
    NotDifferentiableError
        If that fails, naming the first layer at fault, or if the update does not depend on the
        image.
    """
    rng = torch.Generator().manual_seed(0)
    count = 2 if couples_images(build_model(spec)) else 1  # of one value, no layer has a variance
    images = torch.rand((1, count, *spec.shape), generator=rng)
    targets = torch.rand((1, count, spec.classes), generator=rng).softmax(dim=-1)
    # Layers first: a transform of functions may take the second derivative of one that has none
    # for zero, and say nothing.
    _check_layers(spec, images[0])
    model, images = flat_model(spec), images.requires_grad_()
    trained = {name: one.detach() for name, one in build_model(spec).named_parameters()}
    try:
        updates = model.gradients(model.layout.flatten(trained), images, targets)
        size = updates.square().sum() + 0 * images.sum()
        (slope,) = torch.autograd.grad(size, images)
    except RuntimeError as error:
        raise _refusal("it", error) from error
    if not bool(slope.any()):
        raise NotDifferentiableError(
            "The model cannot be attacked: its update does not change with the images."
        )


def _refusal(what: str, error: RuntimeError) -> NotDifferentiableError:
    reason = str(error).strip().partition("\n")[0]
    return NotDifferentiableError(
        f"The model cannot be attacked: {what} cannot be differentiated twice ({reason})."
    )


def dropout_layers(module: nn.Module) -> list[str]:
    """Return the names of the layers that drop something while clients train."""
    return [
        name
        for name, layer in module.named_modules()
        if (isinstance(layer, _DropoutNd) and layer.p > 0)
        or (isinstance(layer, nn.MultiheadAttention | nn.RNNBase) and layer.dropout > 0)
    ]


def _check_layers(spec: ModelSpec, images: Tensor) -> None:
    """Differentiate each layer without layers of its own twice, on what reaches it."""
    module = build_model(spec).eval()
    seen: list[tuple[str, nn.Module, tuple[Any, ...]]] = []
    for name, layer in module.named_modules():
        if not list(layer.children()):
            layer.register_forward_pre_hook(
                lambda layer, inputs, name=name: seen.append((name, layer, inputs))
            )
    with differentiable_kernels():
        with torch.no_grad():
            module(images)
        for name, layer, inputs in list(seen):
            try:
                _differentiate_twice(layer, inputs)
            except RuntimeError as error:
                raise _refusal(f"layer {name!r} ({type(layer).__name__})", error) from error


def _differentiate_twice(layer: nn.Module, inputs: tuple[Any, ...]) -> None:
    own = [
        one.detach().clone().requires_grad_()
        if isinstance(one, Tensor) and one.is_floating_point()
        else one
        for one in inputs
    ]
    free = [one for one in own if isinstance(one, Tensor) and one.requires_grad]
    copies = [one.clone() if isinstance(one, Tensor) else one for one in own]
    output = layer(*copies)  # which may change them in place
    if not isinstance(output, Tensor) or not output.requires_grad:
        return
    first = torch.autograd.grad(
        output.square().sum(), free, create_graph=True, materialize_grads=True
    )
    total = torch.stack([one.square().sum() for one in first]).sum()
    if total.requires_grad:
        torch.autograd.backward(total)  # through the whole graph, a node that only raises too
