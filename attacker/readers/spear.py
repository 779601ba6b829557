"""Images of a batch read from a fully connected layer before a ReLU, exactly where nothing rounds.

SPEAR (Dimitrov et al. 2024, arXiv 2403.03945). The gradient of the layer's weight and bias is
``G = D [X, 1]``: slopes ``D`` (units x images) times the images and a one. Its singular vectors
span the columns of ``D``, and these are sparse, since a ReLU passes no slope where it is off. The
published attack finds them by samples alone. Here independent component analysis makes the first
guess (`attacker.readers.cocktail_party`), from which slopes and images are fitted in turns; where
that does not explain the gradient, a short descent towards sparse directions continues from each
sample, as large batches need fewer samples then.
"""

import math
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from attacker.matching.problems import Problems
from attacker.readers.cocktail_party import unmixing
from attacker.readers.low_rank import completed, mixtures_of, truncated, units_of
from attacker.readers.order import expected_slopes, in_order_of_labels
from fl_sim.observed.observations import Observation
from fl_sim.seeding import Purpose, torch_rng
from fl_sim.updates.layers import find_relu_input

_MOST_IMAGES = 64
_UNITS = 4  # least units for each image
_ROUNDS, _ROUNDS_IN_NOISE = 64, 8  # most rounds of starts, without and with a quantizer's noise
_CHEAP = 16  # images up to which that many rounds are made; of more, as many as cost the same
_KERNELS = 2048  # samples of units of a round
_STARTS = 256  # of them that are descended from, those with the smallest slopes
_DESCENT = 48  # steps towards zeros
_SMOOTH = 0.05  # slopes that hardly count as zero at first; at last the noise is
_NEAR = 0.005  # the same, of directions that are nearly right
_POWER = 0.5  # of the slopes, in the sum that a descent lowers
_ZERO = 4.0  # standard deviations within which a slope counts as zero
_QUIET = 2.0  # standard deviations, in root mean square, up to which a unit's row is zero
_CONCENTRATIONS = 2  # times that a direction is fitted to what are zeros along it
_INDEPENDENT = 0.02  # least part of a unit direction that the others do not span
_ALTERNATIONS = 12  # of slopes and images
_LIMITS = (-1.0, 2.0)  # of pixels, while they are fitted
_EXPLAINED = 1.2  # of what any matrix of this rank leaves unexplained
_ROUNDING = 1e-6  # of a float32 gradient, relative to its norm
_SINGULAR = 1e-6  # least singular value, relative to the largest


