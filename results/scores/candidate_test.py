"""The candidate test: is this image in the batch? And the epsilon that its answers prove.

The server need not reconstruct. It computes the update that a candidate would cause, and asks how
likely the payload is. A candidate is said to be in the batch if its score is among the best few of
1,000 public images that are not. For an image that is not in the batch either, that happens with
the probability that its rank has by chance, because it is one more image of the same kind. How
often it happens for private images proves a lower bound on epsilon.
"""

from collections.abc import Sequence
from math import log
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import beta
from torch import Tensor

from fl_sim.coding.cell import Cell

RATES = (0.01, 0.001)
"""False positive rates at which the test is read."""

_ERROR = 0.05  # that any of the bounds on epsilon, one for each rate, is wrong


class Answer(NamedTuple):
    """How often the test finds private images at a false positive rate, with 95 % limits."""

    rate: float
    found: float
    low: float
    high: float
    epsilon_low: float


def ranks(private: Tensor, others: Tensor) -> NDArray[np.int64]:
    """Rank the score of each private image among those of other images.

    A tie counts against it, and so does a score that is no number.

    Parameters
    ----------
    private : Tensor
        ``(V,)`` scores, higher is likelier.
    others : Tensor
        ``(V, K)``.
    """
    better = (~(others < private[:, None])).sum(dim=1) + 1
    return np.asarray(better.numpy(), dtype=np.int64)


def answer(found_ranks: NDArray[np.int64], others: int, rate: float, delta: float) -> Answer:
    """Return how often private images are found at a false positive rate.

    Parameters
    ----------
    found_ranks : ndarray
        ``(V,)`` of `ranks`, of independent payloads.
    others : int
        Images each rank is among, beside the private one.
    rate : float
        Largest false positive rate.
    delta : float
        For which epsilon is bounded: found <= e^epsilon rate + delta.

    Raises
    ------
    ValueError
        If there are too few other images for the rate.
    """
    last = int(rate * (others + 1) + 1e-9)
    if last < 1:
        raise ValueError(f"A rate of {rate:g} needs {round(1 / rate) - 1} other images or more.")
    hits, count = int((found_ranks <= last).sum()), len(found_ranks)
    low, high = clopper_pearson(hits, count, _ERROR)
    sure = clopper_pearson(hits, count, 2 * _ERROR / len(RATES))[0]  # one-sided, for all rates
    chance = last / (others + 1)
    proven = log((sure - delta) / chance) if sure > delta else 0.0
    return Answer(chance, hits / count, low, high, max(0.0, proven))


def clopper_pearson(hits: int, count: int, error: float) -> tuple[float, float]:
    """Return the exact two-sided limits of a share (Clopper and Pearson 1934)."""
    low = float(beta.ppf(error / 2, hits, count - hits + 1)) if hits else 0.0
    high = float(beta.ppf(1 - error / 2, hits + 1, count - hits)) if hits < count else 1.0
    return low, high


def likelihood_scores(cells: Sequence[Cell], candidates: Tensor) -> Tensor:
    """Return the log-likelihood of one client's payloads for each candidate update, ``(K,)``.

    Parameters
    ----------
    cells : sequence of Cell
        Of payloads that each encode the same update.
    candidates : Tensor
        ``(K, n)``.
    """
    misfits = [cell.misfit(candidates).double().sum(dim=-1) for cell in cells]
    return -torch.stack(misfits).sum(dim=0)
