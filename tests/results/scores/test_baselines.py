import numpy as np
import pytest
import torch

from results.scores.baselines import bar, mean_colour, nearest_public, score_baselines


def victims() -> torch.Tensor:
    """One picture half black, half white in red; one all grey."""
    images = torch.zeros(2, 3, 8, 8)
    images[0, 0, :4] = 1
    images[1] = 0.4
    return images


def test_mean_colour_is_per_victim_and_channel():
    constant = mean_colour(victims(), victims())
    assert constant.shape == (2, 3, 8, 8)
    assert constant[0, :, 0, 0].tolist() == [0.5, 0, 0]
    assert constant[1].unique().item() == pytest.approx(0.4)


def test_baselines_are_scored_like_attacks():
    public = torch.zeros(5, 3, 8, 8)
    public[3] = victims()[0]
    scores = score_baselines(victims(), public).set_index(["baseline", "image"])["mse"]
    assert scores["mean_colour", 0] == pytest.approx(0.25 / 3)  # variance of half ones, one in 3
    assert scores["mean_colour", 1] == pytest.approx(0, abs=1e-12)
    assert scores["mid_grey", 0] == pytest.approx(0.25)
    assert scores["mid_grey", 1] == pytest.approx(0.01)
    assert scores["nearest_public", 0] == 0
    # A fifth of red in half of the picture, nothing elsewhere.
    assert scores["mean_public", 0] == pytest.approx((0.8**2) / 6)


def test_nearest_public_chooses_by_mse():
    public = torch.rand(10, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    assert torch.equal(nearest_public(public[[4, 2]] + 0.01, public), public[[4, 2]])


def test_the_bar_is_the_best_featureless_median():
    public = torch.zeros(3, 3, 8, 8)
    public[0] = victims()[0]
    scores = score_baselines(victims(), public)
    medians = scores.groupby("baseline")["mse"].median()
    assert bar(scores) == medians[["mean_colour", "mid_grey", "mean_public"]].min()
    assert bar(scores) == pytest.approx(np.median([0.25 / 3, 0]))
    assert medians["nearest_public"] < medians["mid_grey"]
