"""What one attack identifies by itself counts; what blind guesses may identify does not."""

import numpy as np
import pandas as pd
import pytest

from results.scores.alone import identified_alone
from results.tables.verdicts import verdict

VICTIMS, CHANCE = 24, 0.002


def scores_of(**hits):
    """Return scores of attacks that each identify so many of the victims."""
    frames = [
        pd.DataFrame(
            {
                "attack": attack,
                "identified": np.arange(VICTIMS) < count,
                "identified_chance": CHANCE,
            }
        )
        for attack, count in hits.items()
    ]
    return pd.concat(frames, ignore_index=True)


def row_of(**facts):
    """Return a row of results in which the chosen attack found nothing."""
    nothing = {"identified_rate": 0.0, "identified_chance": CHANCE, "success_rate": 0.0}
    errors = {"mse_median": 0.05, "baseline_mse": 0.04, "established": True}
    return pd.Series(nothing | errors | facts)


def test_the_attack_that_identifies_most_is_named():
    found = identified_alone(scores_of(cell=1, synthetic=9, dlg=0))
    assert found["identified_alone_attack"] == "synthetic"
    assert found["identified_alone"] == 9 / 24


def test_what_may_be_chance_is_left_out():
    assert np.isnan(identified_alone(scores_of(cell=0, dlg=0))["identified_alone"])
    one = scores_of(cell=1, dlg=0).assign(identified_chance=0.05)
    assert identified_alone(one) == {
        "identified_alone": pytest.approx(np.nan, nan_ok=True),
        "identified_alone_attack": "",
    }
    certain = scores_of(cell=VICTIMS).assign(identified_chance=1.0)
    assert np.isnan(identified_alone(certain)["identified_alone"])


def test_an_attack_on_a_part_of_the_victims_does_not_count():
    scores = scores_of(cell=0, rgap=VICTIMS)
    part = scores[(scores["attack"] != "rgap") | (scores.index % 2 == 0)]
    assert np.isnan(identified_alone(part)["identified_alone"])


def test_no_attack_identifies_nothing():
    assert np.isnan(identified_alone(scores_of(cell=0).iloc[:0])["identified_alone"])


def test_a_row_is_not_private_where_an_attack_that_was_not_chosen_identifies_victims():
    assert verdict(row_of()) == "nothing found"
    assert verdict(row_of(identified_alone=9 / 24)) == "partly leaks"
    assert verdict(row_of(identified_alone=1 / 24)) == "nothing found"
    assert verdict(row_of(identified_alone=0.9, identified_rate=0.6)) == "leaks"
