"""Rows of ``scores.csv``: their columns, the strongest attack, and victims drawn by seed."""

from collections.abc import Sequence

import pandas as pd

from fl_sim.metrics import FurtherMetric
from fl_sim.seeding import Purpose, numpy_rng

OBSERVATION = ["seed", "round", "partition"]
"""Columns that name one client in one round; with ``image``, one victim."""

VICTIM = [*OBSERVATION, "image"]

_TYPES = {
    "quantizer": "str",
    "seed": "int64",
    "round": "int64",
    "partition": "int64",
    "attack": "str",
    "image": "int64",
    "mse": "float64",
    "psnr": "float64",
    "ssim": "float64",
    "correlation": "float64",
    "identified": "bool",
    "labels_recovered": "float64",
    "recovered": "bool",
    "failed": "bool",
    "masked": "bool",
    "unexplained": "bool",
    "inconsistency": "float64",
    "yardstick": "float64",
    "update_rmse": "float64",
    "identified_chance": "float64",
    "label_chance": "float64",
    "strongest": "bool",
}


def no_scores(metrics: Sequence[FurtherMetric]) -> pd.DataFrame:
    """Return the scores of a run that was not attacked yet: columns without rows."""
    types = _TYPES | {metric.column: "float64" for metric in metrics}
    return pd.DataFrame(columns=list(types)).astype(types)


def mark_strongest(scores: pd.DataFrame) -> pd.Series:
    """Return which rows belong to the strongest attack: the lowest yardstick for each batch.

    The choice needs no truth, so a server could make it: by `YARDSTICK` of the attack losses. A
    tie goes to the first name. The images of a batch come from one reconstruction and are chosen
    together.
    """
    batch = ["quantizer", *OBSERVATION]
    ordered = scores.sort_values([*batch, "yardstick", "attack"], kind="stable")
    best = ordered.groupby(batch, sort=False)["attack"].transform("first")
    return (ordered["attack"] == best).reindex(scores.index)


def random_victims(scores: pd.DataFrame, count: int) -> pd.DataFrame:
    """Draw at random, by seed, from the victims that all quantizers share.

    In a run that is not finished, draw from those that most quantizers share.

    Returns
    -------
    DataFrame
        At most ``count`` rows with the columns `VICTIM`, in the order drawn.
    """
    strongest = scores[scores["strongest"]]
    holders = strongest.groupby(VICTIM)["quantizer"].nunique()
    shared = holders[holders == holders.max()].index.to_frame(index=False)
    rng = numpy_rng(0, Purpose.VICTIMS, 0)
    return shared.iloc[rng.choice(len(shared), size=min(count, len(shared)), replace=False)]
