"""What each family reaches at equal privacy and at equal accuracy, with bootstrap intervals."""

from itertools import pairwise
from typing import NamedTuple

import numpy as np
import pandas as pd

from fl_sim.seeding import Purpose, numpy_rng
from results.scores.families import with_families
from results.scores.gates import SUCCESS_MSE
from results.scores.rows import OBSERVATION
from results.scores.statistics import CONFIDENCE, RESAMPLES, Array

EQUAL_PRIVACY = SUCCESS_MSE
"""Equal privacy: a median MSE of this; the median victim is just not recovered."""

EQUAL_ACCURACY = 0.02
"""Equal accuracy: that of the reference less this much."""

_STEPS = 64  # of the straight line between two points of a family

COLUMNS = {
    "accuracy_at_equal_privacy": -np.inf,
    "mse_at_equal_accuracy": 0.0,
    "bytes_at_equal_both": np.inf,
}
"""What is summed up of each family, and what stands for *not reached* while it is."""


class _Draws(NamedTuple):
    """What each point of a run has in the data (first) and in every resample: ``(points, n)``."""

    accuracy: Array
    log_mse: Array


def equal_points(
    results: pd.DataFrame, history: pd.DataFrame, scores: pd.DataFrame, reference: str = "none"
) -> pd.DataFrame:
    """Sum up each family where it is as private, and as accurate, as every other.

    Between neighbouring parameters a family is a straight line in accuracy, log MSE and log bytes.
    Each resample draws seeds, and victims of each of these seeds; the families share the draws.
    Privacy that is not established counts as none.

    Parameters
    ----------
    results, history, scores : DataFrame
        Of one run.
    reference : str
        Quantizer whose accuracy is the measure.

    Returns
    -------
    DataFrame
        One row per family: ``family``, ``points``, ``established`` (all points are), and
        ``accuracy_at_equal_privacy`` (the most with a median MSE of `EQUAL_PRIVACY` or more),
        ``mse_at_equal_accuracy`` (the most with the reference's accuracy less `EQUAL_ACCURACY`, or
        more), ``bytes_at_equal_both`` (the fewest with both), each with a 95 % interval ``_low``,
        ``_high``, and ``_reached``, the share of the resamples in which the family gets there.
        What it does not reach is missing. Empty without families or the reference.
    """
    points = with_families(results.dropna(subset=["test_accuracy_mean", "mse_median"]))
    at = points.index[points["quantizer"] == reference]
    strongest, history = _shared_seeds(scores[scores["strongest"]], history, points["quantizer"])
    if points["value"].isna().all() or not len(at) or strongest.empty:
        return pd.DataFrame(columns=["family", "points", "established", *_columns()])
    draws = _resample(points["quantizer"].tolist(), history, strongest)
    sure = points["established"] | (points["verdict"] == "bounded")
    draws.log_mse[~sure.to_numpy(dtype=bool)] = np.nan
    least = draws.accuracy[at[0]] - EQUAL_ACCURACY
    log_bytes = np.log(points["uplink_bytes_per_update"].to_numpy(dtype=np.float64))
    rows = []
    for family, own in points[points["value"].notna()].groupby("family", sort=False):
        line = _Draws(*(_filled(values[own.index]) for values in draws))
        sizes = _filled(np.tile(log_bytes[own.index][:, None], (1, len(least))))
        private, accurate = line.log_mse >= np.log(EQUAL_PRIVACY), line.accuracy >= least
        reached = (
            _best(line.accuracy, private),
            np.exp(_best(line.log_mse, accurate)),
            np.exp(-_best(-sizes, private & accurate)),
        )
        facts = {"family": family, "points": len(own), "established": bool(sure[own.index].all())}
        for (name, worst), values in zip(COLUMNS.items(), reached, strict=True):
            facts |= _summary(name, values, worst)
        rows.append(facts)
    return pd.DataFrame(rows)


def _columns() -> list[str]:
    return [name + end for name in COLUMNS for end in ("", "_low", "_high", "_reached")]


def _shared_seeds(
    strongest: pd.DataFrame, history: pd.DataFrame, quantizers: "pd.Series[str]"
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Leave out seeds with which some point is not attacked yet."""
    own = strongest[strongest["quantizer"].isin(quantizers)]
    holders = own.groupby("seed")["quantizer"].nunique()
    shared = holders.index[holders == quantizers.nunique()]
    return own[own["seed"].isin(shared)], history[history["seed"].isin(shared)]


def _resample(quantizers: list[str], history: pd.DataFrame, strongest: pd.DataFrame) -> _Draws:
    """Draw seeds, then as many victims' batches of each drawn seed as it has; the data come first.

    Parameters
    ----------
    quantizers : list of str
        The points, in order.
    history, strongest : DataFrame
        Of one run; every point with every seed.
    """
    last = history.sort_values("round").groupby(["quantizer", "seed"])["accuracy"].last().unstack()
    accuracy = last.loc[quantizers].to_numpy(dtype=np.float64)  # (points, seeds)
    batch = ["quantizer", *OBSERVATION]
    rows = strongest.sort_values(["round", "partition", "image"])
    rows = rows.assign(place=rows.groupby(batch).cumcount())
    first = rows.drop_duplicates(batch)
    number = first.assign(number=first.groupby(["quantizer", "seed"]).cumcount())
    rows = rows.merge(number[[*batch, "number"]], on=batch)
    shape = [len(quantizers), last.shape[1], rows["number"].max() + 1, rows["place"].max() + 1]
    mse = np.full(shape, np.nan)
    point = pd.Index(quantizers).get_indexer(pd.Index(rows["quantizer"]))
    seed = last.columns.get_indexer(pd.Index(rows["seed"]))
    mse[point, seed, rows["number"], rows["place"]] = rows["mse"]
    rng = numpy_rng(0, Purpose.BOOTSTRAP)
    seeds, batches = shape[1:3]
    drawn = rng.integers(seeds, size=(RESAMPLES, seeds))
    drawn[0] = np.arange(seeds)
    chosen = rng.integers(batches, size=(RESAMPLES, seeds, batches))
    chosen[0] = np.arange(batches)
    medians = [
        np.nanmedian(own[drawn[:, :, None], chosen].reshape(RESAMPLES, -1), axis=1) for own in mse
    ]
    tiny = np.finfo(np.float64).tiny
    return _Draws(accuracy[:, drawn].mean(axis=2), np.log(np.maximum(medians, tiny)))


def _filled(values: Array) -> Array:
    """Return ``(steps, n)`` values on the straight lines between neighbours of ``(points, n)``."""
    shares = np.linspace(0, 1, _STEPS, endpoint=False)[:, None]
    pieces = [np.where(shares, a + shares * (b - a), a) for a, b in pairwise(values)]
    return np.concatenate([*pieces, values[-1:]])


def _best(values: Array, allowed: "np.ndarray[tuple[int, ...], np.dtype[np.bool_]]") -> Array:
    return np.asarray(np.where(allowed & ~np.isnan(values), values, -np.inf).max(axis=0))


def _summary(name: str, values: Array, worst: float) -> dict[str, float]:
    """Return the value in the data, its interval over the resamples, and how many get there."""
    share = (1 - CONFIDENCE) / 2
    low, high = np.quantile(values, [share, 1 - share], method="nearest")
    named = {"": values[0], "_low": low, "_high": high}
    found = {name + end: float(v) if v != worst else np.nan for end, v in named.items()}
    return found | {f"{name}_reached": float((values != worst).mean())}
