"""The Poisson binomial mechanism: the number of heads among coins that the value biases."""

from dataclasses import dataclass
from math import sqrt
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from fl_sim.coding.likelihoods import BinomialLikelihood
from fl_sim.quantizers.base import QuantizerFacts
from fl_sim.quantizers.private.levels import Array, RandomLevels
from fl_sim.specs import positive, show, within


@dataclass(frozen=True)
class PoissonBinomial(RandomLevels):
    """Send the heads among ``trials`` coins of probability ``1/2 + theta * x / clip``.

    Elements are clipped to ``[-clip, clip]``. Made for sums under secure aggregation; here each
    client's number is seen by the server.
    """

    name: ClassVar[str] = "poisson_binomial"
    facts: ClassVar[QuantizerFacts] = QuantizerFacts(
        "ceil(log2(m + 1)) d",
        True,
        "unbiased in [-c, c]; Var = (1/4 - (theta x/c)^2) c^2 / (m theta^2)",
        "Chen et al. 2022, arXiv 2207.09916",
    )

    clip: float
    trials: int
    theta: float

    def __post_init__(self) -> None:
        positive("clip", self.clip)
        within("trials", self.trials, 1, 65535)
        if not 0 < self.theta <= 0.25:
            raise ValueError(f"theta={show(self.theta)} is not allowed; give above 0, up to 0.25.")

    @property
    def code_levels(self) -> int:
        """Number of heads there may be, from 0."""
        return self.trials + 1

    @property
    def _slope(self) -> float:
        return self.theta / self.clip

    def _draw(self, clipped: Tensor, generator: torch.Generator) -> Tensor:
        chance = 0.5 + self._slope * clipped
        return torch.binomial(torch.full_like(chance, self.trials), chance, generator=generator)

    def _value(self, codes: Tensor) -> Tensor:
        return (codes.float() / self.trials - 0.5) / self._slope

    def _likelihood(self, codes: Tensor) -> BinomialLikelihood:
        return BinomialLikelihood(codes, self.trials, self._slope, self.clip)

    @property
    def _deviation(self) -> float:
        return 0.5 / self._slope / sqrt(self.trials)

    def _extremes(self) -> tuple[Array, Array]:
        from scipy.stats import binom  # noqa: PLC0415 - slow to import

        heads = np.arange(self.trials + 1)
        worst = [binom.pmf(heads, self.trials, 0.5 + side * self.theta) for side in (-1, 1)]
        return binom.pmf(heads, self.trials, 0.5), np.stack(worst)