def has_sparse_slopes(observation: Observation) -> bool:
    """Tell whether one step was taken on a batch that `invert_sparse_slopes` can tell apart."""
    units = units_of(observation, find_relu_input(observation.model))
    return observation.work.images <= min(_MOST_IMAGES, units // _UNITS)


def invert_sparse_slopes(problems: Problems, seed: int) -> Tensor:
    """Read the images of batches from the gradient of a first layer that a ReLU follows.

    Returns
    -------
    Tensor
        ``(B, n, C, H, W)`` in [0, 1], in the order of `recover_labels`; exact to the last digits of
        an unquantized float32 update where enough units are off. Images that are not found are
        grey.
    """
    layer = find_relu_input(problems.model)
    assert layer is not None
    gradient, shown = mixtures_of(problems, layer)
    tensors = problems.flat_model.layout.unflatten(problems.weights)
    planes = torch.cat(
        [tensors[str(layer.weight)], tensors[str(layer.bias)][:, None]], dim=1
    ).double()
    count = problems.work.images
    pixels = _Pixels.of(problems)
    images, slopes = [], []
    for key, one in zip(problems.keys, gradient, strict=True):
        generator = torch_rng(seed, Purpose.ATTACK, *key, 0, 2)
        whole = completed(one, shown, count, generator)
        found = _untangle(whole, planes, pixels, count, generator)
        images.append(found.images[:, :-1])
        slopes.append(found.slopes)
    seen = torch.stack(images).to(problems.weights.dtype).reshape(-1, *problems.image_shape)
    read = problems.work.pixels(seen).clamp(0, 1)
    expected = expected_slopes(problems, problems.work.inputs(read), layer).double()
    own = count * torch.stack(slopes).mT[:, :, None]
    return in_order_of_labels(problems, read, (expected - own).square().sum(dim=3))


def _solve(gram: Tensor, right: Tensor) -> Tensor:
    """Solve symmetric equations ``(K, r, r)``, with a little ridge."""
    ridge = 1e-13 * gram.diagonal(dim1=-2, dim2=-1).sum(-1)[..., None, None].clamp_min(1e-300)
    eye = torch.eye(gram.shape[-1], dtype=gram.dtype)
    solution: Tensor = torch.linalg.solve(gram + ridge * eye, right[..., None])[..., 0]
    return solution


@dataclass(frozen=True, eq=False)
class _Pixels:
    """Limits, and grey, of what a layer sees of each pixel and of a one, each ``(p + 1,)``.

    ``shape`` is that of an image.
    """

    low: Tensor
    high: Tensor
    grey: Tensor
    shape: tuple[int, ...]

    @classmethod
    def of(cls, problems: Problems) -> "_Pixels":
        """Return those of a model that may see normalised pixels."""

        def seen(value: float) -> Tensor:
            image = torch.full(problems.image_shape[1:], value, dtype=torch.float64)
            return torch.cat([problems.work.inputs(image).flatten(), torch.ones(1)])

        low, high, grey = map(seen, (*_LIMITS, 0.5))
        return cls(low, high, grey, problems.image_shape[1:])

    def within(self, images: Tensor) -> Tensor:
        """Return images ``(n, p + 1)`` within the limits, grey where they are no numbers."""
        known = torch.where(images.isfinite(), images, self.grey)
        return torch.minimum(torch.maximum(known, self.low), self.high)


@dataclass(frozen=True, eq=False)
class _Found:
    """Images with a one ``(n, p + 1)``, their slopes ``(K, n)``, and what they do not explain."""

    images: Tensor
    slopes: Tensor
    rest: float


def _untangle(
    gradient: Tensor, planes: Tensor, pixels: _Pixels, count: int, generator: torch.Generator
) -> _Found:
    """Return the images behind one gradient ``(K, p + 1)`` of a layer with weights ``planes``."""
    left, values, right = truncated(gradient, count, generator)
    rank = max(1, int((values > _SINGULAR * values[0]).sum()))
    rest = float((gradient - left * values @ right).norm())
    least = _ROUNDING * float(values[0])
    noise = max(rest, least) / gradient.numel() ** 0.5
    quiet = gradient.square().mean(dim=1).sqrt() <= _QUIET * noise
    # A quantizer may decode all zeros to one small value, and so a whole row of them.
    left = left.masked_fill(quiet[:, None], 0.0)
    basis = _Basis(left[:, :rank], noise / values[:rank])
    signal = values[:rank, None] * right[:rank]
    best = _Found(
        pixels.grey.expand(count, -1), gradient.new_zeros(len(planes), count), float("inf")
    )
    if len(basis.loud) < rank:
        return best

    def nearer(sources: Tensor) -> _Found:
        """Return the fit from images at any scale, or the best so far if it explains more."""
        images = pixels.within(sources / sources[:, -1:])
        found = _padded(_fitted(gradient, images, planes, pixels), pixels.grey, count)
        return min(best, found, key=lambda one: one.rest)

    unmixes = unmixing(right[:rank], pixels.shape, generator)
    best = nearer(unmixes @ right[:rank])
    mixed = values[:rank, None] * torch.linalg.pinv(unmixes)  # columns: slopes of each source
    near = basis.descended((mixed / mixed.norm(dim=0)).T, signal[:0, :rank], _NEAR)
    pool = basis.independent(basis.concentrated(near))
    if len(pool) == rank:
        best = nearer(torch.linalg.solve(pool.T, signal))
    for _ in range(_rounds(count, rest <= least)):
        if best.rest <= _EXPLAINED * rest + least:
            break
        kernels = basis.kernels(generator)
        known = pool[: int(torch.randint(rank, (), generator=generator))]
        fresh = torch.cat([kernels, basis.descended(kernels[:_STARTS], known)])
        pool = basis.independent(torch.cat([pool, basis.concentrated(basis.independent(fresh))]))
        if len(pool) == rank:
            best = nearer(torch.linalg.solve(pool.T, signal))
    return best


def _rounds(count: int, exact: bool) -> int:
    """Return the most rounds of starts, each of which costs the square of ``count`` images."""
    rounds = _ROUNDS if exact else _ROUNDS_IN_NOISE
    return math.ceil(rounds * min(1.0, (_CHEAP / count) ** 2))


def _padded(found: _Found, grey: Tensor, count: int) -> _Found:
    """Return it with grey images for those that leave no slope, ``count`` in all."""
    missing = count - len(found.images)
    images = torch.cat([found.images, grey.expand(missing, -1)])
    slopes = torch.cat([found.slopes, found.slopes.new_zeros(len(found.slopes), missing)], dim=1)
    return _Found(images, slopes, found.rest)


def _fitted(gradient: Tensor, images: Tensor, planes: Tensor, pixels: _Pixels) -> _Found:
    """Fit slopes, zero where an image turns a unit off, and images to a gradient, in turns."""
    best = None
    for _ in range(_ALTERNATIONS):
        on = (images @ planes.T > 0).T.to(images)  # (K, n)
        gram = on[:, :, None] * on[:, None, :] * (images @ images.T)
        gram = gram + torch.diag_embed(1 - on)
        slopes = _solve(gram, on * (gradient @ images.T))
        rest = float((gradient - slopes @ images).norm())
        if best is not None and rest >= best.rest:
            break
        best = _Found(images, slopes, rest)
        inputs = torch.linalg.lstsq(slopes, gradient[:, :-1]).solution
        images = pixels.within(torch.cat([inputs, torch.ones_like(inputs[:, :1])], dim=1))
    assert best is not None
    return best


@dataclass(frozen=True, eq=False)
class _Basis:
    """An orthonormal basis ``(K, r)`` of the slopes, and the noise ``(r,)`` of its elements."""

    left: Tensor
    noise: Tensor

    @property
    def rank(self) -> int:
        return self.left.shape[1]

    @cached_property
    def loud(self) -> Tensor:
        """The rows ``(k, r)`` of the units that some image turns on."""
        return self.left[self.left.norm(dim=1) > _ZERO * self.noise.norm()]

    def kernels(self, generator: torch.Generator) -> Tensor:
        """Draw unit vectors ``(S, r)`` along which r - 1 random units have no slope.

        In the order of the sum of all slopes along them, the smallest first.
        """
        draws = torch.rand(_KERNELS, len(self.loud), generator=generator)
        rows = self.loud[draws.topk(min(self.rank - 1, len(self.loud)), dim=1).indices]
        last = torch.randn(_KERNELS, 1, self.rank, generator=generator, dtype=rows.dtype)
        kernels: Tensor = torch.linalg.qr(torch.cat([rows, last], dim=1).mT).Q[:, :, -1]
        size = (self.loud @ kernels.T).abs().sum(dim=0)
        return kernels[size.argsort(stable=True)]

    def descended(self, directions: Tensor, found: Tensor, first: float = _SMOOTH) -> Tensor:
        """Lower the sum of the square roots of the slopes along unit vectors ``(S, r)``.

        By least squares with weights made anew from each step's slopes, more sharply every time,
        with the part that ``found`` ``(f, r)`` does not span held constant.
        """
        along = torch.linalg.qr(found.T).Q
        away = torch.eye(self.rank, dtype=found.dtype) - along @ along.T
        outer = (self.loud[:, :, None] * self.loud[:, None, :]).flatten(1)
        for step in range(_DESCENT):
            deviation = (self.noise * directions).norm(dim=1)
            smooth = first * (deviation / first).clamp_max(1) ** (step / (_DESCENT - 1))
            squares = (self.loud @ directions.T).square() + smooth.square()
            gram = (squares.pow(_POWER / 2 - 1).T @ outer).reshape(-1, self.rank, self.rank)
            moved = _solve(gram, directions @ away)
            directions = moved / moved.norm(dim=1, keepdim=True)
        return directions

    def zeros(self, directions: Tensor) -> Tensor:
        """Tell which units have no slope along directions ``(S, r)``: ``(K, S)`` bool."""
        deviation = (self.noise * directions).norm(dim=1)
        small: Tensor = (self.left @ directions.T).abs() <= _ZERO * deviation
        return small

    def independent(self, directions: Tensor) -> Tensor:
        """Return at most r independent directions, those with most zeros first."""
        count = self.zeros(directions).sum(dim=0).double()
        rest, chosen = directions.clone(), []
        for _ in range(min(self.rank, len(directions))):
            lengths = rest.norm(dim=1)
            count = count.masked_fill(lengths < _INDEPENDENT, -1)
            best = int(count.argmax())
            if count[best] < 0:
                break
            chosen.append(best)
            along = rest[best] / lengths[best]
            rest = rest - torch.outer(rest @ along, along)
        return directions[chosen]

    def concentrated(self, directions: Tensor) -> Tensor:
        """Fit each direction to all units that have no slope along it."""
        for _ in range(_CONCENTRATIONS):
            off = self.zeros(directions).to(self.left).T
            gram = torch.einsum("sk,kr,kt->srt", off, self.left, self.left)
            directions = torch.linalg.eigh(gram).eigenvectors[:, :, 0]
        return directions
