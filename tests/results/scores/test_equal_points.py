"""What a family reaches at equal privacy and accuracy, on lines whose answers are known."""

import numpy as np
import pandas as pd
import pytest

from results.scores.equal_points import COLUMNS, EQUAL_ACCURACY, EQUAL_PRIVACY, equal_points
from results.tables.families import family_table


def run_of(points, unsure="", seeds=3, victims=4, spread=0.0):
    """Return results, history and scores of points ``{spec: (accuracy, mse, bytes)}``."""
    rng = np.random.default_rng(0)
    history, scores = [], []
    for name, (accuracy, mse, _) in points.items():
        for seed in range(seeds):
            history.append((name, seed, 5, accuracy + spread * rng.uniform(-1, 1)))
            for partition in range(victims):
                error = mse * np.exp(50 * spread * rng.uniform(-1, 1))
                scores.append((name, seed, 1, partition, partition, 0, error, True))
    columns = ["quantizer", "seed", "round", "partition", "cohort", "image", "mse", "strongest"]
    results = pd.DataFrame(
        {
            "quantizer": list(points),
            "test_accuracy_mean": [accuracy for accuracy, _, _ in points.values()],
            "mse_median": [mse for _, mse, _ in points.values()],
            "uplink_bytes_per_update": [size for _, _, size in points.values()],
            "established": [name != unsure for name in points],
            "verdict": "leaks",
        }
    )
    made = pd.DataFrame(history, columns=["quantizer", "seed", "round", "accuracy"])
    return results, made, pd.DataFrame(scores, columns=columns)


LINES = {
    "none": (0.9, 1e-9, 4000),
    "uniform:bits=8": (0.9, 1e-5, 1000),
    "uniform:bits=2": (0.8, 1e-1, 250),
    "eden:bits=2": (0.9, 1e-4, 250),
    "eden:bits=1": (0.89, 1e-3, 125),
    "topk:keep=0.1": (0.5, 1e-2, 400),
    "topk:keep=0.5": (0.89, 1e-1, 1600),
    "sign": (0.9, 1, 1),
}


def test_values_between_the_points_lie_on_straight_lines():
    found = equal_points(*run_of(LINES)).set_index("family")
    assert list(found.index) == ["uniform:bits", "eden:bits", "topk:keep"]
    assert list(found["points"]) == [2, 2, 2]
    assert found["established"].all()
    uniform, eden, topk = (row for _, row in found.iterrows())
    # 0.01 is three quarters of the way from 1e-5 to 1e-1; an accuracy of 0.88 one fifth.
    assert uniform["accuracy_at_equal_privacy"] == pytest.approx(0.825, abs=0.002)
    assert uniform["mse_at_equal_accuracy"] == pytest.approx(10**-4.2, rel=0.15)
    assert np.isnan(uniform["bytes_at_equal_both"])
    assert np.isnan(eden["accuracy_at_equal_privacy"])
    assert eden["mse_at_equal_accuracy"] == pytest.approx(1e-3)
    assert topk["accuracy_at_equal_privacy"] == pytest.approx(0.89)
    assert topk["mse_at_equal_accuracy"] == pytest.approx(0.1)
    share = (0.88 - 0.5) / 0.39
    assert topk["bytes_at_equal_both"] == pytest.approx(400 * 4**share, rel=0.02)
    assert list(found["bytes_at_equal_both_reached"]) == [0, 0, 1]


def test_what_is_not_established_counts_as_not_private():
    found = equal_points(*run_of(LINES, unsure="eden:bits=1")).set_index("family")
    assert list(found["established"]) == [True, False, True]
    assert found.loc["eden:bits", "mse_at_equal_accuracy"] == pytest.approx(1e-4)
    results, *rest = run_of(LINES, unsure="eden:bits=1")
    bounded = equal_points(results.assign(verdict="bounded"), *rest).set_index("family")
    assert bounded.loc["eden:bits", "mse_at_equal_accuracy"] == pytest.approx(1e-3)


def test_without_spread_intervals_are_points_and_with_it_they_hold_the_value():
    still = equal_points(*run_of(LINES))
    assert (still["mse_at_equal_accuracy_low"] == still["mse_at_equal_accuracy_high"]).all()
    moved = equal_points(*run_of(LINES, spread=0.01)).set_index("family")
    for name in ("accuracy_at_equal_privacy", "mse_at_equal_accuracy"):
        row = moved.loc["topk:keep"]
        assert row[f"{name}_low"] <= row[name] <= row[f"{name}_high"]
        assert row[f"{name}_low"] < row[f"{name}_high"]


def test_what_only_some_resamples_reach_has_an_open_interval():
    lines = {**LINES, "eden:bits=1": (0.89, 0.0105, 125)}
    eden = equal_points(*run_of(lines, spread=0.02)).set_index("family").loc["eden:bits"]
    assert 0 < eden["accuracy_at_equal_privacy_reached"] < 1
    assert np.isnan(eden["accuracy_at_equal_privacy_low"])
    assert eden["accuracy_at_equal_privacy_high"] > 0.85


def test_no_families_or_no_reference_is_an_empty_table_with_its_columns():
    for names in (["none", "sign"], ["uniform:bits=8", "uniform:bits=2"]):
        empty = equal_points(*run_of({name: LINES[name] for name in names}))
        assert empty.empty
        assert set(COLUMNS) <= set(empty.columns)


def test_a_seed_that_is_not_attacked_yet_is_left_out():
    results, history, scores = run_of(LINES)
    unfinished = scores[(scores["quantizer"] != "eden:bits=2") | (scores["seed"] < 2)]
    history.loc[history["seed"] == 2, "accuracy"] = 0.0
    found = equal_points(results, history, unfinished).set_index("family")
    assert found.loc["topk:keep", "accuracy_at_equal_privacy"] == pytest.approx(0.89)


def test_the_table_shows_what_is_not_reached_as_a_dash():
    table = family_table(equal_points(*run_of(LINES, unsure="eden:bits=1")))
    assert list(table["family"]) == ["uniform:bits", "eden:bits*", "topk:keep"]
    assert list(table["bytes at equal both"])[:2] == ["–", "–"]
    assert table["test % at equal privacy"][2] == "89.0 [89.0, 89.0]"
    assert (EQUAL_PRIVACY, EQUAL_ACCURACY) == (0.01, 0.02)
