"""A layer on normalised inputs, and its gradient, as of a layer on the pixels."""

from torch import Tensor

from attacker.matching.problems import Problems
from fl_sim.plans.inputs import mean_and_deviation, onto_pixels


def pixel_rows(problems: Problems, weight: str, bias: str) -> Tensor:
    """Return the gradient ``(B, K, pixels)`` of a fully connected layer as if it saw pixels.

    The gradient of a row is an error signal times the inputs, that of the bias the error signal:
    inputs times their deviation, plus the mean, are pixels.
    """
    rows = problems.decoded(weight)
    if not problems.work.mean:
        return rows
    mean, std = mean_and_deviation(problems.work, problems.model)
    seen = rows.reshape(*rows.shape[:2], *problems.model.shape)
    errors = problems.decoded(bias)[:, :, None, None, None]
    return (seen * std + errors * mean).flatten(2)


def pixel_weights(problems: Problems, weight: str, bias: str) -> dict[str, Tensor]:
    """Return the weights that were sent, by name, with this layer as if it saw pixels."""
    seen = onto_pixels(problems.weights, problems.work, problems.model, (weight, bias))
    return problems.flat_model.layout.unflatten(seen)
