from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from results.scores.scoring import (
    correlation,
    identification_rank,
    label_chance,
    labels_recovered,
    match,
    psnr,
    score_batch,
    score_batches,
    score_images,
    ssim,
)


def pictures(n: int, channels: int = 1, side: int = 8, seed: int = 0) -> torch.Tensor:
    return torch.rand(n, channels, side, side, generator=torch.Generator().manual_seed(seed))


BATCHES = arrays(np.float32, (4, 1, 8, 8), elements=st.floats(-1, 2, width=32))
UNIT = arrays(np.float32, (4, 1, 8, 8), elements=st.floats(0, 1, width=32))


def test_known_scores_of_a_constant_error():
    truth = torch.full((1, 1, 8, 8), 0.5)
    scores = score_images(truth + 0.1, truth).iloc[0]
    assert scores["mse"] == pytest.approx(0.01, rel=1e-6)
    assert scores["psnr"] == pytest.approx(20.0, abs=1e-5)
    assert scores["correlation"] == 0.0  # a constant picture tells nothing
    assert not scores["failed"]


def test_a_perfect_batch_in_another_order_scores_zero_and_hits_every_label():
    truth, labels = pictures(5), torch.tensor([3, 1, 4, 1, 5])
    order = torch.tensor([2, 4, 0, 1, 3])  # not its own inverse: the direction matters
    scores = score_batch(truth[order], labels[order], truth, labels, public=pictures(20, seed=1))
    assert scores["mse"].max() == 0
    assert scores["psnr"].min() == 150
    assert scores["ssim"].min() == pytest.approx(1)
    assert scores["label_hit"].all()
    assert scores["identified"].all()
    assert list(scores["image"]) == [0, 1, 2, 3, 4]
    assert [order[guess].item() for guess in scores["guess"]] == [0, 1, 2, 3, 4]
    assert list(scores["true_label"]) == list(scores["label"]) == labels.tolist()


def test_labels_follow_their_images_not_their_places():
    truth, labels = pictures(3), torch.tensor([0, 1, 2])
    scores = score_batch(truth[[1, 2, 0]], labels, truth, labels)
    assert list(scores["label"]) == [2, 0, 1]
    assert not scores["label_hit"].any()
    assert (scores["labels_recovered"] == 1).all()  # as counts, all three are known


@given(BATCHES, UNIT, st.permutations(range(4)))
@settings(max_examples=40, deadline=None)
def test_scores_do_not_depend_on_the_order_of_the_guesses(guesses, truth, order):
    guesses, truth = torch.from_numpy(guesses), torch.from_numpy(truth)
    labels = torch.arange(4)
    straight = score_batch(guesses, labels, truth, labels)["mse"].sum()
    shuffled = score_batch(guesses[order], labels[order], truth, labels)["mse"].sum()
    assert shuffled == pytest.approx(straight, abs=1e-12)


@given(BATCHES, UNIT)
@settings(max_examples=40, deadline=None)
def test_assignment_is_no_worse_than_any_order(guesses, truth):
    guesses, truth = torch.from_numpy(guesses), torch.from_numpy(truth)
    labels = torch.zeros(4, dtype=torch.long)
    best = score_batch(guesses, labels, truth, labels)["mse"].sum()
    for order in ([0, 1, 2, 3], [1, 0, 3, 2], [3, 2, 1, 0], [1, 2, 3, 0]):
        assert best <= score_images(guesses[order], truth)["mse"].sum() + 1e-12


@given(BATCHES, UNIT)
@settings(max_examples=40, deadline=None)
def test_clamping_beforehand_changes_nothing_and_scores_stay_in_range(guesses, truth):
    guesses, truth = torch.from_numpy(guesses), torch.from_numpy(truth)
    raw, clamped = score_images(guesses, truth), score_images(guesses.clamp(0, 1), truth)
    assert raw.equals(clamped)
    assert raw["mse"].between(0, 1).all()
    assert raw["psnr"].between(0, 150).all()
    assert raw["correlation"].between(-1 - 1e-9, 1 + 1e-9).all()


def test_pixels_outside_the_range_do_not_wrap_around():
    truth = torch.ones(1, 1, 8, 8)
    assert score_images(truth * 1.01, truth)["mse"].item() == 0
    assert score_images(truth * 1e10, truth)["mse"].item() == 0


@given(st.floats(1e-14, 1))
def test_psnr_is_the_logarithm_of_mse(error):
    assert psnr(np.array([error]))[0] == pytest.approx(-10 * np.log10(error))


