import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from results.scores.statistics import (
    bootstrap_interval,
    holm,
    mean,
    median,
    ninetieth,
    paired_differences,
    pareto_front,
    tenth,
)


def test_percentiles_point_to_the_exposed_tenth():
    values = np.arange(101.0)
    assert (tenth(values), median(values), ninetieth(values), mean(values)) == (10, 50, 90, 50)


def test_the_interval_of_a_mean_is_that_of_the_normal_law():
    values = np.random.default_rng(0).normal(3, 2, size=(400, 1))
    low, high = bootstrap_interval(values, mean)
    half = 1.96 * values.std() / 20
    assert (low, high) == pytest.approx((values.mean() - half, values.mean() + half), abs=0.05)


def test_the_interval_covers_the_truth_as_often_as_it_says():
    rng = np.random.default_rng(1)
    hits = 0
    for _ in range(200):
        low, high = bootstrap_interval(rng.normal(size=(60, 1)), mean)
        hits += low <= 0 <= high
    assert 0.89 <= hits / 200 <= 0.99


def test_the_same_seed_gives_the_same_interval():
    values = np.random.default_rng(0).random((30, 1))
    assert bootstrap_interval(values, median, 1) == bootstrap_interval(values, median, 1)
    assert bootstrap_interval(values, mean, 1) != bootstrap_interval(values, mean, 2)


def test_clusters_are_resampled_not_values():
    values = np.repeat(np.random.default_rng(0).normal(size=(20, 1)), 8, axis=1)
    low, high = bootstrap_interval(values, mean)
    low_alone, high_alone = bootstrap_interval(values[:, :1], mean)
    assert (low, high) == pytest.approx((low_alone, high_alone))  # eight copies add no knowledge
    naive = bootstrap_interval(values.reshape(-1, 1), mean)
    assert high - low > 2 * (naive.high - naive.low)


def test_one_cluster_has_no_interval_and_equal_ones_have_an_empty_one():
    assert np.isnan(bootstrap_interval([[1.0, 2.0]], mean)).all()
    assert np.isnan(bootstrap_interval([], mean)).all()
    assert bootstrap_interval([[0.5]] * 5, median) == (0.5, 0.5)


def test_two_clusters_are_enough():
    assert bootstrap_interval([[0.0], [1.0]], mean) == (0, 1)


def test_a_thousand_resamples_are_drawn_of_as_many_clusters_as_there_are():
    shapes = []

    def recorded(values, axis):
        assert axis == -1
        shapes.append(values.shape)
        return mean(values, axis)

    bootstrap_interval(np.random.default_rng(0).random((6, 2)), recorded)
    assert sum(shape[0] for shape in shapes if len(shape) == 2) == 1000
    assert {shape[-1] for shape in shapes} == {12}


def test_holm_of_the_textbook():
    assert holm(np.array([0.01, 0.04, 0.03, 0.005])) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm(np.array([0.9, 0.8])) == pytest.approx([1, 1])
    assert holm(np.array([0.02, np.nan])) == pytest.approx([0.02, np.nan], nan_ok=True)
    assert len(holm(np.array([]))) == 0


@given(arrays(np.float64, st.integers(1, 8), elements=st.floats(0, 1)))
def test_holm_lies_between_raw_and_bonferroni(p):
    adjusted = holm(p)
    assert (adjusted >= p).all()
    assert (adjusted <= np.minimum(1, len(p) * p) + 1e-12).all()


def scores_of(**psnr: list[float]) -> pd.DataFrame:
    return pd.concat(
        pd.DataFrame({"quantizer": name, "victim": range(len(values)), "psnr": values})
        for name, values in psnr.items()
    )


def test_differences_are_taken_victim_by_victim():
    base = np.random.default_rng(0).normal(20, 10, 12)
    scores = scores_of(none=base.tolist(), worse=(base - 3).tolist(), same=base.tolist())
    shuffled = scores.sample(frac=1, random_state=0)
    table = paired_differences(shuffled, "psnr", ["victim"]).set_index("quantizer")
    assert table.loc["worse", "median_difference"] == pytest.approx(-3)
    assert table.loc["worse", ["low", "high"]].tolist() == pytest.approx([-3, -3])
    assert table.loc["worse", "p"] == pytest.approx(2 / 2**12, rel=0.5)  # all 12 of one sign
    assert table.loc["worse", "p_holm"] == pytest.approx(2 * table.loc["worse", "p"])
    assert table.loc["same", ["median_difference", "p"]].tolist() == [0, 1]
    assert table["pairs"].tolist() == [12, 12]


def test_the_seed_reaches_the_interval_of_a_difference():
    scores = scores_of(none=[0.0] * 99, sign=np.random.default_rng(0).normal(size=99).tolist())
    first, same, other = (
        paired_differences(scores, "psnr", ["victim"], seed=seed)[["low", "high"]].to_numpy()
        for seed in (1, 1, 5)
    )
    assert (first == same).all()
    assert (first != other).any()
    assert paired_differences(scores, "psnr", ["victim"]).equals(
        paired_differences(scores, "psnr", ["victim"], seed=0)
    )


def test_victims_that_one_side_lacks_are_left_out():
    scores = scores_of(none=[1.0, 2.0, 3.0], sign=[5.0])
    row = paired_differences(scores, "psnr", ["victim"]).iloc[0]
    assert (row["pairs"], row["median_difference"]) == (1, 4)
    scores = pd.concat([scores_of(none=[1.0]), scores_of(sign=[5.0]).assign(victim=7)])
    row = paired_differences(scores, "psnr", ["victim"]).iloc[0]
    assert row["pairs"] == 0
    assert row[["median_difference", "low", "high", "p", "p_holm"]].isna().all()


def test_without_a_reference_there_is_nothing_to_compare():
    assert paired_differences(scores_of(sign=[1.0]), "psnr", ["victim"]).empty


def test_pareto_front_of_a_staircase():
    gains = np.array([[1, 3], [2, 2], [3, 1], [1, 1], [2, 2]])
    assert pareto_front(gains).tolist() == [True, True, True, False, True]


@given(arrays(np.int64, (7, 3), elements=st.integers(0, 3)))
@settings(max_examples=100)
def test_every_row_off_the_front_is_beaten_by_one_on_it(gains):
    front = pareto_front(gains)
    assert front.any()
    for row in gains[~front]:
        assert ((gains[front] >= row).all(axis=1) & (gains[front] > row).any(axis=1)).any()
