"""Server plans where clients normalise what their model sees.

A plan that sets a first layer sets it for pixels from 0 to 1. On inputs u = (x - mean) / std, the
layer W x + b is the layer W std u + (b + W mean): weights are moved from one to the other.
"""

import torch
from torch import Tensor

from fl_sim.models import ModelSpec
from fl_sim.plans.plan import ServerPlan
from fl_sim.updates.local_update import flat_model
from fl_sim.updates.local_work import LocalWork


def planted_weights(
    plan: ServerPlan,
    work: LocalWork,
    model: ModelSpec,
    weights: Tensor,
    public: Tensor,
    client: int | None = None,
) -> Tensor:
    """Return the weights that clients are sent by a plan.

    Parameters
    ----------
    plan : ServerPlan
        The plan.
    work : LocalWork
        Of the clients: how they normalise pixels.
    model, weights, public
        As of `ServerPlan.weights`.
    client : int, optional
        As of `ServerPlan.weights_for`; without it, the weights of `ServerPlan.weights`.

    Returns
    -------
    Tensor
        ``(size,)``.
    """
    layer = plan.first_layer(model)
    facts = (model, weights, public if layer else work.inputs(public))
    planted = plan.weights(*facts) if client is None else plan.weights_for(client, *facts)
    return planted if layer is None else onto_inputs(planted, work, model, layer)


def onto_inputs(
    weights: Tensor, work: LocalWork, model: ModelSpec, layer: tuple[str, str]
) -> Tensor:
    """Return the weights ``(size,)`` whose first layer does to inputs what it did to pixels."""
    if not work.mean:
        return weights
    mean, std = mean_and_deviation(work, model)
    return _moved(weights, model, layer, mean, std)


def onto_pixels(
    weights: Tensor, work: LocalWork, model: ModelSpec, layer: tuple[str, str]
) -> Tensor:
    """Return the weights ``(size,)`` whose first layer does to pixels what it did to inputs."""
    if not work.mean:
        return weights
    mean, std = mean_and_deviation(work, model)
    return _moved(weights, model, layer, -mean / std, 1 / std)


def mean_and_deviation(work: LocalWork, model: ModelSpec) -> tuple[Tensor, Tensor]:
    """Return by what each channel is normalised, ``(C, 1, 1)`` each."""
    black = torch.zeros(model.shape[0], 1, 1)
    mean = work.pixels(black)
    return mean, work.pixels(black + 1) - mean


def _moved(
    weights: Tensor, model: ModelSpec, layer: tuple[str, str], mean: Tensor, std: Tensor
) -> Tensor:
    """Return the weights whose first layer does to u what it did to ``std u + mean``."""
    layout = flat_model(model).layout
    tensors = layout.unflatten(weights.clone())
    weight, bias = (tensors[name] for name in layer)
    seen = weight.view(len(weight), *model.shape) if weight.dim() == 2 else weight
    bias += (seen * mean).flatten(1).sum(dim=1)
    seen *= std
    return layout.flatten(tensors)
