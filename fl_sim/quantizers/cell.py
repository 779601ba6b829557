"""What a payload tells of the update it encodes: the cell, and how far a candidate lies outside it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

Noise = Literal["none", "triangular", "gaussian", "laplace"]


@dataclass(frozen=True, eq=False)
class Cell:
    """Knowledge of an update, one element at a time, in the quantizer's code domain.

    All tensors have shape ``(..., d)``; leading dimensions index problems solved together.

    Attributes
    ----------
    center : Tensor
        The decoded value.
    lower, upper : Tensor
        Closed bounds of the values that encode to this payload; infinite where open. For a
        randomized quantizer, the support of the values that can have led here.
    step : Tensor
        The resolution: the width of the cell, or the scale of the noise. Positive.
    noise : "none", "triangular", "gaussian" or "laplace"
        How a value inside the bounds led to this code: surely, with a probability that falls
        linearly with the distance (stochastic rounding), or by additive noise of scale ``step``.
    scale_free : bool
        True if only the candidate's own magnitude gives a scale (plain sign): ``center``,
        bounds and step are then in units of the candidate's mean magnitude per tensor.
    sizes : tuple[int, ...]
        Elements of each tensor in the code domain, in order; they sum to ``d``.
    transform : callable or None
        Public linear map ``(..., n) -> (..., d)`` from update to code domain (a rotation).
    """

    center: Tensor
    lower: Tensor
    upper: Tensor
    step: Tensor
    sizes: tuple[int, ...]
    noise: Noise = "none"
    scale_free: bool = False
    transform: Callable[[Tensor], Tensor] | None = None

    def to_code_domain(self, candidate: Tensor) -> Tensor:
        """Map a candidate update ``(..., n)`` to the domain of the bounds, ``(..., d)``.

        Public rotations are applied; a scale-free cell divides by the candidate's own mean
        magnitude per tensor (detached: the scale is evidence, not a way out).
        """
        if self.transform is not None:
            candidate = self.transform(candidate)
        if not self.scale_free:
            return candidate
        pieces = candidate.split(self.sizes, dim=-1)
        tiny = torch.finfo(candidate.dtype).tiny
        return torch.cat(
            [p / p.detach().abs().mean(dim=-1, keepdim=True).clamp_min(tiny) for p in pieces],
            dim=-1,
        )

    def misfit(self, candidate: Tensor) -> Tensor:
        """Penalty per element of a candidate update, ``(..., n) -> (..., d)``; differentiable.

        Zero inside the cell and the squared distance to it in steps outside; for a randomized
        quantizer the negative log-likelihood of the code, which is zero at the code itself and
        continued quadratically outside the support.
        """
        value = self.to_code_domain(candidate)
        outside = (self.lower - value).relu() + (value - self.upper).relu()
        penalty = (outside / self.step) ** 2
        if self.noise == "none":
            return penalty
        distance = (value - self.center).abs() / self.step
        if self.noise == "gaussian":
            return distance**2 / 2
        if self.noise == "laplace":
            return distance
        # 1 - |distance| is the chance that stochastic rounding chose this code; floored so that
        # the gradient stays finite at the edge of the support, where the quadratic takes over.
        return -torch.log((1 - distance).clamp_min(1e-3)) + penalty

    @staticmethod
    def stack(cells: Sequence["Cell"]) -> "Cell":
        """Stack cells of one quantizer along a new first dimension."""
        first = cells[0]
        return Cell(
            center=torch.stack([cell.center for cell in cells]),
            lower=torch.stack([cell.lower for cell in cells]),
            upper=torch.stack([cell.upper for cell in cells]),
            step=torch.stack([cell.step for cell in cells]),
            sizes=first.sizes,
            noise=first.noise,
            scale_free=first.scale_free,
            transform=first.transform,
        )
