"""Images made without the update: an attack that is no better has found nothing."""

from collections.abc import Callable, Sequence

import pandas as pd
import torch
from torch import Tensor

from fl_sim.metrics import FurtherMetric
from results.scores.scoring import score_images


def mean_colour(true_images: Tensor, public_images: Tensor) -> Tensor:
    """Return each victim's own mean colour: the best constant image."""
    del public_images
    return true_images.mean(dim=(2, 3), keepdim=True).expand_as(true_images)


def mid_grey(true_images: Tensor, public_images: Tensor) -> Tensor:
    """Return 0.5 everywhere."""
    del public_images
    return torch.full_like(true_images, 0.5)


def mean_public(true_images: Tensor, public_images: Tensor) -> Tensor:
    """Return the mean public image, an estimate of the mean training image."""
    return public_images.mean(dim=0, keepdim=True).expand_as(true_images)


def nearest_public(true_images: Tensor, public_images: Tensor) -> Tensor:
    """Return the public image nearest to the victim in mean squared error.

    Only the truth can choose it. It shows how close an unrelated image can be.
    """
    distance = torch.cdist(true_images.flatten(1), public_images.flatten(1))
    return public_images[distance.argmin(dim=1)]


BASELINES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "mean_colour": mean_colour,
    "mid_grey": mid_grey,
    "mean_public": mean_public,
    "nearest_public": nearest_public,
}

FEATURELESS = ("mean_colour", "mid_grey", "mean_public")
"""The baselines that are one image or one colour; attacks must beat the best of them."""


def score_baselines(
    true_images: Tensor, public_images: Tensor, metrics: Sequence[FurtherMetric] = ()
) -> pd.DataFrame:
    """Score every baseline as if it were an attack.

    Parameters
    ----------
    true_images : Tensor
        ``(n, C, H, W)`` victims.
    public_images : Tensor
        ``(m, C, H, W)`` public images.
    metrics : sequence of FurtherMetric
        A column each, beside those that are always there.

    Returns
    -------
    pandas.DataFrame
        Columns ``baseline``, ``image`` and those of `results.scores.scoring.score_images`.
    """
    frames = []
    for name, make in BASELINES.items():
        images = make(true_images, public_images)
        scores = score_images(images, true_images, public_images, metrics)
        scores.insert(0, "baseline", name)
        scores.insert(1, "image", range(len(scores)))
        frames.append(scores)
    return pd.concat(frames, ignore_index=True)


def bar(baselines: pd.DataFrame) -> float:
    """Lowest median MSE among the featureless baselines: an attack above it has found nothing."""
    featureless = baselines[baselines["baseline"].isin(FEATURELESS)]
    return float(featureless.groupby("baseline")["mse"].median().min())
