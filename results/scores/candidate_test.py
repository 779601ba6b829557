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
from fl_sim.coding.payload import Payload
from fl_sim.quantizers import parse_quantizer
from fl_sim.updates.local_update import Layout, Update

RATES = (0.01, 0.001)
"""False positive rates at which the test is read."""

_UNSEEN = 0.3
"""Share of the variance of gradients that a few hundred known ones do not show."""

_ERROR = 0.05  # that any of the bounds on epsilon, one for each rate, is wrong


class Answer(NamedTuple):
    """How often the test finds private images at a false positive rate, with 95 % limits."""

    rate: float
    found: float
    low: float
    high: float
    epsilon_low: float


def ranks(private: Tensor, others: Tensor) -> NDArray[np.int64]:
    """Rank the score of each private image among those of other images; a tie counts against it.

    Parameters
    ----------
    private : Tensor
        ``(V,)`` scores, higher is likelier.
    others : Tensor
        ``(V, K)``.
    """
    better = (others >= private[:, None]).sum(dim=1) + 1
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


class BatchScorer:
    """Scores candidates of a batch whose other images are unknown: a Gaussian likelihood.

    The other images are like known ones: their gradients have the mean and the covariance of known
    gradients. What the quantizer makes of a batch's update is, tensor by tensor, a multiple of it
    plus noise; both are measured on batches of known images.

    Parameters
    ----------
    spec : str
        The quantizer.
    layout : Layout
        Of the update.
    size : int
        Images of a batch.
    known : Tensor
        ``(K, n)`` gradients of images that are neither private nor candidates.
    others : Tensor
        ``(M, n)`` gradients of the candidates that are not in the batch.
    generator : torch.Generator
        Of the measured batches.
    """

    def __init__(
        self,
        spec: str,
        layout: Layout,
        size: int,
        known: Tensor,
        others: Tensor,
        generator: torch.Generator,
    ) -> None:
        self.quantizer = parse_quantizer(spec)
        batches = [torch.randperm(len(known), generator=generator)[:size] for _ in range(64)]
        updates = [Update(known[rows].mean(dim=0), layout) for rows in batches]
        decoded = [self._decoded(self.quantizer.encode(one, generator)) for one in updates]
        sent = torch.stack([one.vector for one in updates])
        self.scale, noise = _fit(sent, torch.stack(decoded), layout)
        self.size, self.mean = size, known.double().mean(dim=0)
        share = ((size - 1) / len(known)) ** 0.5
        rest = (size - 1) ** 0.5 / size * self.scale * _typical(known - self.mean, layout)
        self.noise = (noise.square() + _UNSEEN * rest.square()).sqrt()
        self._spread = share * self._part(known)
        products = self._spread @ self._spread.T
        self._root = torch.linalg.cholesky(products + torch.eye(len(known)).double())
        parts = self._part(others)
        self._weighted = self._weigh(parts)
        self._own = (self._weighted * parts).sum(dim=1)

    def scores(self, payload: Payload, gradient: Tensor) -> tuple[Tensor, Tensor]:
        """Return the log-likelihood ratio of a private gradient ``(n,)``, and of all others.

        Against a payload to which the candidate adds nothing.
        """
        rest = (self._decoded(payload) - self.scale * self.mean) / self.noise
        part = self._part(gradient[None])
        weighted = self._weigh(part)[0]
        private = weighted @ rest - (weighted @ part[0]) / 2
        return private, self._weighted @ rest - self._own / 2

    def _decoded(self, payload: Payload) -> Tensor:
        return self.quantizer.cell(payload).decoded

    def _part(self, gradients: Tensor) -> Tensor:
        """Return what each image adds to a payload, ``(K, n)``, in deviations of the noise."""
        part: Tensor = (gradients - self.mean) * (self.scale / self.noise / self.size)
        return part

    def _weigh(self, parts: Tensor) -> Tensor:
        """Multiply by the inverse covariance, the identity plus the products of the spread."""
        inside = torch.cholesky_solve(self._spread @ parts.T, self._root)
        weighted: Tensor = parts - inside.T @ self._spread
        return weighted


def _typical(gradients: Tensor, layout: Layout) -> Tensor:
    """Return the root mean square of each tensor, at each of its elements, ``(n,)``."""
    parts = [part.square().mean().sqrt().expand(part.shape[1]) for part in layout.split(gradients)]
    return torch.cat(parts)


def _fit(updates: Tensor, decoded: Tensor, layout: Layout) -> tuple[Tensor, Tensor]:
    """Return the best multiple and the deviation of the rest, tensor by tensor, ``(n,)`` each."""
    scales, noises = [], []
    for sent, got in zip(layout.split(updates), layout.split(decoded), strict=True):
        power = sent.double().square().sum().clamp_min(1e-30)
        scale = (sent.double() * got).sum() / power
        rest = (got - scale * sent).double().square().mean().sqrt()
        least = 1e-3 * (scale * sent).double().square().mean().sqrt()
        noise = torch.maximum(rest, least).clamp_min(1e-15)
        scales.append(scale.expand(sent.shape[1]))
        noises.append(noise.expand(sent.shape[1]))
    return torch.cat(scales), torch.cat(noises)
