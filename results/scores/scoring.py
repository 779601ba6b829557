"""Scores of reconstructed images and labels against the truth."""

from collections import Counter
from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment
from scipy.spatial.distance import cdist
from scipy.stats import binom
from skimage.metrics import structural_similarity
from torch import Tensor

from fl_sim.metrics import FurtherMetric
from results.scores.perceptual import lpips

Array = NDArray[np.float64]

SSIM_WINDOW = 7
"""Side of the uniform SSIM window, in pixels: the largest odd one that fits an 8x8 digit."""

MSE_FLOOR = 1e-15
"""Mean squared error from rounding pixels to float32; it caps the PSNR at 150 dB."""

_SAME = 1e-9  # two correlations closer than this are equal

_SAME_PICTURE = 0.995
"""Correlation from which two images count as the same image, compressed or brightened.

Their difference is 20 dB below the contrast of the image: a good JPEG, not another image of the
same object (no two of the 1,797 digits reach it). `SUCCESS_MSE` of the gates would be too wide. It
is absolute, so it takes different images for the same: one in forty digits, and all dark images.
"""

WORST = {"mse": 1.0, "psnr": 0.0, "ssim": 0.0, "correlation": 0.0, "lpips": 1.0}
"""Scores of a failed image: the largest error two images can have, and no similarity."""


def score_batch(
    images: Tensor,
    labels: Tensor,
    true_images: Tensor,
    true_labels: Tensor,
    public: Tensor | None = None,
) -> pd.DataFrame:
    """Score the reconstruction of one batch: `score_batches` of one, without ``batch``."""
    _require_same_shape(images, true_images)
    scores = score_batches(images[None], labels[None], true_images[None], true_labels[None], public)
    return scores.drop(columns="batch")


def score_batches(
    images: Tensor,
    labels: Tensor,
    true_images: Tensor,
    true_labels: Tensor,
    public: Tensor | None = None,
    metrics: Sequence[FurtherMetric] = (),
) -> pd.DataFrame:
    """Score reconstructed batches; one row per private image, in the truth's order.

    `match` pairs the guesses of a batch with the truth, images together with labels, so that a
    perfect but shuffled batch has an MSE of 0 and every label right.

    Parameters
    ----------
    images : Tensor
        ``(B, n, C, H, W)`` reconstructed images, not clamped.
    labels : Tensor
        ``(B, n)`` reconstructed labels, paired with ``images``.
    true_images : Tensor
        ``(B, n, C, H, W)`` private images in [0, 1].
    true_labels : Tensor
        ``(B, n)`` private labels.
    public : Tensor or None
        ``(m, C, H, W)`` public images for `identification_rank`.
    metrics : sequence of FurtherMetric
        A column each, beside those that are always there.

    Returns
    -------
    pandas.DataFrame
        ``batch``, ``image`` (index in the private batch), ``guess`` (index of the reconstruction
        paired with it), the columns of `score_images`, ``label`` (guessed), ``true_label``,
        ``label_hit``, ``labels_recovered`` (share of the batch's labels that the guessed labels
        hold, counted with multiplicity and without regard to order).

    Raises
    ------
    ValueError
        If reconstruction and truth do not have the same shape.
    """
    _require_same_shape(images, true_images)
    batches = zip(images, true_images, strict=True)
    order = torch.from_numpy(np.stack([match(guess, truth) for guess, truth in batches]))
    rows = torch.arange(len(images))[:, None]
    count, size = order.shape
    pairs = images[rows, order].flatten(0, 1), true_images.flatten(0, 1)
    scores = score_images(*pairs, public, metrics)
    scores.insert(0, "batch", np.repeat(np.arange(count), size))
    scores.insert(1, "image", np.tile(np.arange(size), count))
    scores.insert(2, "guess", order.flatten().numpy())
    scores["label"] = labels[rows, order].flatten().numpy()
    scores["true_label"] = true_labels.flatten().numpy()
    scores["label_hit"] = scores["label"] == scores["true_label"]
    recovered = [
        labels_recovered(guess, truth)
        for guess, truth in zip(labels.tolist(), true_labels.tolist(), strict=True)
    ]
    scores["labels_recovered"] = np.repeat(recovered, size)
    return scores


