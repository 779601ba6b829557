"""Images recovered from the activations of a ReLU layer, as signals that are sparse in cosines."""

from dataclasses import dataclass
from math import pi, sqrt

import torch
from torch import Tensor
from torch.func import vjp

from fl_sim.plans.chain import answers

_STEPS = 300  # of FISTA
_FALL = 0.95  # of the weight of the prior, from step to step
_WEIGHT = 2.0  # of the prior, in standard deviations of a coefficient's noise
_POWERS = 50  # iterations that find the largest singular value
_SAFE = 1.05  # by which its square may be missed
_OFF = 1e-5  # relative to the largest activation; less is rounding error


@dataclass(frozen=True, eq=False)
class Layer:
    """The answers ``A x + b`` of a layer to an image x.

    Attributes
    ----------
    kernel, bias : Tensor
        As of `fl_sim.plans.chain.answers`.
    shape : tuple of int
        ``(C, H, W)`` of an image.
    """

    kernel: Tensor
    bias: Tensor
    shape: tuple[int, int, int]

    def __call__(self, images: Tensor) -> Tensor:
        """Return the answers ``(n, features)`` to images ``(n, C, H, W)``."""
        return answers(self.kernel, self.bias, images)

    def transpose(self, values: Tensor) -> Tensor:
        """Return ``A^T values``, ``(n, C, H, W)``."""
        images: Tensor = vjp(self, torch.zeros(len(values), *self.shape))[1](values)[0]
        return images

    def curvature(self) -> float:
        """Return the square of the largest singular value of A, or a little more."""
        generator = torch.Generator().manual_seed(0)
        vector = torch.rand(1, *self.shape, generator=generator)
        black = self(torch.zeros_like(vector))
        for _ in range(_POWERS):
            vector = self.transpose(self(vector / vector.norm()) - black)
        return _SAFE * float(vector.norm())


def sparse_recovery(layer: Layer, activations: Tensor, precision: Tensor) -> Tensor:
    """Recover images from activations y of a ReLU layer by the generalised Lasso.

    It minimises ``|A x + b - y|^2 / 2 + weight |D x|_1``. D is the discrete cosine transform over
    channels, rows and columns without its mean. Squares are weighted by precision; where an
    activation is zero, only answers above zero count. FISTA (Beck and Teboulle 2009, SIAM J.
    Imaging Sci. 2) solves it, with a weight that falls until it is the noise of a coefficient.

    Parameters
    ----------
    layer : Layer
        The layer.
    activations : Tensor
        ``(n, features)``.
    precision : Tensor
        ``(n, features)`` one over the variance of their errors; 0 where nothing is known.

    Returns
    -------
    Tensor
        ``(n, C, H, W)`` float32, not bound to [0, 1].
    """
    best = precision.amax(dim=1, keepdim=True).clamp_min(torch.finfo(precision.dtype).tiny)
    known, wanted = (precision / best).float(), activations.float()
    off = wanted <= _OFF * wanted.abs().amax(dim=1, keepdim=True)
    curvature = layer.curvature()
    last = (_WEIGHT * best.rsqrt().float() * curvature**0.5)[:, :, None, None]

    def slope(images: Tensor) -> Tensor:
        miss = layer(images) - wanted
        return layer.transpose(known * torch.where(off, miss.relu(), miss))

    images = look = torch.full((len(wanted), *layer.shape), 0.5)
    first = slope(images).flatten(1).norm(dim=1)[:, None, None, None]
    momentum = 1.0
    for step in range(_STEPS):
        weight = torch.maximum(last, first * _FALL**step) / curvature
        moved = _shrunk(look - slope(look) / curvature, weight)
        following = (1 + (1 + 4 * momentum**2) ** 0.5) / 2
        look = moved + (momentum - 1) / following * (moved - images)
        images, momentum = moved, following
    return images


def _shrunk(images: Tensor, weight: Tensor) -> Tensor:
    """Return images with their cosine coefficients moved to zero by a weight, but for the mean."""
    bases = [_cosines(size) for size in images.shape[1:]]
    coefficients = torch.einsum("nchw,ac,bh,dw->nabd", images, *bases)
    limit = weight.expand_as(coefficients).clone()
    limit[:, 0, 0, 0] = 0
    kept = coefficients - coefficients.clamp(-limit, limit)
    moved: Tensor = torch.einsum("nabd,ac,bh,dw->nchw", kept, *bases)
    return moved


def _cosines(size: int) -> Tensor:
    """Return the orthonormal discrete cosine transform (DCT-II), ``(size, size)``."""
    place = torch.arange(size, dtype=torch.float64)
    basis = (pi / size * place[:, None] * (place + 0.5)).cos() * sqrt(2 / size)
    basis[0] /= sqrt(2)
    return basis.float()