def test_psnr_agrees_with_scikit_image_and_is_capped():
    a, b = pictures(3, seed=1).double(), pictures(3, seed=2).double()
    expected = [
        peak_signal_noise_ratio(y.numpy(), x.numpy(), data_range=1)
        for x, y in zip(a, b, strict=True)
    ]
    assert score_images(a, b)["psnr"].to_numpy() == pytest.approx(expected)
    assert psnr(np.zeros(1))[0] == 150


def test_ssim_of_one_window_by_the_formula():
    rng = np.random.default_rng(0)
    x, y = rng.random((1, 1, 7, 7)), rng.random((1, 1, 7, 7))
    covariance = ((x - x.mean()) * (y - y.mean())).mean()
    luminance = (2 * x.mean() * y.mean() + 1e-4) / (x.mean() ** 2 + y.mean() ** 2 + 1e-4)
    structure = (2 * covariance + 9e-4) / (x.var() + y.var() + 9e-4)
    assert ssim(x, y)[0] == pytest.approx(luminance * structure)


@pytest.mark.parametrize("shape", [(3, 32, 32), (1, 8, 8), (1, 28, 28), (3, 5, 6), (1, 4, 4)])
def test_ssim_takes_grey_colour_and_tiny_images(shape):
    image = np.random.default_rng(0).random((2, *shape))
    assert ssim(image, image) == pytest.approx([1, 1])
    assert (ssim(1 - image, image) < 0.5).all()


def test_correlation_is_pearsons_and_ignores_brightness_and_contrast():
    a, b = pictures(4, 3, seed=1).double().numpy(), pictures(4, 3, seed=2).double().numpy()
    expected = [np.corrcoef(x.ravel(), y.ravel())[0, 1] for x, y in zip(a, b, strict=True)]
    assert correlation(a, b) == pytest.approx(expected)
    assert correlation(0.3 * a + 0.2, a) == pytest.approx([1] * 4)
    assert correlation(1 - a, a) == pytest.approx([-1] * 4)
    assert correlation(np.full_like(a, 0.1), a) == pytest.approx([0] * 4, abs=0)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_an_image_that_is_not_finite_is_flagged_and_scored_as_the_worst(bad):
    truth = pictures(2)
    guesses = truth.clone()
    guesses[1, 0, 3, 3] = bad
    scores = score_images(guesses, truth, public=pictures(9, seed=1))
    assert list(scores["failed"]) == [False, True]
    assert scores.loc[1, ["mse", "psnr", "ssim", "correlation"]].tolist() == [1, 0, 0, 0]
    assert scores.loc[1, "rank"] == 10
    assert list(scores["identified"]) == [True, False]


def test_a_failed_guess_takes_the_place_the_others_leave():
    truth = pictures(3)
    guesses = torch.stack([truth[2], truth[0], torch.full_like(truth[0], torch.nan)])
    assert match(guesses, truth).tolist() == [1, 2, 0]
    scores = score_batch(guesses, torch.tensor([7, 8, 9]), truth, torch.tensor([8, 0, 7]))
    assert list(scores["mse"]) == [0, 1, 0]
    assert list(scores["label_hit"]) == [True, False, True]


def test_rank_counts_the_gallery_images_that_are_as_near():
    truth = pictures(1).double().numpy()
    noise = pictures(1, seed=1).double().numpy()
    stranger = pictures(3, seed=2).double().numpy()
    gallery = np.concatenate([stranger, 0.9 * truth + 0.1 * noise])
    assert identification_rank(truth, truth, stranger)[0] == 1
    assert identification_rank(noise, truth, gallery)[0] >= 2  # the blend is nearer to the noise
    mirrored = truth[..., ::-1]
    between = truth + mirrored  # as near to the one as to the other
    assert identification_rank(between, truth, mirrored)[0] == 2  # a tie counts against it
    assert identification_rank(np.full_like(truth, 0.5), truth, stranger)[0] == 4


@pytest.mark.parametrize("copies", [1, 3])
def test_copies_of_the_truth_in_the_gallery_hide_no_identification(copies):
    truth = pictures(2).double().numpy()
    stranger = pictures(3, seed=2).double().numpy()
    gallery = np.concatenate([stranger, *[truth] * copies])
    assert identification_rank(truth, truth, gallery).tolist() == [1, 1]
    assert identification_rank(truth[::-1], truth, gallery).min() > copies  # of the other victim
    constant = np.full_like(truth, 0.5)
    assert identification_rank(constant, truth, gallery).tolist() == [4 + 2 * copies] * 2


