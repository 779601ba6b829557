"""Public maps from an update to the code domain that quantizers share; see `Cell`."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fl_sim.coding.cell import Transform

_ROUNDING = 1e-6


@dataclass(frozen=True)
class ClipToNorm:
    """Scale an update to an L2 norm of at most ``norm``; public, so attackers apply it too."""

    norm: float

    def __call__(self, update: Tensor) -> Tensor:
        """Map ``(..., n)`` to ``(..., n)``."""
        length: Tensor = torch.linalg.vector_norm(update, dim=-1, keepdim=True)
        # A little below the norm, so that rounding does not put a clipped update above it.
        scale = (1 - _ROUNDING) * self.norm / length.clamp_min(self.norm)
        return torch.where(length > self.norm, update * scale, update)

    def invert(self, codes: Tensor) -> Tensor:
        """Return ``codes``: nothing is known of what was clipped."""
        return codes

    def stack(self, others: Sequence["ClipToNorm"]) -> "ClipToNorm":
        """Return itself: it is the same for every payload."""
        del others
        return self


@dataclass(frozen=True, eq=False)
class Chain:
    """One transform after another."""

    first: Transform
    second: Transform

    @staticmethod
    def of(first: Transform, second: Transform | None) -> Transform:
        """Return both, or the first alone if there is no second."""
        return first if second is None else Chain(first, second)

    def __call__(self, update: Tensor) -> Tensor:
        """Map ``(..., n)`` to the code domain of the second."""
        return self.second(self.first(update))

    def invert(self, codes: Tensor) -> Tensor:
        """Map the code domain of the second back to ``(..., n)``."""
        return self.first.invert(self.second.invert(codes))

    def stack(self, others: Sequence[Any]) -> "Chain":
        """Return the chains of several payloads, stacked."""
        return Chain(
            self.first.stack([other.first for other in others]),
            self.second.stack([other.second for other in others]),
        )
