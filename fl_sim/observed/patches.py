"""How natural a picture looks: the likelihood of its patches under a mixture of Gaussians.

The prior of Zoran and Weiss ("From learning models of natural image patches to whole image
restoration", ICCV 2011). The mixture stands in ``patches.json``. It was fitted on photographs that
scikit-learn and scikit-image carry (`benchmarks.evidence.fit_patches`), never on images of a study.
"""

import hashlib
import json
from base64 import b64decode
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from math import log, pi
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import unfold

_FILE = Path(__file__).with_suffix(".json")
_SHA256 = "f1822461498516e6d4489d8abb1798d6c07551592022892ca786c842e62d3e9b"
_COLOURS = 3
_LEAST_SIDE = 16  # pixels


@dataclass(frozen=True, eq=False)
class PatchMixture:
    """A mixture of K Gaussians over square patches of D values.

    Attributes
    ----------
    log_weights : Tensor
        ``(K,)``.
    means : Tensor
        ``(K, D)``.
    covariances : Tensor
        ``(K, D, D)``.
    side : int
        Pixels of a patch, down and right.
    """

    log_weights: Tensor
    means: Tensor
    covariances: Tensor
    side: int

    def grey(self) -> "PatchMixture":
        """Return the mixture of the mean over the colours of each pixel."""
        pixels = self.side**2
        mean = torch.eye(pixels, dtype=self.means.dtype).repeat(1, _COLOURS) / _COLOURS
        return replace(
            self, means=self.means @ mean.mT, covariances=mean @ self.covariances @ mean.mT
        )

    @cached_property
    def whitening(self) -> Tensor:
        """``(K, D, D)`` matrices that turn deviations from a mean into standard normal ones."""
        precision = torch.cholesky_inverse(torch.linalg.cholesky(self.covariances))
        upper: Tensor = torch.linalg.cholesky(precision).mT
        return upper.float().contiguous()

    @cached_property
    def offsets(self) -> Tensor:
        """``(K,)`` energy of each mean in nats; that of the most likely one is 0."""
        determinants = torch.linalg.cholesky(self.covariances).diagonal(dim1=1, dim2=2).log()
        size = self.means.shape[1]
        likelihood = self.log_weights - determinants.sum(dim=1) - size / 2 * log(2 * pi)
        energies: Tensor = likelihood.max() - likelihood
        return energies.float()

    def patches(self, images: Tensor) -> Tensor:
        """Return all overlapping patches of pictures, ``(M, C, H, W) -> (M, N, D)``."""
        patches: Tensor = unfold(images, self.side).mT
        return patches

    def assign(self, images: Tensor) -> Tensor:
        """Return the most likely component of each patch, ``(M, C, H, W) -> (M, N)``."""
        with torch.no_grad():
            components = range(len(self.means))
            found = [
                torch.stack([self._energy(one, k) for k in components]).argmin(dim=0)
                for one in self.patches(images)
            ]
        return torch.stack(found)

    def energy(self, images: Tensor, components: Tensor) -> Tensor:
        """Return the mean energy of a picture's patches, in nats a value.

        Parameters
        ----------
        images : Tensor
            ``(M, C, H, W)``.
        components : Tensor
            ``(M, N)`` component of each patch. Those of `assign` give the least energy; any others
            give a bound above it, quadratic in the images.

        Returns
        -------
        Tensor
            ``(M,)``, not negative.
        """
        patches, chosen = self.patches(images).flatten(0, 1), components.flatten()
        order = chosen.argsort(stable=True)
        counts = torch.bincount(chosen, minlength=len(self.means)).tolist()
        groups = torch.split(patches[order], counts)
        energies = torch.cat([self._energy(group, k) for k, group in enumerate(groups)])
        each = torch.empty_like(energies).index_copy(0, order, energies)
        return each.reshape(components.shape).mean(dim=1) / patches.shape[1]

    def _energy(self, patches: Tensor, component: int) -> Tensor:
        far = (patches - self.means[component].to(patches)) @ self.whitening[component].to(
            patches
        ).mT
        return far.square().sum(dim=1) / 2 + self.offsets[component].to(patches)


def can_judge(shape: tuple[int, ...]) -> bool:
    """Tell whether pictures ``(..., C, H, W)`` show scenes: not tiny, grey or of three colours."""
    *_, channels, height, width = shape
    return channels in (1, _COLOURS) and min(height, width) >= _LEAST_SIDE


def assign(images: Tensor) -> Tensor:
    """Return the most likely component of each patch, ``(B, n, C, H, W) -> (B, n, N)``."""
    mixture = natural_patches(images.shape[-3])
    return mixture.assign(images.flatten(0, 1)).reshape(*images.shape[:2], -1)


def energy(images: Tensor, components: Tensor | None = None) -> Tensor:
    """Return how unlike natural pictures images are, ``(B, n, C, H, W) -> (B,)``.

    Mean negative log-likelihood of the patches in nats a value, up to a constant that makes it 0
    for the most likely patch.

    Parameters
    ----------
    images : Tensor
        ``(B, n, C, H, W)``, grey or of three colours.
    components : Tensor, optional
        ``(B, n, N)`` component of each patch; that of `assign` if left out.

    Examples
    --------
    >>> import torch
    >>> from fl_sim.observed.patches import energy
    >>> flat, noise = torch.full((1, 1, 3, 8, 8), 0.5), torch.rand(1, 1, 3, 8, 8)
    >>> bool(energy(flat) < energy(noise))
    True
    """
    chosen = assign(images) if components is None else components
    mixture = natural_patches(images.shape[-3])
    each = mixture.energy(images.flatten(0, 1), chosen.flatten(0, 1))
    return each.reshape(images.shape[:2]).mean(dim=1)


@lru_cache
def natural_patches(channels: int) -> PatchMixture:
    """Return the mixture that this module carries, for pictures of 1 or 3 channels.

    Raises
    ------
    ValueError
        If the file is not the one that belongs to this code.
    """
    text = _FILE.read_bytes()
    if hashlib.sha256(text).hexdigest() != _SHA256:
        raise ValueError(f"{_FILE.name} is not the file that belongs to this code")
    mixture = read_mixture(json.loads(text))
    return mixture.grey() if channels == 1 else mixture


def read_mixture(tree: dict[str, object]) -> PatchMixture:
    """Return the mixture that a JSON file describes; float16 numbers, in base 64."""
    side, size = int(str(tree["side"])), _COLOURS * int(str(tree["side"])) ** 2

    def numbers(name: str) -> Tensor:
        data = np.frombuffer(b64decode(str(tree[name])), dtype="<f2")
        return torch.from_numpy(data.astype(np.float64))

    lower, (rows, columns) = numbers("cholesky"), torch.tril_indices(size, size)
    log_weights = numbers("log_weights")
    cholesky = lower.new_zeros(len(log_weights), size, size)
    cholesky[:, rows, columns] = lower.reshape(len(log_weights), -1)
    means = numbers("means").reshape(len(log_weights), size)
    return PatchMixture(log_weights, means, cholesky @ cholesky.mT, side)