@pytest.mark.parametrize(("decibels", "rank"), [(60, 1), (25, 1), (15, 2)])
def test_an_almost_copy_of_the_truth_is_the_same_picture_and_a_likeness_is_not(decibels, rank):
    truth, error = pictures(1).double().numpy(), pictures(1, seed=3).double().numpy() - 0.5
    error *= truth.std() / error.std()
    copy = truth + error * 10 ** (-decibels / 20)
    guess = truth + 2 * (copy - truth)  # nearer to the copy than to the truth
    assert identification_rank(guess, truth, copy).tolist() == [rank]


def test_identification_needs_a_gallery():
    scores = score_images(pictures(2), pictures(2))
    assert scores["rank"].isna().all()
    assert not scores["identified"].any()


@pytest.mark.parametrize(
    ("guessed", "truth", "share"),
    [
        ([1, 2, 3], [3, 2, 1], 1),
        ([1, 1, 1], [1, 2, 3], 1 / 3),
        ([1, 1, 2], [1, 1, 1], 2 / 3),  # presence alone would say all
        ([4, 4], [5, 6], 0),
    ],
)
def test_labels_recovered_counts_with_multiplicity(guessed, truth, share):
    assert labels_recovered(guessed, truth) == pytest.approx(share)


@pytest.mark.parametrize("truth", [[3], [1, 1], [0, 1], [2, 2, 2, 0], [0, 1, 2, 0]])
def test_label_chance_is_the_mean_over_all_blind_guesses(truth):
    guesses = list(product(range(4), repeat=len(truth)))
    expected = np.mean([labels_recovered(guess, truth) for guess in guesses])
    assert label_chance(truth, 4) == pytest.approx(expected)


def test_another_shape_is_refused():
    with pytest.raises(ValueError, match=r"\(2, 1, 8, 8\).*\(3, 1, 8, 8\)"):
        score_batch(pictures(2), torch.zeros(2), pictures(3), torch.zeros(3))


def test_rows_name_their_batch_image_and_guess_first():
    truth = torch.stack([pictures(2), pictures(2, seed=1)])
    labels = torch.tensor([[0, 1], [2, 3]])
    scores = score_batches(truth.flip(1), labels.flip(1), truth, labels)
    assert list(scores.columns[:3]) == ["batch", "image", "guess"]
    assert scores[["batch", "image", "guess"]].to_numpy().tolist() == [
        [0, 0, 1],
        [0, 1, 0],
        [1, 0, 1],
        [1, 1, 0],
    ]
    assert scores["label_hit"].all()


def test_without_a_gallery_ranks_are_missing_numbers():
    ranks = score_images(pictures(2), pictures(2))["rank"]
    assert ranks.isna().all()
    assert ranks.dtype == np.float64


def halves(*values: tuple[float, float]) -> torch.Tensor:
    """Pictures whose upper and lower half each have one value."""
    return torch.tensor(values)[:, None, :, None].repeat_interleave(4, dim=2).expand(-1, 1, 8, 8)


def test_guesses_are_matched_by_squared_error_not_by_distance():
    truth = halves((0, 0), (0.5, 0))
    guesses = halves((0.5, 0.05), (0.9, 0.3))  # exchanged, distances would sum to less
    assert list(match(guesses, truth)) == [0, 1]


@pytest.mark.parametrize(("shape", "window"), [((3, 32, 32), 7), ((1, 9, 5), 5), ((1, 4, 9), 3)])
def test_the_window_of_ssim_is_seven_or_the_largest_odd_one_that_fits(shape, window):
    rng = np.random.default_rng(0)
    x, y = rng.random((2, *shape))
    expected = structural_similarity(
        x, y, win_size=window, data_range=1, channel_axis=0, use_sample_covariance=False
    )
    assert ssim(x[None], y[None]) == pytest.approx([expected])


@pytest.mark.parametrize("value", [0.1, 0.3, 0.7, 1 / 3])
def test_a_constant_picture_of_any_size_and_colour_identifies_nobody(value):
    truth = np.random.default_rng(0).random((1, 3, 32, 32))
    constant = np.full_like(truth, value)
    assert correlation(constant, truth)[0] == 0
    assert identification_rank(constant, truth, truth[:, ::-1])[0] == 2
