"""Rows of ``scores.csv``: their columns, the strongest attack, and victims drawn by seed."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch

from fl_sim.metrics import FurtherMetric
from fl_sim.observed.evidence import BLOCKS, choose
from fl_sim.seeding import Purpose, numpy_rng
from results.scores.scoring import psnr

OBSERVATION = ["seed", "round", "cohort"]
"""Columns that name what a server saw at once: of one client, or the sum of several."""

CLIENT = ["seed", "round", "partition"]
"""Columns that name one client in one round; with ``image``, one victim."""

BLOCKS_COLUMN = "evidence_blocks"
"""Evidence of a reconstruction in parts; `mark_strongest` needs it, no table shows it."""

VICTIM = [*CLIENT, "image"]

_TYPES = {
    "quantizer": "str",
    "seed": "int64",
    "round": "int64",
    "partition": "int64",
    "cohort": "int64",
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
    "evidence": "float64",
    "evidence_at_truth": "float64",
    "evidence_at_grey": "float64",
    "mse_best_known": "float64",
    "psnr_best_known": "float64",
    "update_rmse": "float64",
    "identified_chance": "float64",
    "label_chance": "float64",
    "strongest": "bool",
}


def no_scores(metrics: Sequence[FurtherMetric]) -> pd.DataFrame:
    """Return the scores of a run that was not attacked yet: columns without rows."""
    types = _TYPES | {metric.column: "float64" for metric in metrics}
    return pd.DataFrame(columns=list(types)).astype(types)


def compare_attacks(scores: pd.DataFrame) -> pd.DataFrame:
    """Return scores with what only all attacks together tell.

    Returns
    -------
    DataFrame
        ``strongest`` (see `mark_strongest`) is added, ``mse_best_known`` is the lowest error of all
        attacks' guesses at a victim, ``psnr_best_known`` its PSNR, and `BLOCKS_COLUMN` is gone.
    """
    best = scores.groupby(["quantizer", *VICTIM])["mse_best_known"].transform("min")
    compared = scores.assign(
        strongest=mark_strongest(scores),
        mse_best_known=best,
        psnr_best_known=psnr(best.to_numpy(dtype=np.float64)),
    )
    return compared.drop(columns=BLOCKS_COLUMN)


def mark_strongest(scores: pd.DataFrame) -> pd.Series:
    """Return which rows belong to the strongest attack, by evidence and without the truth.

    The attacks on all batches of a quantizer are compared by how well they predict what was held
    back from them; see `fl_sim.observed.evidence.choose`. The images of a batch come from one
    reconstruction and are chosen together.

    Parameters
    ----------
    scores : DataFrame
        With the column `BLOCKS_COLUMN`.
    """
    strongest = pd.Series(False, index=scores.index)
    for _, rows in scores.groupby("quantizer", sort=False):
        each = rows.drop_duplicates(["attack", *OBSERVATION])
        blocks = each.set_index(["attack", *OBSERVATION])[BLOCKS_COLUMN]
        attacks = sorted(each["attack"].unique())
        batches = list(each[OBSERVATION].drop_duplicates().itertuples(index=False, name=None))
        evidence = torch.full((len(attacks), len(batches), BLOCKS), torch.inf).double()
        for k, attack in enumerate(attacks):
            for b, batch in enumerate(batches):
                known = blocks.get((attack, *batch))
                if known is not None and len(known):
                    evidence[k, b] = torch.tensor([*known])
        best = dict(zip(batches, choose(evidence).tolist(), strict=True))
        own = rows[OBSERVATION].itertuples(index=False, name=None)
        chosen = [attacks[best[batch]] for batch in own]
        strongest[rows.index] = rows["attack"] == pd.Series(chosen, index=rows.index)
    return strongest


def random_victims(scores: pd.DataFrame, count: int) -> pd.DataFrame:
    """Draw at random, by seed, from the victims that all quantizers share.

    In a run that is not finished, draw from those that most quantizers share.

    Returns
    -------
    DataFrame
        At most ``count`` rows with the columns `VICTIM`, in the order drawn.
    """
    shared = _shared_victims(scores)
    return shared.iloc[_drawn(len(shared), count)]


def random_batches(scores: pd.DataFrame, images: int) -> pd.DataFrame:
    """Draw whole batches at random, by seed, from the victims that all quantizers share.

    Returns
    -------
    DataFrame
        As many batches as make up at most so many images, but at least one: a row an image, with
        the columns `VICTIM`, sorted. With one image a batch these are `random_victims`.
    """
    shared = _shared_victims(scores)
    clients = shared[CLIENT].drop_duplicates()
    size = max(1, len(shared) // max(1, len(clients)))
    drawn = clients.iloc[_drawn(len(clients), max(1, images // size))]
    return shared.merge(drawn, on=CLIENT).sort_values(VICTIM, ignore_index=True)


def _shared_victims(scores: pd.DataFrame) -> pd.DataFrame:
    strongest = scores[scores["strongest"]]
    holders = strongest.groupby(VICTIM)["quantizer"].nunique()
    return holders[holders == holders.max()].index.to_frame(index=False)


def _drawn(among: int, count: int) -> "np.ndarray[tuple[int], np.dtype[np.int64]]":
    rng = numpy_rng(0, Purpose.VICTIMS, 0)
    return rng.choice(among, size=min(count, among), replace=False)