def score_images(
    images: Tensor,
    true_images: Tensor,
    public: Tensor | None = None,
    metrics: Sequence[FurtherMetric] = (),
) -> pd.DataFrame:
    """Score images paired with the truth; one row per pair.

    Pixels are first clamped to [0, 1]. An image with a NaN or an infinite pixel has ``failed``: it
    gets the scores in `WORST` and is never identified, so that every median and rate includes it.
    Further metrics, whose worst score is unknown, score a plain grey image instead.

    Parameters
    ----------
    images, true_images : Tensor
        ``(n, C, H, W)``, paired by position.
    public : Tensor or None
        Public images; without them ``rank`` is missing and nothing is identified.
    metrics : sequence of FurtherMetric
        A column each, beside those that are always there.

    Returns
    -------
    pandas.DataFrame
        Columns ``mse``, ``psnr`` (dB), ``ssim``, ``correlation``, ``rank``, ``identified``,
        ``failed``; ``lpips`` where `results.scores.perceptual` has its weights; those of
        ``metrics``.

    Raises
    ------
    ValueError
        If the images and the truth do not have the same shape.
    PartError
        If a further metric fails.
    """
    _require_same_shape(images, true_images)
    failed = ~_finite(images)
    guess, truth = _unit_range(images), _unit_range(true_images)
    error = mse(guess, truth)
    scores = pd.DataFrame(
        {
            "mse": error,
            "psnr": psnr(error),
            "ssim": ssim(guess, truth),
            "correlation": correlation(guess, truth),
        }
    )
    distance = lpips(torch.from_numpy(np.nan_to_num(guess)), torch.from_numpy(truth))
    if distance is not None:
        scores["lpips"] = distance
    for name in scores.columns:
        scores.loc[failed, name] = WORST[name]
    rank = np.full(len(scores), np.nan)
    if public is not None:
        rank = identification_rank(guess, truth, _unit_range(public)).astype(np.float64)
        rank[failed] = len(public) + 1
    scores["rank"] = rank
    scores["identified"] = rank == 1
    scores["failed"] = failed
    for metric in metrics:
        scores[metric.column] = metric(np.where(failed[:, None, None, None], 0.5, guess), truth)
    return scores


def match(images: Tensor, true_images: Tensor) -> NDArray[np.intp]:
    """Return ``order`` such that ``images[order[i]]`` is the guess at ``true_images[i]``.

    Optimal assignment by the mean squared error. A failed image has the highest cost, so it gets
    the place that the finite images leave.
    """
    guess, truth = _flat(_unit_range(images)), _flat(_unit_range(true_images))
    cost = cdist(truth, guess, "sqeuclidean") / truth.shape[1]
    cost[:, ~_finite(images)] = WORST["mse"]
    _, order = linear_sum_assignment(cost)
    return np.asarray(order)


def mse_of_pairs(images: Tensor, true_images: Tensor) -> Array:
    """Mean squared error of images ``(n, C, H, W)`` paired with the truth, as in `score_images`."""
    error = mse(_unit_range(images), _unit_range(true_images))
    return np.where(_finite(images), error, WORST["mse"])


def labels_recovered(labels: Sequence[int], true_labels: Sequence[int]) -> float:
    """Return the share of the true labels that were guessed, in any order."""
    shared = Counter(labels) & Counter(true_labels)
    return shared.total() / len(true_labels)


def label_chance(true_labels: Sequence[int], classes: int) -> float:
    """Return the mean of `labels_recovered` for labels drawn uniformly at random.

    Of a class that occurs t times among n labels, min(t, hits) are found, and the hits among n
    draws are binomial. One label: 1 / classes.
    """
    count = len(true_labels)
    found = [
        binom.sf(range(occurrences), count, 1 / classes).sum()
        for occurrences in Counter(true_labels).values()
    ]
    return float(sum(found) / count)


def mse(images: Array, true_images: Array) -> Array:
    """Mean squared error per image, over channels and pixels."""
    error: Array = _flat((images - true_images) ** 2).mean(axis=1)
    return error


