"""What a payload reveals about its update (its cell), and how far a candidate is from it."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import log
from typing import Literal, Protocol, Self

import torch
from torch import Tensor

from fl_sim.coding.likelihoods import Likelihood
from fl_sim.updates.local_update import Layout

Noise = Literal["none", "triangular", "gaussian", "laplace", "discrete"]

_ROUNDING = 1e-3  # of a step; what reaches no further does so by an error of rounding
_TANGENT = 0.9  # share of the way to a bound at which `_minus_log_of_rest` becomes a polynomial


class Transform(Protocol):
    """A public, differentiable map ``(..., n) -> (..., d)`` from update to code domain."""

    def __call__(self, update: Tensor) -> Tensor:
        """Map an update; leading dimensions broadcast against those of a stacked transform."""

    def invert(self, codes: Tensor) -> Tensor:
        """Map ``(..., d)`` in the code domain to the update it stands for, ``(..., n)``."""

    def stack(self, others: Sequence[Self]) -> Self:
        """Return the transforms of several payloads (``self`` the first) along a new dimension."""


@dataclass(frozen=True, eq=False)
class Cell:
    """What is known about each element of an update, in the quantizer's code domain.

    All tensors have shape ``(..., d)``; leading dimensions index problems solved together.

    Attributes
    ----------
    center : Tensor
        The decoded value.
    lower, upper : Tensor
        Closed bounds of the values that encode to this payload; infinite where there is none. For
        a randomized quantizer, bounds of the values that can encode to it.
    step : Tensor
        The resolution: the width of the cell, or the scale of the noise. Positive.
    noise : "none", "triangular", "gaussian", "laplace" or "discrete"
        How a value inside the bounds is encoded to this payload: always; with a probability that
        falls linearly from ``center`` to either bound (stochastic rounding); by additive noise
        of scale ``step``; or with the probabilities of ``likelihood``.
    scale_free : bool
        True if the payload has no scale (plain sign): ``center``, bounds and step are then in
        units of the candidate's mean magnitude per tensor.
    sizes : tuple[int, ...]
        Elements of each tensor in the code domain, in order; they sum to ``d``.
    transform : Transform or None
        Public map ``(..., n) -> (..., d)`` from update to code domain (a rotation).
    certain : Tensor or None
        ``(..., d)`` True where ``noise`` does not apply, only the bounds (elements that a
        sparsifier dropped); None if it applies everywhere.
    likelihood : Likelihood or None
        Of ``discrete`` noise: the probability of each code, given the value.
    """

    center: Tensor
    lower: Tensor
    upper: Tensor
    step: Tensor
    sizes: tuple[int, ...]
    noise: Noise = "none"
    scale_free: bool = False
    transform: Transform | None = None
    certain: Tensor | None = None
    likelihood: Likelihood | None = None

    @property
    def decoded(self) -> Tensor:
        """The decoded update, ``(..., n)``: the center, brought back from the code domain."""
        return self.center if self.transform is None else self.transform.invert(self.center)

    def to_code_domain(self, candidate: Tensor) -> Tensor:
        """Map a candidate update ``(..., n)`` to the domain of the bounds, ``(..., d)``.

        A scale-free cell divides by the candidate's own mean magnitude per tensor, detached, so
        that an optimizer cannot lower the penalty by the scale alone.
        """
        if self.transform is not None:
            candidate = self.transform(candidate)
        if not self.scale_free:
            return candidate
        pieces = torch.split(candidate, list(self.sizes), dim=-1)
        tiny = torch.finfo(candidate.dtype).tiny
        return torch.cat(
            [p / p.detach().abs().mean(dim=-1, keepdim=True).clamp_min(tiny) for p in pieces],
            dim=-1,
        )

    def misfit(self, candidate: Tensor) -> Tensor:
        """Penalty per element of a candidate update, ``(..., n) -> (..., d)``; differentiable.

        Zero inside the cell, outside it the squared distance in steps. For a randomized quantizer,
        the negative log-likelihood of the code: zero at the code's own value, and continued
        quadratically near and outside the bounds.
        """
        value = self.to_code_domain(candidate)
        outside = (self.lower - value).relu() + (value - self.upper).relu()
        penalty = (outside / self.step) ** 2
        if self.noise == "none":
            return penalty
        unlikely = self._unlikeliness(value, penalty)
        return unlikely if self.certain is None else torch.where(self.certain, penalty, unlikely)

    def _unlikeliness(self, value: Tensor, penalty: Tensor) -> Tensor:
        """Negative log-likelihood of the code, up to a constant."""
        if self.likelihood is not None:
            return self.likelihood.misfit(value).masked_fill(self.step.isinf(), 0)
        distance = value - self.center
        if self.noise == "gaussian":
            return (distance / self.step) ** 2 / 2
        if self.noise == "laplace":
            return distance.abs() / self.step
        reach = torch.where(distance > 0, self.upper - self.center, self.center - self.lower)
        wide = torch.where(distance > 0, self.opens_above, self.opens_below)
        share = torch.where(wide, distance.abs() / torch.where(wide, reach, 1), 0)
        return penalty + _minus_log_of_rest(share)

    @property
    def opens_above(self) -> Tensor:
        """Whether values above a code's own may give it; the last code of a range has none."""
        return self.upper - self.center > _ROUNDING * self.step

    @property
    def opens_below(self) -> Tensor:
        """Whether values below a code's own may give it."""
        return self.center - self.lower > _ROUNDING * self.step

    def times(self, factor: float) -> "Cell":
        """Return the cell of ``factor`` times the update, for a positive factor.

        That of a payload without a scale is the same. There is none for `discrete` noise.
        """
        assert self.likelihood is None
        if self.scale_free:
            return self
        return replace(
            self,
            center=self.center * factor,
            lower=self.lower * factor,
            upper=self.upper * factor,
            step=self.step * factor,
        )

    def without(self, hidden: Tensor) -> "Cell":
        """Return the cell as it is for who does not see the elements ``hidden``, ``(d,)`` bool.

        Such elements have no bounds, an infinite step and a center of 0, so that no candidate
        misfits them.
        """
        return replace(
            self,
            center=self.center.masked_fill(hidden, 0),
            lower=self.lower.masked_fill(hidden, -torch.inf),
            upper=self.upper.masked_fill(hidden, torch.inf),
            step=self.step.masked_fill(hidden, torch.inf),
        )

    def only(self, elements: Tensor) -> "Cell":
        """Return the cell of some elements of the code domain; for what needs no transform."""
        return replace(
            self,
            center=self.center[..., elements],
            lower=self.lower[..., elements],
            upper=self.upper[..., elements],
            step=self.step[..., elements],
            certain=None if self.certain is None else self.certain[..., elements],
            likelihood=None if self.likelihood is None else self.likelihood.only(elements),
        )

    def to(self, device: torch.device | str) -> "Cell":
        """Return the cell on a device; transforms follow what they are applied to."""
        return replace(
            self,
            center=self.center.to(device),
            lower=self.lower.to(device),
            upper=self.upper.to(device),
            step=self.step.to(device),
            certain=None if self.certain is None else self.certain.to(device),
            likelihood=None if self.likelihood is None else self.likelihood.to(device),
        )

    @staticmethod
    def stack(cells: Sequence["Cell"]) -> "Cell":
        """Stack cells of one quantizer along a new first dimension."""
        first = cells[0]
        transforms = [cell.transform for cell in cells if cell.transform is not None]
        certain = [cell.certain for cell in cells if cell.certain is not None]
        likelihoods = [cell.likelihood for cell in cells if cell.likelihood is not None]
        return replace(
            first,
            center=torch.stack([cell.center for cell in cells]),
            lower=torch.stack([cell.lower for cell in cells]),
            upper=torch.stack([cell.upper for cell in cells]),
            step=torch.stack([cell.step for cell in cells]),
            transform=transforms[0].stack(transforms) if transforms else None,
            certain=torch.stack(certain) if certain else None,
            likelihood=likelihoods[0].stack(likelihoods) if likelihoods else None,
        )


