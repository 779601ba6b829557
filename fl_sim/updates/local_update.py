"""What a client computes: one differentiable function, shared by the client and the attacker."""

import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields, replace
from functools import cached_property, lru_cache
from math import cos, isfinite, pi, prod
from typing import Any, NamedTuple, get_args

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import cross_entropy

from fl_sim.choices import MAX_IMAGES, Schedule, UpdateKind
from fl_sim.models import ModelSpec, build_model
from fl_sim.updates.example_gradients import example_gradients, supports

# Pixels, over all images, up to which oneDNN takes longer to prepare a convolution than to compute
# it, and up to which `example_gradients` are faster than ``vmap``; see docs/performance.md.
_FEW_TO_CONVOLVE, _FEW_TO_UNFOLD = 1 << 10, 1 << 13
# Pixels of one batch, and parameters, up to which batches with weights of their own cost no more
# than batches that share them.
_SMALL_BATCH, _SMALL_MODEL = 1 << 8, 1 << 17
_SAME_GRADIENT = 1e-3  # relative distance at which two ways to compute a gradient agree


class Segment(NamedTuple):
    """Name and shape of one tensor inside a flat vector."""

    name: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Layout:
    """How the tensors of a model lie in one flat vector, in the model's own order."""

    segments: tuple[Segment, ...]

    @classmethod
    def of(cls, model: nn.Module) -> "Layout":
        """Return the layout of a model's parameters, less those that are not trained."""
        return cls(
            tuple(
                Segment(n, tuple(p.shape)) for n, p in model.named_parameters() if p.requires_grad
            )
        )

    @cached_property
    def sizes(self) -> tuple[int, ...]:
        """Number of elements of each tensor."""
        return tuple(prod(segment.shape) for segment in self.segments)

    @cached_property
    def size(self) -> int:
        """Number of elements of the flat vector."""
        return sum(self.sizes)

    @cached_property
    def fingerprint(self) -> int:
        """32-bit checksum of names and shapes, to refuse the update of another model."""
        return zlib.crc32(repr(self.segments).encode())

    def split(self, vector: Tensor) -> tuple[Tensor, ...]:
        """View a flat ``(..., size)`` vector as one flat ``(..., n)`` piece per tensor."""
        return torch.split(vector, list(self.sizes), dim=-1)

    def unflatten(self, vector: Tensor) -> dict[str, Tensor]:
        """View a flat ``(..., size)`` vector as named tensors ``(..., *shape)``."""
        pieces = zip(self.segments, self.split(vector), strict=True)
        leading = vector.shape[:-1]
        return {segment.name: piece.view((*leading, *segment.shape)) for segment, piece in pieces}

    def flatten(self, tensors: dict[str, Tensor]) -> Tensor:
        """Concatenate named tensors to one flat ``(size,)`` vector."""
        pieces = [tensors[segment.name].reshape(-1) for segment in self.segments]
        return torch.cat(pieces) if pieces else torch.zeros(0)


@dataclass(frozen=True, eq=False)
class Update:
    """A flat float32 vector ``(layout.size,)`` and the layout of its tensors."""

    vector: Tensor
    layout: Layout

    def __post_init__(self) -> None:
        if self.vector.shape != (self.layout.size,):
            raise ValueError(
                f"An update of {self.layout.size} elements is expected, "
                f"but the vector has shape {tuple(self.vector.shape)}."
            )


