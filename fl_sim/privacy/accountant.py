"""What one payload guarantees, and what all payloads of a training do together.

The neighbouring relation is *replace one update*: whatever a client's update is, and whatever it
is replaced by, what the server sees is nearly as likely. This is local differential privacy of the
whole update, against the server itself. See docs/explanation/guarantees.md.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from math import ceil, exp, inf, log, log1p, sqrt

import numpy as np

Curve = Callable[[float], float]
"""Renyi divergence of one payload by its order, above 1."""

_ORDERS = tuple(1 + float(step) for step in np.logspace(-5, 4, 361))


class Guarantee(ABC):
    """What one payload guarantees about the update it encodes."""

    @abstractmethod
    def epsilon(self, rounds: int, delta: float) -> float:
        """Return epsilon of the (epsilon, delta)-privacy of one client's updates together.

        Parameters
        ----------
        rounds : int
            Payloads that the client sends; each may depend on all earlier ones.
        delta : float
            Above 0, below 1.
        """

    @abstractmethod
    def identified(self, rounds: int, chance: float) -> float:
        """Return the most often that any attacker can guess right, given all payloads.

        Reconstruction robustness (Balle et al. 2022, arXiv 2201.04845; Hayes et al. 2023, arXiv
        2302.07225): who guesses right with probability ``chance`` without the payloads guesses
        right with at most 1 - f(chance) with them, f the trade-off function between the payloads
        of any update and those of a fixed one (of zero).

        Parameters
        ----------
        rounds : int
            Payloads whose updates depend on what is guessed.
        chance : float
            Probability of the likeliest guess without the payloads.
        """


@dataclass(frozen=True)
class GaussianGuarantee(Guarantee):
    """Gaussian noise on an update of bounded L2 norm, and whatever is made of the sum.

    Attributes
    ----------
    ratio : float
        Bound on the norm over the standard deviation of the noise of one element. Two updates
        are at most twice the norm apart.

    Examples
    --------
    >>> from fl_sim.privacy.accountant import GaussianGuarantee
    >>> round(GaussianGuarantee(ratio=0.5).epsilon(rounds=1, delta=1e-5), 2)
    4.38
    """

    ratio: float

    def epsilon(self, rounds: int, delta: float) -> float:
        """Return epsilon by the analytic formula of Balle and Wang (2018, arXiv 1805.06530).

        The composition of T Gaussian mechanisms is one with sqrt(T) times the ratio, exactly
        (Dong et al. 2019, arXiv 1905.02383).
        """
        from scipy.optimize import brentq  # noqa: PLC0415 - half a second, only where needed

        distance = 2 * self.ratio * sqrt(rounds)
        if log_delta_of_gaussian(0.0, distance) <= log(delta):
            return 0.0
        classic = distance**2 / 2 + distance * sqrt(2 * log(1 / delta))

        def excess(epsilon: float) -> float:
            return log_delta_of_gaussian(epsilon, distance) - log(delta)

        found: float = brentq(excess, 0.0, classic * (1 + 1e-9), rtol=1e-12)
        return found

    def identified(self, rounds: int, chance: float) -> float:
        """Return Phi(Phi^-1(chance) + sqrt(rounds) * ratio) (Hayes et al. 2023, theorem 2)."""
        from scipy.special import ndtr, ndtri  # noqa: PLC0415

        return float(ndtr(ndtri(chance) + sqrt(rounds) * self.ratio))


@dataclass(frozen=True)
class RenyiGuarantee(Guarantee):
    """A mechanism whose Renyi divergences are known (Mironov 2017, arXiv 1702.07476).

    Attributes
    ----------
    curve : Curve
        Largest divergence between the payloads of any two updates.
    from_zero : Curve
        Largest divergence between the payload of any update and that of the update 0.
    """

    curve: Curve
    from_zero: Curve

    def epsilon(self, rounds: int, delta: float) -> float:
        """Return epsilon by the conversion of Canonne et al. (2020, arXiv 2004.00010)."""
        found = [
            rounds * self.curve(order) + log1p(-1 / order) - log(delta * order) / (order - 1)
            for order in _ORDERS
        ]
        return max(0.0, min(found))

    def identified(self, rounds: int, chance: float) -> float:
        """Return the bound of Balle et al. (2022, theorem 3): (chance e^D)^(1 - 1/order)."""
        nats = [
            (1 - 1 / order) * (log(chance) + rounds * self.from_zero(order)) for order in _ORDERS
        ]
        return exp(min(0.0, *nats))


def log_delta_of_gaussian(epsilon: float, distance: float) -> float:
    """Return log delta of the Gaussian mechanism (Balle and Wang 2018, theorem 8).

    Parameters
    ----------
    epsilon : float
        Not negative.
    distance : float
        Sensitivity over the standard deviation of the noise.
    """
    from scipy.special import log_ndtr  # noqa: PLC0415

    first = float(log_ndtr(distance / 2 - epsilon / distance))
    second = epsilon + float(log_ndtr(-distance / 2 - epsilon / distance))
    return first + log1p(-exp(min(second - first, 0.0))) if second < first else -inf


def pure_guarantee(epsilon: float, from_zero: float) -> RenyiGuarantee:
    """Return the guarantee of a mechanism with pure epsilon-privacy.

    Its divergence of order a is at most min(epsilon, a epsilon^2 / 2) (Bun and Steinke 2016,
    arXiv 1605.02065, proposition 3.3).
    """
    return RenyiGuarantee(
        lambda order: min(epsilon, order * epsilon**2 / 2),
        lambda order: min(from_zero, order * from_zero**2 / 2),
    )


def skellam_divergence(distance: float, absolute: float, variance: float, order: float) -> float:
    """Return a bound on the divergence of Skellam noise (Agarwal et al. 2021, arXiv 2110.04995).

    Parameters
    ----------
    distance, absolute : float
        L2 and L1 distance of two integer vectors.
    variance : float
        Of the noise of one element.
    order : float
        Above 1; the bound is proven for whole orders, and the next one is an upper bound.
    """
    whole, square = max(2, ceil(order)), distance**2
    correction = ((2 * whole - 1) * square + 6 * absolute) / (4 * variance**2)
    return whole * square / (2 * variance) + min(correction, 3 * absolute / (2 * variance))
