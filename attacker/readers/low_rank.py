"""Gradients of a layer as matrices of low rank: their rank is the number of images of the batch."""

import torch
from torch import Tensor

from attacker.matching.problems import Problems
from fl_sim.observed.observations import Observation
from fl_sim.updates.layers import Layer

_COMPLETIONS = 100  # most projections, to complete hidden elements
_COMPLETE = 1e-9  # change of the elements, relative to their norm, at which they are complete
_SPARE, _POWERS = 8, 4  # further vectors, and iterations, of the truncated singular values


def units_of(observation: Observation, layer: Layer | None) -> int:
    """Count the units of a layer with a bias; 0 where it does not help to tell a batch apart.

    So it is without such a layer, and after several local steps.
    """
    if layer is None or layer.bias is None or observation.work.local_steps != 1:
        return 0
    segments = observation.payload.layout.segments
    return next(one.shape[0] for one in segments if one.name == layer.bias)


def mixtures_of(problems: Problems, layer: Layer) -> tuple[Tensor, Tensor]:
    """Return gradients ``(B, K, p + 1)`` of a layer's weight and bias, and which elements are seen.

    Each row is a mixture of the images of the batch, each followed by a one. What is seen is 1, and
    0 elsewhere, ``(K, p + 1)``.
    """
    weight, bias = str(layer.weight), str(layer.bias)
    gradient, shown = (
        torch.cat([of(weight), of(bias)[..., None]], dim=-1).double()
        for of in (problems.decoded, problems.shown)
    )
    return gradient, shown


def completed(gradient: Tensor, shown: Tensor, rank: int, generator: torch.Generator) -> Tensor:
    """Return ``(K, p)`` with its hidden elements replaced by those of a matrix of low rank.

    By projection onto the leading singular vectors and back onto what is shown, in turns (the
    hard-thresholded form of Mazumder et al. 2010).
    """
    if bool(shown.all()):
        return gradient
    known, space = shown > 0, _draw(gradient, rank, generator)
    filled = torch.where(known, gradient, 0.0)
    for _ in range(_COMPLETIONS):
        space = torch.linalg.qr(filled.T @ (filled @ space)).Q
        last, filled = filled, torch.where(known, gradient, filled @ space @ space.T)
        if float((filled - last).norm()) <= _COMPLETE * float(filled.norm()):
            break
    return filled


def truncated(
    gradient: Tensor, rank: int, generator: torch.Generator
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the largest singular values ``(r,)`` and their vectors ``(K, r)``, ``(r, p)``.

    By subspace iteration from random vectors (Halko et al. 2011, arXiv 0909.4061).
    """
    space = _draw(gradient, rank + _SPARE, generator)
    for _ in range(_POWERS):
        space = torch.linalg.qr(gradient.T @ torch.linalg.qr(gradient @ space).Q).Q
    left, values, right = torch.linalg.svd(gradient @ space, full_matrices=False)
    return left[:, :rank], values[:rank], (right @ space.T)[:rank]


def _draw(gradient: Tensor, count: int, generator: torch.Generator) -> Tensor:
    size = gradient.shape[1], count
    return torch.randn(size, generator=generator, dtype=gradient.dtype)