@dataclass(frozen=True)
class LocalWork:
    """Public facts of a client's work in one round: what it computes from its private images.

    Attributes
    ----------
    kind : "gradient" or "delta"
        The mean gradient of one batch (FedSGD), or the change of the weights over local SGD
        steps (FedAvg), as *old minus new*, so that both point up the loss.
    batch_size : int
        Images in one batch.
    learning_rate : float
        Step size of local SGD; a ``gradient`` does not use it.
    local_steps : int
        Steps of local SGD; 1 for a ``gradient``.
    local_batches : int
        Distinct batches drawn in a round; the steps cycle through them.
    fixed_batch : bool
        Whether a client uses the same images in every round, as one with few images does.
    momentum, weight_decay : float
        Of local SGD, as in `torch.optim.SGD`; a client starts every round without momentum.
    schedule : "constant", "linear" or "cosine"
        How the step size falls over the local steps of a round, towards 0.
    decay : float
        Factor of the step size from one round to the next.
    shuffled : bool
        Whether a client deals its images to batches anew in every epoch, in an order that nobody
        else knows.
    mean, std : tuple of float
        What is subtracted from the pixels of each channel before the model sees them, and what the
        difference is divided by; one number counts for all channels. Empty: pixels are not changed.

    Examples
    --------
    One epoch over eight images in batches of four, as Flower's quick-start trains:

    >>> from fl_sim import LocalWork
    >>> work = LocalWork("delta", batch_size=4, learning_rate=0.1, local_steps=2, local_batches=2)
    >>> work.images
    8

    Five epochs of a usual recipe, on inputs that are normalised:

    >>> usual = {"momentum": 0.9, "weight_decay": 5e-4, "shuffled": True}
    >>> work = LocalWork("delta", 4, 0.1, 10, 2, mean=(0.5,), std=(0.25,), **usual)
    >>> work.epochs
    5
    """

    kind: UpdateKind = "gradient"
    batch_size: int = 1
    learning_rate: float = 0.1
    local_steps: int = 1
    local_batches: int = 1
    fixed_batch: bool = False
    momentum: float = 0.0
    weight_decay: float = 0.0
    schedule: Schedule = "constant"
    decay: float = 1.0
    shuffled: bool = False
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        for name in ("mean", "std"):  # lists, where they were read from a file
            object.__setattr__(self, name, tuple(getattr(self, name)))
        counts = (self.batch_size, self.local_steps, self.local_batches)
        if not all(type(count) is int and 1 <= count <= MAX_IMAGES for count in counts):
            raise ValueError(
                f"Batch size, steps and batches {counts} must be from 1 to {MAX_IMAGES}."
            )
        if self.images > MAX_IMAGES:
            raise ValueError(f"{self.images} images in one update are more than {MAX_IMAGES}.")
        if self.kind not in get_args(UpdateKind) or not isinstance(self.fixed_batch, bool):
            raise ValueError(f"An update is a gradient or a delta, not {self.kind!r}.")
        if not isinstance(self.learning_rate, float | int) or not isfinite(self.learning_rate):
            raise ValueError(f"A learning rate of {self.learning_rate!r} is not a finite number.")
        self._check_descent()

    def _check_descent(self) -> None:
        if not _number(self.momentum) or not 0 <= self.momentum < 1:
            raise ValueError(f"A momentum of {self.momentum!r} is not from 0 to below 1.")
        if not _number(self.weight_decay) or self.weight_decay < 0:
            raise ValueError(f"A weight decay of {self.weight_decay!r} is not 0 or larger.")
        if not _number(self.decay) or not 0 < self.decay <= 1:
            raise ValueError(f"A decay of {self.decay!r} is not above 0 and at most 1.")
        if self.schedule not in get_args(Schedule) or not isinstance(self.shuffled, bool):
            raise ValueError(f"A schedule is one of {get_args(Schedule)}, not {self.schedule!r}.")
        plain = not (self.momentum or self.weight_decay or self.shuffled)
        plain = plain and (self.schedule, self.decay) == ("constant", 1)
        if self.kind == "gradient" and not plain:
            raise ValueError("A gradient takes no steps: its work has no momentum, decay or order.")
        if not all(map(_number, (*self.mean, *self.std))) or any(one <= 0 for one in self.std):
            raise ValueError(
                f"Means {self.mean} and deviations {self.std} cannot normalise pixels."
            )
        if len(self.mean) != len(self.std):
            raise ValueError(f"Means {self.mean} and deviations {self.std} are not equally many.")

    @property
    def images(self) -> int:
        """Number of private images that enter one update."""
        return self.batch_size * self.local_batches

    @property
    def epochs(self) -> int:
        """Number of passes over the images in a round; the last may be a part of one."""
        return -(-self.local_steps // self.local_batches)

    @property
    def rates(self) -> list[float]:
        """Step size of each local step."""
        shares = [step / self.local_steps for step in range(self.local_steps)]
        if self.schedule == "linear":
            return [self.learning_rate * (1 - share) for share in shares]
        if self.schedule == "cosine":
            return [self.learning_rate * (1 + cos(pi * share)) / 2 for share in shares]
        return [self.learning_rate] * self.local_steps

    @property
    def reach(self) -> float:
        """Update by a gradient of 1 that is the same at every step, without weight decay."""
        if self.kind == "gradient":
            return 1.0
        if not self.momentum and self.schedule == "constant":
            return self.learning_rate * self.local_steps
        velocity = total = 0.0
        for rate in self.rates:
            velocity = self.momentum * velocity + 1
            total += rate * velocity
        return total

    @property
    def facts(self) -> dict[str, Any]:
        """The facts by name, without those that most clients do not depart from."""
        usual = {one.name: one.default for one in fields(self)[_FIRST_FACTS:]}
        return {k: v for k, v in asdict(self).items() if k not in usual or v != usual[k]}

    def in_round(self, server_round: int) -> "LocalWork":
        """Return what a client does in a 1-based round: its step size is that of this round."""
        if self.decay == 1:
            return self
        rate = self.learning_rate * self.decay ** (server_round - 1)
        return replace(self, learning_rate=rate, decay=1.0)

    def rows(self, step: int, order: Tensor | None = None) -> Tensor | slice:
        """Return which images a step uses, given their ``order`` as of `local_update`."""
        epoch, index = divmod(step, self.local_batches)
        rows = slice(index * self.batch_size, (index + 1) * self.batch_size)
        return rows if order is None else order[epoch, rows]

    def inputs(self, images: Tensor) -> Tensor:
        """Return what a model sees of images ``(..., C, H, W)`` in [0, 1]."""
        if not self.mean:
            return images
        return (images - _of_channels(self.mean, images)) / _of_channels(self.std, images)

    def pixels(self, inputs: Tensor) -> Tensor:
        """Return the images of which a model sees ``inputs`` ``(..., C, H, W)``."""
        if not self.mean:
            return inputs
        return inputs * _of_channels(self.std, inputs) + _of_channels(self.mean, inputs)


_FIRST_FACTS = 6  # that every file and message names


def _number(value: object) -> bool:
    return type(value) in (float, int) and isfinite(value)  # type: ignore[arg-type]


def _of_channels(values: Sequence[float], images: Tensor) -> Tensor:
    """Return one value for each channel of images, ``(C, 1, 1)``.

    Raises
    ------
    ValueError
        If there are not as many values as channels.
    """
    if len(values) not in (1, images.shape[-3]):
        raise ValueError(
            f"{len(values)} means and deviations cannot normalise {images.shape[-3]} channels."
        )
    return torch.tensor(values, dtype=images.dtype, device=images.device)[:, None, None]


def all_finite(values: Tensor) -> bool:
    """Tell whether no element is NaN or infinite; a sum that is neither vouches for all."""
    return isfinite(float(values.sum())) or bool(values.isfinite().all())


@lru_cache(maxsize=8)
def layout_of_model(spec: ModelSpec) -> Layout:
    """Return the layout of a model without the memory of its weights."""
    with torch.device("meta"):
        return Layout.of(build_model(spec))


def pixels_of(images: Tensor) -> int:
    """Count the pixels of images ``(..., C, H, W)``, all channels together."""
    return images.numel() // images.shape[-3]


def weights_may_differ(spec: ModelSpec, work: LocalWork) -> bool:
    """Tell whether updates at different weights can be computed together at no more than the cost.

    So they can be of few and small images through a small model; see `FlatModel.gradients`.
    """
    _, height, width = spec.shape
    few = work.kind == "gradient" and work.images * height * width <= _SMALL_BATCH
    return few and flat_model(spec).layer_by_layer and flat_model(spec).layout.size <= _SMALL_MODEL


@contextmanager
def convolutions_for(images: Tensor) -> Iterator[None]:
    """Compute convolutions of these images, backward ones included, in the faster of two ways.

    oneDNN, which PyTorch uses on a CPU, takes 30 us to prepare each.
    """
    one_dnn: Any = torch.backends.mkldnn
    usual = one_dnn.enabled
    one_dnn.enabled = usual and pixels_of(images) > _FEW_TO_CONVOLVE
    try:
        yield
    finally:
        one_dnn.enabled = usual


@contextmanager
def differentiable_kernels() -> Iterator[None]:
    """Compute attention by kernels that can be differentiated twice; the fused ones cannot."""
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


class FlatModel:
    """A model in evaluation mode as a pure function of one flat weight vector.

    Attributes
    ----------
    layer_by_layer : bool
        Whether `example_gradients` knows all layers, and agrees with plain autograd.
    """

    def __init__(self, spec: ModelSpec) -> None:
        self.spec = spec
        self.module = build_model(spec).eval()
        self.layout = Layout.of(self.module)
        trained = {name for name, _ in self.layout.segments}
        fixed = [one for one in self.module.named_parameters() if one[0] not in trained]
        known = not fixed and supports(self.module)
        self._fixed = dict(fixed) | dict(self.module.requires_grad_(False).named_buffers())
        self._eager_module = build_model(spec).eval()
        self._eager_weights = torch.empty(self.layout.size)  # what the parameters are views of
        views = self.layout.unflatten(self._eager_weights)
        own = [(n, p) for n, p in self._eager_module.named_parameters() if p.requires_grad]
        for name, parameter in own:
            parameter.data = views[name]
        self._eager_parameters = [parameter for _, parameter in own]
        self.layer_by_layer = known and self._agrees()

    def logits(self, weights: Tensor, images: Tensor) -> Tensor:
        """Map ``(size,)`` weights and ``(n, C, H, W)`` images to ``(n, classes)`` logits."""
        fixed = {name: value.to(weights.device) for name, value in self._fixed.items()}
        tensors = fixed | self.layout.unflatten(weights)
        with differentiable_kernels():
            return functional_call(self.module, tensors, (images,))  # type: ignore[no-any-return]

    def loss(self, weights: Tensor, images: Tensor, targets: Tensor) -> Tensor:
        """Mean cross-entropy against target probabilities ``(n, classes)``."""
        return cross_entropy(self.logits(weights, images), targets)

    def gradient(self, weights: Tensor, images: Tensor, targets: Tensor) -> Tensor:
        """Return the ``(size,)`` gradient of the loss; differentiable, works under ``vmap``."""
        slope: Callable[..., Tensor] = grad(self.loss)
        return slope(weights, images, targets)

    def eager_gradient(self, weights: Tensor, images: Tensor, targets: Tensor) -> Tensor:
        """Return the same gradient of the same loss by plain autograd: faster, a plain value."""
        self._eager_weights.copy_(weights)
        with convolutions_for(images), differentiable_kernels():
            loss = cross_entropy(self._eager_module(images), targets)
            gradients = torch.autograd.grad(loss, self._eager_parameters, materialize_grads=True)
        return torch.cat([g.reshape(-1) for g in gradients])

    def _agrees(self) -> bool:
        """Tell whether `example_gradients` computes what plain autograd does.

        It does not where a layer is used twice, for instance, or on anything but flat inputs.
        """
        rng = torch.Generator().manual_seed(0)
        classes = self.spec.classes
        images = torch.rand((1, 2, *self.spec.shape), generator=rng)
        targets = torch.rand((1, 2, classes), generator=rng).softmax(dim=-1)
        weights = torch.randn(self.layout.size, generator=rng) / 10
        try:
            fast = example_gradients(self.module, self.layout.unflatten(weights), images, targets)[
                0
            ]
        except (RuntimeError, AssertionError, IndexError):
            return False
        exact = self.eager_gradient(weights, images[0], targets[0])
        return bool((fast - exact).norm() <= _SAME_GRADIENT * exact.norm())

    def gradients(self, weights: Tensor, images: Tensor, targets: Tensor) -> Tensor:
        """Return the gradient of each of b batches ``(b, n, C, H, W)``: ``(b, size)``.

        Weights are ``(size,)``, or ``(b, size)`` if each batch has its own.
        """
        own = weights.dim() > 1
        if self.layer_by_layer and (own or pixels_of(images) <= _FEW_TO_UNFOLD):
            parameters = self.layout.unflatten(weights)
            return example_gradients(self.module, parameters, images, targets)
        each = vmap(self.gradient, in_dims=(0 if own else None, 0, 0))
        gradients: Tensor = each(weights, images, targets)
        return gradients


@lru_cache(maxsize=8)
def flat_model(spec: ModelSpec) -> FlatModel:
    """Return the (cached, stateless) functional form of a model."""
    return FlatModel(spec)


def local_update(
    model: FlatModel,
    work: LocalWork,
    weights: Tensor,
    images: Tensor,
    targets: Tensor,
    *,
    order: Tensor | None = None,
    eager: bool = False,
) -> Tensor:
    """Compute the update a client sends, before quantization.

    The client calls it with its private batch and one-hot targets, the attacker with a candidate.
    It is differentiable in ``images`` and ``targets`` and works under ``torch.func.vmap``.

    Parameters
    ----------
    model : FlatModel
        The model in functional form.
    work : LocalWork
        What the client does, with the step size of this round (`LocalWork.in_round`).
    weights : Tensor
        ``(size,)`` weights the client was given.
    images : Tensor
        ``(work.images, C, H, W)`` pixels in [0, 1]; batch ``b`` is rows
        ``b * batch_size`` to ``(b + 1) * batch_size``.
    targets : Tensor
        ``(work.images, classes)`` target probabilities.
    order : Tensor, optional
        ``(work.epochs, work.images)`` int64: the order in which each epoch uses the images, which
        only the client knows. Without it, every epoch uses the same batches.
    eager : bool
        Take gradients by plain autograd: faster, for a client that needs no more than the value.

    Returns
    -------
    Tensor
        ``(size,)`` gradient, or old weights minus new weights.
    """
    gradient = model.eager_gradient if eager else model.gradient
    images = work.inputs(images)
    if work.kind == "gradient":
        return gradient(weights, images, targets)
    moved, velocity = weights, None
    for step, rate in enumerate(work.rates):
        rows = work.rows(step, order)
        slope = gradient(moved, images[rows], targets[rows])
        # As torch.optim.SGD computes it, to the bit.
        if work.weight_decay:
            slope = torch.add(slope, moved, alpha=work.weight_decay)
        if work.momentum:
            velocity = slope if velocity is None else velocity * work.momentum + slope
            slope = velocity
        moved = torch.add(moved, slope, alpha=-rate)
    return weights - moved


def draw_orders(work: LocalWork, generator: torch.Generator) -> Tensor | None:
    """Draw the order of the images in each epoch, as of `local_update`; None if it stays."""
    if not work.shuffled:
        return None
    drawn = [torch.randperm(work.images, generator=generator) for _ in range(work.epochs)]
    return torch.stack(drawn)


def one_hot(labels: Tensor, classes: int) -> Tensor:
    """Return float32 one-hot targets ``(n, classes)`` of integer labels ``(n,)``."""
    return torch.nn.functional.one_hot(labels.long(), classes).float()
