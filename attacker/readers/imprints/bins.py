"""Gradients of units that pass what is brighter than rising thresholds: an imprint layer."""

import torch
from torch import Tensor


def alone_in_bins(units: Tensor) -> Tensor:
    """Return what each bin ``(B, K, ...)`` adds to the units ``(B, K, ...)`` above it."""
    above = torch.cat([units[:, 1:], torch.zeros_like(units[:, :1])], dim=1)
    return units - above


def within_bins(bias: Tensor, brightness: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """Return the bias gradients ``(..., K)`` nearest to ``bias`` that explain the brightness.

    ``brightness`` ``(..., K)`` is that of the images times the bias gradient sought; ``low`` and
    ``high`` ``(K,)`` are limits of the brightness of an image.
    """
    size, sign = brightness.abs(), brightness.sign()
    return sign * (bias * sign).clamp(size / high, size / low)
