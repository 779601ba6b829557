"""Normalisation layers by name."""

from math import gcd
from typing import Literal

from torch import nn

NormName = Literal["group", "batch", "none"]
"""GroupNorm, which sees one image at a time; BatchNorm, which couples a batch; or nothing."""


def norm_layer(name: NormName, channels: int, groups: int = 8) -> nn.Module:
    """Return the layer for ``channels`` channels, of which GroupNorm makes ``groups`` at most."""
    if name == "none":
        return nn.Identity()
    if name == "batch":
        return nn.BatchNorm2d(channels)
    return nn.GroupNorm(gcd(groups, channels), channels)
