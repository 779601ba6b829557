"""The least error that any attacker can have against Gaussian noise: Bayesian Cramer-Rao."""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torch.func import jvp, vmap

from fl_sim.coding.cell import Transform
from fl_sim.updates.local_update import FlatModel, LocalWork, differentiable_kernels, local_update

_CHUNK = 64  # pixels by which an update is differentiated at a time


def fisher_information(
    model: FlatModel,
    work: LocalWork,
    weights: Tensor,
    images: Tensor,
    targets: Tensor,
    sigma: float,
    transform: Transform | None = None,
) -> Tensor:
    """Return what an update plus Gaussian noise tells of the image it is computed from.

    E[J^T J] / sigma^2, with J the derivative of the update by the pixels, over images such as the
    private one (van Trees 1968; for gradients Guo et al. 2022, arXiv 2201.12383).

    Parameters
    ----------
    model, work, weights
        As of `local_update`; one image a client.
    images : Tensor
        ``(m, C, H, W)``.
    targets : Tensor
        ``(m, classes)``.
    sigma : float
        Standard deviation of the noise of one element.
    transform : Transform, optional
        What is done to the update before the noise: clipping.

    Returns
    -------
    Tensor
        ``(n, n)`` float64, n pixels of all channels.
    """

    def sent(pixels: Tensor, target: Tensor) -> Tensor:
        image = pixels.view(1, *images.shape[1:])
        update = local_update(model, work, weights, image, target[None])
        return update if transform is None else transform(update)

    total = weights.new_zeros(images[0].numel(), images[0].numel(), dtype=torch.float64)
    with differentiable_kernels():
        for pixels, target in zip(images.flatten(1), targets, strict=True):
            slopes = slopes_of(partial(sent, target=target), pixels)
            total += slopes @ slopes.T
    return total / len(images) / sigma**2


def slopes_of(function: Callable[[Tensor], Tensor], at: Tensor) -> Tensor:
    """Return the derivative of a function ``(n,) -> (d,)`` by each of its inputs, ``(n, d)``."""

    def along(direction: Tensor) -> Tensor:
        slope: Tensor = jvp(function, (at,), (direction,))[1]
        return slope

    slopes: Tensor = vmap(along, chunk_size=_CHUNK)(torch.eye(len(at)))
    return slopes.double()


def least_mse(information: Tensor, covariance: Tensor) -> float:
    """Return the van Trees bound on the mean squared error of a pixel.

    tr (I + S^-1)^-1 / n. No estimate has a lower mean squared error on images drawn from a Gaussian
    of covariance S, whatever its mean. Real images are not Gaussian: who knows more of them than
    mean and covariance may do better.

    Parameters
    ----------
    information : Tensor
        ``(n, n)``, as of `fisher_information`; of several payloads of the same image the sum.
    covariance : Tensor
        ``(n, n)`` of the images; it may be singular.
    """
    values, vectors = torch.linalg.eigh(covariance.double())
    root = vectors * values.clamp_min(0).sqrt()
    size = len(root)
    inner = torch.eye(size, dtype=torch.float64) + root.T @ information @ root
    return float(torch.linalg.solve(inner, root.T).mul(root.T).sum()) / size


def covariance_within_classes(images: Tensor, labels: Tensor) -> Tensor:
    """Return the covariance of images around the mean of their class, ``(n, n)`` float64.

    Attackers know labels, so the spread between classes is no uncertainty to them.

    Parameters
    ----------
    images : Tensor
        ``(m, C, H, W)``.
    labels : Tensor
        ``(m,)``.
    """
    pixels = images.flatten(1).double()
    classes = [pixels[labels == one] for one in sorted(set(labels.tolist()))]
    centred = torch.cat([own - own.mean(dim=0) for own in classes])
    freedom = max(1, len(centred) - len(classes))
    return centred.T @ centred / freedom
