"""No measured attack is above a bound that holds for all of them: else one of the two is wrong."""

from pathlib import Path

import pandas as pd
import pytest

from benchmarks.bounds.ladder import Job, measure, violations

RESULTS = Path(__file__).parents[3] / "docs" / "results"


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["gaussian", "digits"])
def test_attacks_on_clipped_noise_stay_within_the_bounds(kind):
    frame = pd.DataFrame(measure(Job("clip:norm=1+gaussian:sigma=0.5", 0.5, kind, 4)))
    assert violations(frame).empty
    assert set(frame["attack"]) == {"likelihood", "bayes", *(["cell"] if kind == "digits" else [])}
    assert (frame["identified_bound"] < 0.15).all()
    assert frame.loc[frame["attack"] == "bayes", "mse"].lt(0.2).all()  # it does find something


def test_an_attack_above_a_bound_is_reported():
    row = {"images": "gaussian", "identified_low": 0.2, "identified_bound": 0.1}
    row |= {"mse_high": 0.5, "mse_bound": 0.1}
    fine = row | {"identified_low": 0.05}
    near = fine | {"mse_high": 0.05}
    frame = pd.DataFrame([row, fine, near, near | {"images": "digits"}])
    assert list(violations(frame).index) == [0, 2]


def test_the_kept_ladder_and_the_kept_candidate_test_hold_their_bounds():
    ladder, candidates = RESULTS / "guarantees.csv", RESULTS / "candidate_test.csv"
    if ladder.exists():
        assert violations(pd.read_csv(ladder)).empty
    if candidates.exists():
        frame = pd.read_csv(candidates)
        private = frame[frame["epsilon"] != "none"]
        assert (private["epsilon proven"] <= private["epsilon"].astype(float)).all()
        plain = frame[(frame["quantizer"] == "none") & (frame["batch"] == 1)]
        assert (plain["TPR % at FPR 0.1 %"] == 100).all()
