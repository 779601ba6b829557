"""Public images: auxiliary data an attacker may own, disjoint from every client's."""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, eq=False)
class PublicImages:
    """Images anyone can have, with their labels.

    Attributes
    ----------
    images : Tensor
        ``(N, C, H, W)`` float32 in [0, 1].
    labels : Tensor
        ``(N,)`` int64.
    """

    images: Tensor
    labels: Tensor
