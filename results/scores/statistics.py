"""Intervals, paired comparisons and Pareto fronts."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.stats import bootstrap, wilcoxon

from fl_sim.seeding import Purpose, numpy_rng

Array = NDArray[np.float64]
Statistic = Callable[..., Array]

RESAMPLES = 1000
CONFIDENCE = 0.95


class Interval(NamedTuple):
    """Bounds of a confidence interval; both missing if there is nothing to resample."""

    low: float
    high: float


def median(values: Array, axis: int = -1) -> Array:
    """Median along an axis."""
    return np.asarray(np.median(values, axis=axis))


def mean(values: Array, axis: int = -1) -> Array:
    """Mean along an axis; the mean of booleans is a rate."""
    return np.asarray(np.mean(values, axis=axis))


def tenth(values: Array, axis: int = -1) -> Array:
    """10th percentile along an axis; of an error, the limit of the most exposed tenth."""
    return np.asarray(np.percentile(values, 10, axis=axis))


def ninetieth(values: Array, axis: int = -1) -> Array:
    """90th percentile along an axis; of a similarity, the limit of the most exposed tenth."""
    return np.asarray(np.percentile(values, 90, axis=axis))


def bootstrap_interval(
    clusters: Sequence[Sequence[float] | Array] | Array, statistic: Statistic, seed: int = 0
) -> Interval:
    """Bootstrap percentile interval of a statistic of pooled values (95 %, 1,000 resamples).

    Clusters are resampled, not values: images of one batch are recovered together, so treating
    them as independent would make the interval too narrow.

    Parameters
    ----------
    clusters : sequence of sequences
        One row per independent unit (a victim's batch, a seed).
    statistic : callable
        ``statistic(values, axis)``, such as `median`.
    seed : int
        Seed of the resampling; the same inputs give the same interval.

    Returns
    -------
    Interval
        Missing bounds for fewer than two clusters: one unit has no spread.
    """
    units = [np.asarray(cluster, dtype=np.float64) for cluster in clusters]
    if len(units) < 2:
        return Interval(np.nan, np.nan)
    alike = len({len(unit) for unit in units}) == 1
    values = np.stack(units) if alike else np.empty(0)

    def pooled(rows: NDArray[np.intp], axis: int) -> Array:
        rows = np.moveaxis(rows, axis, -1)
        if alike:
            resampled = values[rows]
            return statistic(resampled.reshape(*resampled.shape[:-2], -1), axis=-1)
        each = [
            statistic(np.concatenate([units[unit] for unit in drawn]))
            for drawn in rows.reshape(-1, rows.shape[-1])
        ]
        return np.array(each).reshape(rows.shape[:-1])

    result = bootstrap(
        (np.arange(len(units)),),
        pooled,
        n_resamples=RESAMPLES,
        confidence_level=CONFIDENCE,
        method="percentile",
        vectorized=True,
        rng=numpy_rng(seed, Purpose.BOOTSTRAP),
    ).confidence_interval
    return Interval(float(result.low), float(result.high))


def paired_differences(
    scores: pd.DataFrame,
    column: str,
    pair: Sequence[str],
    reference: str = "none",
    seed: int = 0,
) -> pd.DataFrame:
    """Compare every quantizer with a reference on the same victims.

    Parameters
    ----------
    scores : DataFrame
        One row per quantizer and victim, with columns ``quantizer``, ``column`` and ``pair``.
    column : str
        What is compared, e.g. ``psnr`` (a log scale, for errors that span decades).
    pair : sequence of str
        Columns that name a victim across quantizers, e.g. seed, round, partition, image.
    reference : str
        Quantizer with which all others are compared.
    seed : int
        Seed of the bootstrap.

    Returns
    -------
    DataFrame
        One row per other quantizer: ``pairs``, ``median_difference`` (quantizer minus
        reference) with its bootstrap interval ``low`` and ``high``, ``p`` of the two-sided
        Wilcoxon signed-rank test, ``p_holm`` corrected over the rows. Empty without a reference.
    """
    wide = scores.pivot(index=list(pair), columns="quantizer", values=column)
    rows = []
    if reference in wide:
        for name in [q for q in scores["quantizer"].unique() if q != reference]:
            differences = (wide[name] - wide[reference]).dropna().to_numpy(dtype=np.float64)
            interval = bootstrap_interval(differences[:, None], median, seed)
            p = _signed_rank(differences)
            middle = float(np.median(differences)) if len(differences) else np.nan
            rows.append((name, len(differences), middle, interval.low, interval.high, p))
    columns = ["quantizer", "pairs", "median_difference", "low", "high", "p"]
    table = pd.DataFrame(rows, columns=columns)
    table["p_holm"] = holm(table["p"].to_numpy(dtype=np.float64))
    return table


def holm(p_values: Array) -> Array:
    """Adjust p-values for multiple comparisons (Holm 1979); missing ones do not count."""
    adjusted = np.full(len(p_values), np.nan)
    order = np.argsort(p_values)[: np.isfinite(p_values).sum()]
    factors = np.arange(len(order), 0, -1)
    adjusted[order] = np.minimum(1.0, np.maximum.accumulate(p_values[order] * factors))
    return adjusted


def pareto_front(gains: Array) -> NDArray[np.bool_]:
    """Return which rows of ``(n, k)`` gains are not dominated by another row."""
    at_least = (gains[:, None, :] >= gains[None, :, :]).all(axis=2)
    better = (gains[:, None, :] > gains[None, :, :]).any(axis=2)
    return np.asarray(~(at_least & better).any(axis=0))


def _signed_rank(differences: Array) -> float:
    if not np.any(differences):
        return 1.0 if len(differences) else np.nan
    return float(wilcoxon(differences).pvalue)
