import io

import numpy as np
import pandas as pd
import pytest
from rich.console import Console

from results.figures.styles import FILLS, VERDICT_COLOURS
from results.tables.terminal import print_results
from results.tables.verdicts import VERDICTS, chance, verdict
from tests.results.tables.table_cases import NONE, SIGN, history, study, table


@pytest.mark.parametrize(
    ("success", "identified", "mse", "established", "word"),
    [
        (1.0, 1.0, 1e-9, True, "leaks"),
        (0.5, 0.0, 0.02, True, "leaks"),
        (0.0, 0.5, 0.3, False, "leaks"),  # identified is identified
        (0.4, 0.0, 0.09, True, "partly leaks"),
        (0.0, 0.2, 0.3, True, "partly leaks"),
        (0.0, 0.0, 0.09, False, "partly leaks"),  # found is found
        (0.0, 0.1, 0.1, True, "nothing found"),
        (0.0, 0.1, 0.1, False, "not established"),
        (np.nan, np.nan, np.nan, False, "not established"),
    ],
)
def test_verdicts(success, identified, mse, established, word):
    row = {
        "identified_chance": 0.0,
        "success_rate": success,
        "identified_rate": identified,
        "mse_median": mse,
        "baseline_mse": 0.1,
        "established": established,
    }
    assert verdict(pd.Series(row)) == word
    assert word in VERDICTS


@pytest.mark.parametrize(
    ("rate", "chance", "word"),
    [
        (0.5, 0.5, "nothing found"),  # one public image: a coin
        (0.7, 0.5, "partly leaks"),
        (0.76, 0.5, "leaks"),
        (0.1, 0.2, "nothing found"),  # less than chance
        (1.0, 1.0, "nothing found"),  # no public image at all
        (0.51, 0.001, "leaks"),
    ],
)
def test_what_chance_alone_identifies_is_no_leak(rate, chance, word):
    row = {"success_rate": 0.0, "mse_median": 0.3, "baseline_mse": 0.1, "established": True}
    assert verdict(pd.Series(row | {"identified_rate": rate, "identified_chance": chance})) == word


def test_chance_stands_beside_the_rates():
    half = SIGN.assign(identified_chance=0.25, label_chance=0.35)
    made = table(study(NONE, half), history(none=[0.9], sign=[0.8]), "none", "sign", "drive")
    assert list(made.columns[-2:]) == ["identified_chance", "label_chance"]
    assert made["label_chance"].tolist()[:2] == pytest.approx([0.1, 0.35])
    assert np.isnan(made.loc[2, "label_chance"])
    said = "Chance alone identifies 0.69% to 25% of the victims and knows 10% to 35% of the labels."
    assert chance(made) == said
    console = Console(width=80, file=io.StringIO())
    print_results(made[:1], console)
    printed = " ".join(console.file.getvalue().split())
    assert "Chance alone identifies 0.69% of the victims and knows 10% of the labels." in printed
    assert chance(made[2:]) == ""


def test_every_verdict_has_a_colour():
    assert list(VERDICT_COLOURS) == list(FILLS) == list(VERDICTS)
