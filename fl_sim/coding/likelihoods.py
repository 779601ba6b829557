"""Likelihoods of codes that are drawn at random with known probabilities, as in `Cell`."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import lgamma
from typing import Self

import numpy as np
import torch
from torch import Tensor

_NODES = 9  # of the quadrature over a Gaussian error
_LEAST = 1e-12  # probability that no code falls below, so that logarithms stay finite


@dataclass(frozen=True, eq=False)
class Likelihood(ABC):
    """The probability of each received code as a function of the value that was encoded.

    Attributes
    ----------
    codes : Tensor
        ``(..., d)`` the codes received.
    """

    codes: Tensor

    @abstractmethod
    def log_probability(self, value: Tensor) -> Tensor:
        """Return the log-probability of the codes, ``(..., d) -> (..., d)``; differentiable."""

    @abstractmethod
    def best(self) -> Tensor:
        """Return the largest log-probability that any value gives each code, ``(..., d)``."""

    def misfit(self, value: Tensor) -> Tensor:
        """Return the negative log-likelihood; zero at the values that explain the codes best."""
        return (self.best() - self.log_probability(value)).relu()

    def surprise(self, value: Tensor, error: Tensor) -> Tensor:
        """Return the nats of the codes if values have Gaussian errors of deviation ``error``."""
        nodes, weights = np.polynomial.hermite_e.hermegauss(_NODES)
        shares = torch.as_tensor(weights / weights.sum(), dtype=value.dtype).tolist()
        mixed = torch.stack(
            [
                share * self.log_probability(value + float(node) * error).exp()
                for node, share in zip(nodes, shares, strict=True)
            ]
        )
        surprise: Tensor = -mixed.sum(dim=0).clamp_min(_LEAST).log()
        return surprise

    def only(self, elements: Tensor) -> Self:
        """Return the likelihood of some elements."""
        return replace(self, codes=self.codes[..., elements])

    def to(self, device: torch.device | str) -> Self:
        """Return the likelihood on a device."""
        return replace(self, codes=self.codes.to(device))

    def stack(self, others: Sequence[Self]) -> Self:
        """Return the likelihoods of several payloads (``self`` the first), stacked."""
        return replace(self, codes=torch.stack([other.codes for other in others]))


@dataclass(frozen=True, eq=False)
class SignLikelihood(Likelihood):
    """Codes +1 and -1: the sign of the value plus Gaussian noise of deviation ``sigma``."""

    sigma: float

    def log_probability(self, value: Tensor) -> Tensor:
        """Return ``log Phi(code * value / sigma)``."""
        found: Tensor = torch.special.log_ndtr(self.codes * value / self.sigma)
        return found

    def best(self) -> Tensor:
        """Return 0: a large value has its sign for certain."""
        return torch.zeros_like(self.codes)


@dataclass(frozen=True, eq=False)
class BinomialLikelihood(Likelihood):
    """Codes 0 to ``trials``, binomial with probability ``1/2 + slope * value``.

    Attributes
    ----------
    trials : int
        Coins of one code.
    slope : float
        By how much the probability rises with the value.
    clip : float
        Largest magnitude of a value; larger ones are clipped.
    """

    trials: int
    slope: float
    clip: float

    def log_probability(self, value: Tensor) -> Tensor:
        """Return the log-probability."""
        chance = 0.5 + self.slope * value.clamp(-self.clip, self.clip)
        heads = self.codes.to(value.dtype)
        tails = self.trials - heads
        ways = lgamma(self.trials + 1) - torch.lgamma(heads + 1) - torch.lgamma(tails + 1)
        found: Tensor = ways + heads * chance.log() + tails * (1 - chance).log()
        return found

    def best(self) -> Tensor:
        """Return the log-probability at the value that was decoded, clipped."""
        return self.log_probability((self.codes / self.trials - 0.5) / self.slope)


@dataclass(frozen=True, eq=False)
class TableLikelihood(Likelihood):
    """Codes whose probabilities are linear in the value between evenly spaced knots.

    Attributes
    ----------
    table : Tensor
        ``(levels, knots)`` probability of each code at each knot.
    first, width : float
        The first knot, and the distance between two.
    clip : float
        Largest magnitude of a value; larger ones are clipped.
    """

    table: Tensor
    first: float
    width: float
    clip: float

    def log_probability(self, value: Tensor) -> Tensor:
        """Return the log-probability."""
        place = (value.clamp(-self.clip, self.clip) - self.first) / self.width
        last = self.table.shape[1] - 2
        below = place.detach().floor().clamp(0, last)
        table = self.table.to(value)
        at = self.codes * self.table.shape[1] + below.long()
        low, high = table.flatten()[at], table.flatten()[at + 1]
        found: Tensor = (low + (place - below) * (high - low)).clamp_min(_LEAST).log()
        return found

    def best(self) -> Tensor:
        """Return the largest log-probability of each code."""
        device = self.codes.device
        knots = self.first + self.width * torch.arange(self.table.shape[1], device=device)
        knots = knots.clamp(-self.clip, self.clip)  # a line is highest at one of its ends
        levels = torch.arange(self.table.shape[0], device=device)[:, None]
        every = replace(self, codes=levels).log_probability(knots.expand(len(levels), -1))
        return every.amax(dim=1)[self.codes]
