"""Spatial frequencies, scaled as in natural images: coordinates for quasi-Newton steps.

Natural images have most of their power at low frequencies. A search that counts each frequency in
units of its usual size finds the coarse shape first, and needs a fraction of the evaluations that
one over pixels needs.
"""

from functools import lru_cache
from math import pi

import torch
from torch import Tensor

_DECAY = 0.5  # power of the frequency with which its unit falls


def to_pixels(frequencies: Tensor) -> Tensor:
    """Return the images ``(..., H, W)`` of scaled frequencies: an inverse cosine transform.

    Examples
    --------
    >>> import torch
    >>> from attacker.matching.frequencies import to_pixels
    >>> frequencies = torch.zeros(1, 2, 2)
    >>> frequencies[0, 0, 0] = 1.0
    >>> to_pixels(frequencies).tolist()
    [[[0.5, 0.5], [0.5, 0.5]]]
    """
    height, width = frequencies.shape[-2:]
    rows, columns = _waves(height).to(frequencies), _waves(width).to(frequencies)
    sized = frequencies * _units(height, width).to(frequencies)
    images: Tensor = rows.mT @ sized @ columns
    return images


@lru_cache(maxsize=16)
def _waves(size: int) -> Tensor:
    """Return the orthonormal cosine transform (DCT-II), ``(size, size)``, one wave a row."""
    number = torch.arange(size, dtype=torch.float64)
    waves: Tensor = torch.cos(pi / size * number[:, None] * (number + 0.5)) * (2 / size) ** 0.5
    waves[0] /= 2**0.5
    return waves


@lru_cache(maxsize=16)
def _units(height: int, width: int) -> Tensor:
    """Return the size of a unit of each frequency, ``(H, W)``."""
    down, right = torch.arange(height).double(), torch.arange(width).double()
    unit: Tensor = (1 + (down[:, None].square() + right.square()).sqrt()) ** -_DECAY
    return unit