def psnr(error: Array) -> Array:
    """Peak signal-to-noise ratio in dB of images in [0, 1], ``-10 log10(mse)``, at most 150."""
    return -10 * np.log10(np.maximum(error, MSE_FLOOR))


def ssim(images: Array, true_images: Array) -> Array:
    """Structural similarity per image (Wang et al. 2004), by scikit-image.

    A uniform window of `SSIM_WINDOW` pixels (less where an image is smaller), population
    covariance, mean over channels. The 11-pixel Gaussian of the paper does not fit an 8x8 digit;
    one window for all data sets keeps their scores comparable.
    """
    side = min(SSIM_WINDOW, *images.shape[2:])
    window = side - 1 + side % 2
    return np.array(
        [
            structural_similarity(  # type: ignore[no-untyped-call]
                guess,
                truth,
                win_size=window,
                data_range=1.0,
                channel_axis=0,
                use_sample_covariance=False,
            )
            for guess, truth in zip(np.nan_to_num(images), true_images, strict=True)
        ]
    )


def correlation(images: Array, true_images: Array) -> Array:
    """Pearson correlation of an image with the truth over all pixels; 0 if either is constant."""
    products = _standardised(images) * _standardised(true_images)
    return np.asarray(products.sum(axis=1))


def identification_rank(images: Array, true_images: Array, public: Array) -> NDArray[np.intp]:
    """Rank the true image among itself and public images by correlation with the reconstruction.

    Rank 1: the reconstruction identifies its victim. Correlation, not MSE, because a one-bit
    message holds no contrast, and an image may be recognised without it. A tie counts against the
    attacker, so a constant picture identifies nobody. A public image may be a copy of the true one,
    for example a compressed one (`_SAME_PICTURE`). Such a copy is not another image: it is not
    compared with a reconstruction that correlates with the truth.
    """
    guess, truth = _standardised(np.nan_to_num(images)), _standardised(true_images)
    others = _standardised(public)
    own = (guess * truth).sum(axis=1)[:, None]
    likeness = guess @ others.T
    copies = (truth @ others.T >= _SAME_PICTURE) & (own > _SAME)
    nearer: NDArray[np.intp] = ((likeness >= own - _SAME) & ~copies).sum(axis=1)
    return nearer + 1


def chance_to_identify(true_images: Tensor, public: Tensor) -> Array:
    """Return how often a blind guess ranks each true image first in `identification_rank`.

    One among the public images and the true one; a public image that is a copy of the true one
    (`_SAME_PICTURE`) counts with it.

    Parameters
    ----------
    true_images : Tensor
        ``(n, C, H, W)``.
    public : Tensor
        ``(m, C, H, W)``.
    """
    truth, others = (_standardised(_unit_range(images)) for images in (true_images, public))
    copies = (truth @ others.T >= _SAME_PICTURE).sum(axis=1)
    return np.asarray((1 + copies) / (1 + len(others)), dtype=np.float64)


def _standardised(images: Array) -> Array:
    """Return flat images of mean 0 and norm 1; a constant image becomes 0."""
    flat = _flat(images)
    centred = flat - flat.mean(axis=1, keepdims=True)
    norm = np.linalg.norm(centred, axis=1, keepdims=True)
    # A constant image minus its mean is rounding noise, which must not be scaled up.
    constant = norm <= 1e-7 * np.sqrt(flat.shape[1])
    standardised: Array = np.where(constant, 0.0, centred / np.where(constant, 1.0, norm))
    return standardised


def _unit_range(images: Tensor) -> Array:
    return np.asarray(images.detach().double().clamp(0, 1).cpu())


def _flat(images: Array) -> Array:
    return images.reshape(len(images), -1)


def _finite(images: Tensor) -> NDArray[np.bool_]:
    return images.isfinite().flatten(1).all(dim=1).cpu().numpy()


def _require_same_shape(images: Tensor, true_images: Tensor) -> None:
    if images.shape != true_images.shape:
        raise ValueError(
            f"Images of shape {tuple(images.shape)} cannot be scored against a truth of shape "
            f"{tuple(true_images.shape)}."
        )
