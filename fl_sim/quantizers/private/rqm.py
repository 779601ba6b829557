"""The randomized quantization mechanism: rounding at random to levels that are kept at random."""

from dataclasses import dataclass
from functools import lru_cache
from math import log
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from fl_sim.coding.likelihoods import TableLikelihood
from fl_sim.quantizers.base import QuantizerFacts
from fl_sim.quantizers.private.levels import Array, RandomLevels
from fl_sim.specs import positive, show, within


@dataclass(frozen=True)
class RQM(RandomLevels):
    """Round at random between the nearest levels that are kept, each with probability ``keep``.

    Elements are clipped to ``[-clip, clip]``. The ``levels`` are evenly spaced from
    ``-clip - margin`` to ``clip + margin``; the two ends are always kept.
    """

    name: ClassVar[str] = "rqm"
    facts: ClassVar[QuantizerFacts] = QuantizerFacts(
        "ceil(log2 m) d",
        True,
        "unbiased in [-c, c]; Var = E (b - x)(x - a), a < b the kept neighbours",
        "Youn et al. 2023, arXiv 2306.11913",
    )

    clip: float
    margin: float
    levels: int
    keep: float

    def __post_init__(self) -> None:
        positive("clip", self.clip)
        positive("margin", self.margin)
        within("levels", self.levels, 3, 64)
        if not 0 < self.keep < 1:
            raise ValueError(f"keep={show(self.keep)} is not allowed; give above 0, below 1.")

    @property
    def code_levels(self) -> int:
        """Number of levels."""
        return self.levels

    @property
    def _end(self) -> float:
        return self.clip + self.margin

    @property
    def _width(self) -> float:
        return 2 * self._end / (self.levels - 1)

    def _draw(self, clipped: Tensor, generator: torch.Generator) -> Tensor:
        place = (clipped + self._end) / self._width
        bin_ = place.floor().clamp(0, self.levels - 2)

        def dropped() -> Tensor:
            """Draw how many levels in a row are not kept."""
            chance = torch.rand(place.shape, generator=generator, device=place.device)
            return ((1 - chance).log() / log(1 - self.keep)).floor()

        low = (bin_ - dropped()).clamp_min(0)
        high = (bin_ + 1 + dropped()).clamp_max(self.levels - 1)
        up = torch.rand(place.shape, generator=generator, device=place.device)
        return torch.where(up * (high - low) < place - low, high, low)

    def _value(self, codes: Tensor) -> Tensor:
        return codes.float() * self._width - self._end

    def _likelihood(self, codes: Tensor) -> TableLikelihood:
        table = torch.from_numpy(level_probabilities(self.levels, self.keep)).float()
        return TableLikelihood(codes, table, -self._end, self._width, self.clip)

    def _at(self, value: float) -> Array:
        """Return the probability of each level for one value, ``(levels,)``."""
        table = level_probabilities(self.levels, self.keep)
        place = (value + self._end) / self._width
        low = min(int(place), self.levels - 2)
        return (1 - place + low) * table[:, low] + (place - low) * table[:, low + 1]

    @property
    def _deviation(self) -> float:
        values = np.arange(self.levels) * self._width - self._end
        return float(np.sqrt(self._at(0.0) @ values**2))

    def _extremes(self) -> tuple[Array, Array]:
        knots = np.arange(self.levels) * self._width - self._end
        inside = [float(knot) for knot in knots if abs(knot) < self.clip]
        values = (-self.clip, *inside, self.clip)
        return self._at(0.0), np.stack([self._at(value) for value in values])


@lru_cache(maxsize=16)
def level_probabilities(levels: int, keep: float) -> Array:
    """Return the probability of each level if the value is a level, ``(levels, values)``.

    Between two neighbouring levels the probabilities are linear in the value (Youn et al. 2023,
    lemma 4.1).
    """
    table = np.zeros((levels, levels))
    for value in range(levels):
        bin_ = min(value, levels - 2)
        below = np.arange(bin_, -1, -1)
        above = np.arange(bin_ + 1, levels)
        is_below = keep * (1 - keep) ** (bin_ - below)
        is_above = keep * (1 - keep) ** (above - bin_ - 1)
        is_below[-1] /= keep  # the ends are always kept
        is_above[-1] /= keep
        both = is_below[:, None] * is_above[None]
        up = (value - below[:, None]) / (above[None] - below[:, None])
        table[below, value] += (both * (1 - up)).sum(axis=1)
        table[above, value] += (both * up).sum(axis=0)
    return table
