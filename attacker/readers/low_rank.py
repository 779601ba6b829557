"""Gradients of a layer as matrices of low rank: their rank is the number of images of the batch."""

import torch
from torch import Tensor

_COMPLETIONS = 100  # most projections, to complete hidden elements
_COMPLETE = 1e-9  # change of the elements, relative to their norm, at which they are complete
_SPARE, _POWERS = 8, 4  # further vectors, and iterations, of the truncated singular values


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
