"""What one attack of a suite identifies by itself, whatever was chosen for each victim."""

import numpy as np
import pandas as pd
from scipy.stats import binomtest

LEVEL = 0.01
"""Chance that blind guesses of any attack of a row count as identifying victims, at most."""

ALONE = ["identified_alone", "identified_alone_attack"]


def identified_alone(scores: pd.DataFrame) -> dict[str, object]:
    """Return the largest share of victims that one attack identifies, if it is not by chance.

    The strongest attack is chosen by how well its guesses predict what they did not see, and not by
    how well they are told apart in a gallery. An attacker who uses one attack throughout needs no
    choice, and no truth: what it identifies is found.

    Parameters
    ----------
    scores : DataFrame
        Of one quantizer: every attack on every victim.

    Returns
    -------
    dict
        `ALONE`: the share, and the attack; missing and "" unless a one-sided binomial test against
        ``identified_chance``, corrected for the number of attacks (Bonferroni), is below `LEVEL`.
    """
    every = scores.groupby("attack")["identified"].agg(["sum", "count", "mean"])
    every = every[every["count"] == every["count"].max()]  # the others had a part of the victims
    chance = float(scores["identified_chance"].mean())
    if chance < 1:  # with no public image every victim is the nearest
        best = every["mean"].idxmax()
        hits, victims = int(every.loc[best, "sum"]), int(every.loc[best, "count"])
        test = binomtest(hits, victims, chance, alternative="greater")
        if test.pvalue * len(every) < LEVEL:
            return dict(zip(ALONE, (hits / victims, str(best)), strict=True))
    return dict(zip(ALONE, (np.nan, ""), strict=True))