def _minus_log_of_rest(share: Tensor) -> Tensor:
    """Return ``-log(1 - share)``: 1 - share is the probability that rounding chose the code.

    Near 1 and beyond, its Taylor polynomial of second order takes over: value and slope stay
    finite, and the slope leads back into the bounds.
    """
    beyond = share - _TANGENT
    rest = 1 - _TANGENT
    polynomial = -log(rest) + beyond / rest + (beyond / rest) ** 2 / 2
    return torch.where(beyond > 0, polynomial, -torch.log1p(-share.clamp_max(_TANGENT)))


def width_of(center: Tensor, lower: Tensor, upper: Tensor) -> Tensor:
    """Width of cells; with one bound twice the distance to it, without bounds 0."""
    half = torch.minimum(upper - center, center - lower)
    width = torch.where((upper - lower).isfinite(), upper - lower, 2 * half)
    return torch.where(width.isfinite(), width, 0)


def nonzero_step(step: Tensor) -> Tensor:
    """Replace steps of 0 (of constant tensors) by the largest step, or by 1 if all are 0."""
    largest = step.max() if step.numel() else step.new_ones(())
    return torch.where(step > 0, step, torch.where(largest > 0, largest, 1))


def resolvable_step(step: Tensor, center: Tensor, layout: Layout) -> Tensor:
    """Raise steps to what a float32 gradient can resolve: 2^-20 of its tensor's largest element.

    Floating-point formats resolve tiny elements far below the error with which a gradient can be
    computed. Without this floor, these elements would dominate a match weighted by steps.
    """
    floors = [
        p.abs().amax().expand(p.shape) * 2**-20 if p.numel() else p for p in layout.split(center)
    ]
    return nonzero_step(torch.maximum(step, torch.cat(floors)))
