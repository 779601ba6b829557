"""LPIPS, a perceptual distance; optional, because the weights of its network are a download."""

import logging
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import interpolate

if TYPE_CHECKING:
    from torchmetrics.image.lpip import LearnedPerceptualImagePatchSimilarity

log = logging.getLogger("fl_sim.results")

_LEAST_SIDE = 64  # pixels; AlexNet has no output for smaller images
_CHUNK = 64


def lpips(images: Tensor, true_images: Tensor) -> NDArray[np.float64] | None:
    """Learned perceptual image patch similarity (Zhang et al. 2018, arXiv 1801.03924) on AlexNet.

    Images below 64 pixels are enlarged; grey images are repeated in three channels.

    Parameters
    ----------
    images, true_images : Tensor
        ``(n, C, H, W)`` in [0, 1], C 1 or 3, paired by position.

    Returns
    -------
    ndarray or None
        ``(n,)``, 0 for equal images; None if torchmetrics or the weights are not installed.
    """
    metric = _metric()
    if metric is None:
        return None
    chunks = (torch.split(_prepared(side), _CHUNK) for side in (images, true_images))
    with torch.no_grad():
        distances = [metric(*pair).reshape(-1) for pair in zip(*chunks, strict=True)]
    metric.reset()
    return np.asarray(torch.cat(distances).double())


def lpips_at_hand() -> bool:
    """Return whether `lpips` can compute distances here."""
    return _metric() is not None


@lru_cache(maxsize=1)
def _metric() -> "LearnedPerceptualImagePatchSimilarity | None":
    """Return torchmetrics' metric, or None; log missing weights once."""
    try:
        from torchmetrics.image.lpip import (  # noqa: PLC0415
            LearnedPerceptualImagePatchSimilarity,
        )
    except ImportError:
        return None  # the extra is not installed
    from torchvision.models import AlexNet_Weights  # noqa: PLC0415  takes a second to import

    url = AlexNet_Weights.DEFAULT.url
    weights = Path(torch.hub.get_dir()) / "checkpoints" / Path(url).name
    if not weights.exists():
        log.info("LPIPS is left out: its weights are not at hand; put %s at %s.", url, weights)
        return None
    return LearnedPerceptualImagePatchSimilarity("alex", reduction="none", normalize=True)


def _prepared(images: Tensor) -> Tensor:
    """Return the images in colour and large enough for the network."""
    count, _, height, width = images.shape
    scale = max(1.0, _LEAST_SIDE / min(height, width))
    size = (round(scale * height), round(scale * width))
    enlarged = interpolate(images.float(), size, mode="bilinear", align_corners=False)
    return enlarged.expand(count, 3, *size).clamp(0, 1)
