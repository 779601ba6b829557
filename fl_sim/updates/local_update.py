"""What a client computes: one differentiable function, shared by the client and the attacker."""

import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, lru_cache, partial
from math import isfinite, prod
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import cross_entropy

from fl_sim.models import ModelSpec, build_model
from fl_sim.updates.batch_norm import (
    MEAN,
    VARIANCE,
    FunctionalBatchNorm,
    tracked_layers,
    trained_as_built,
)
from fl_sim.updates.example_gradients import example_gradients, supports
from fl_sim.updates.local_work import LocalWork as LocalWork  # noqa: PLC0414 - a part of this

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


@lru_cache(maxsize=8)
def statistics_of_model(spec: ModelSpec) -> Layout:
    """Return the layout of the running statistics that training changes; usually empty."""
    with torch.device("meta"):
        return _statistics_of(build_model(spec))


def _statistics_of(module: nn.Module) -> Layout:
    """Return the layout of mean and variance of each BatchNorm layer in training mode."""
    layers = tracked_layers(module)
    if odd := [name for name, layer in layers.items() if layer.momentum is None]:
        raise ValueError(f"BatchNorm layer {odd[0]!r} has momentum=None; a number is needed")
    return Layout(
        tuple(
            Segment(f"{name}.{kind}", (layer.num_features,))
            for name, layer in layers.items()
            for kind in (MEAN, VARIANCE)
        )
    )


class FlatModel:
    """A model as clients train it, as a pure function of one flat weight vector.

    BatchNorm layers are in training mode, if they were built so: they normalise by the batch. All
    else is in evaluation mode.

    Attributes
    ----------
    statistics : Layout
        Of the running statistics of BatchNorm layers in training mode: of each its mean, then its
        variance. Empty without such layers.
    initial_statistics : Tensor
        ``(statistics.size,)``, as the model was built.
    layer_by_layer : bool
        Whether `example_gradients` knows all layers, and agrees with plain autograd.
    """

    def __init__(self, spec: ModelSpec) -> None:
        self.spec = spec
        self.module = trained_as_built(build_model(spec))
        self.layout = Layout.of(self.module)
        self.statistics = _statistics_of(self.module)
        buffers = dict(self.module.named_buffers())
        self.initial_statistics = self.statistics.flatten(
            {name: buffers[name].clone() for name, _ in self.statistics.segments}
        )
        self._pace = torch.cat(  # at which running statistics move
            [torch.zeros(0)]
            + [
                torch.full((2 * layer.num_features,), float(layer.momentum or 0))
                for layer in tracked_layers(self.module).values()
            ]
        )
        self._norms = FunctionalBatchNorm(self.module)
        trained = {name for name, _ in self.layout.segments}
        fixed = [one for one in self.module.named_parameters() if one[0] not in trained]
        known = not fixed and supports(self.module)
        self._fixed = dict(fixed) | dict(self.module.requires_grad_(False).named_buffers())
        self._eager_module = trained_as_built(build_model(spec))
        self._eager_weights = torch.empty(self.layout.size)  # what the parameters are views of
        views = self.layout.unflatten(self._eager_weights)
        own = [(n, p) for n, p in self._eager_module.named_parameters() if p.requires_grad]
        for name, parameter in own:
            parameter.data = views[name]
        self._eager_parameters = [parameter for _, parameter in own]
        self.layer_by_layer = known and self._agrees()

    def logits(self, weights: Tensor, images: Tensor, statistics: Tensor | None = None) -> Tensor:
        """Map ``(size,)`` weights and ``(n, C, H, W)`` images to ``(n, classes)`` logits.

        BatchNorm layers normalise by ``statistics`` ``(statistics.size,)``, as in evaluation mode;
        without them by the batch.
        """
        fixed = {name: value.to(weights.device) for name, value in self._fixed.items()}
        tensors = fixed | self.layout.unflatten(weights)
        known = None if statistics is None else self.statistics.unflatten(statistics)
        self._norms.forget()
        with differentiable_kernels(), self._norms.fixed(known):
            return functional_call(self.module, tensors, (images,))  # type: ignore[no-any-return]

    def batch_statistics(self, weights: Tensor, images: Tensor) -> Tensor:
        """Return mean and unbiased variance of what reaches each layer, ``(statistics.size,)``."""
        self.logits(weights, images)
        return self._seen(images)

    def _seen(self, images: Tensor) -> Tensor:
        return torch.cat([images.new_zeros(0), *self._norms.seen()])

    def moved(self, statistics: Tensor, batches: Sequence[Tensor]) -> Tensor:
        """Return the running statistics after batches with `batch_statistics` of their own."""
        pace = self._pace.to(statistics.device)
        for batch in batches:
            statistics = statistics * (1 - pace) + batch * pace
        return statistics

    def shown_statistics(self, sent: Tensor, change: Tensor, steps: int) -> Tensor:
        """Return what a change of the running statistics, *old minus new*, tells of the batches.

        Their mean over the steps, in which later steps weigh more. A variance is at least 0.

        Parameters
        ----------
        sent, change : Tensor
            ``(..., statistics.size)``.
        steps : int
            Batches that moved them.
        """
        share = 1 - (1 - self._pace.to(sent.device)) ** steps
        return self.usable_statistics(sent - change / share)

    def usable_statistics(self, statistics: Tensor) -> Tensor:
        """Return statistics ``(..., size)`` with no variance below 0, where noise put it."""
        pieces = zip(self.statistics.segments, self.statistics.split(statistics), strict=True)
        clamped = [p.clamp_min(0) if one.name.endswith(VARIANCE) else p for one, p in pieces]
        return torch.cat(clamped, dim=-1) if clamped else statistics

    def loss(
        self, weights: Tensor, images: Tensor, targets: Tensor, statistics: Tensor | None = None
    ) -> Tensor:
        """Mean cross-entropy against target probabilities ``(n, classes)``; see `logits`."""
        return cross_entropy(self.logits(weights, images, statistics), targets)

    def gradient(
        self, weights: Tensor, images: Tensor, targets: Tensor, statistics: Tensor | None = None
    ) -> Tensor:
        """Return the ``(size,)`` gradient of the loss; differentiable, works under ``vmap``."""
        slope: Callable[..., Tensor] = grad(self.loss)
        return slope(weights, images, targets, statistics)

    def gradient_and_statistics(
        self, weights: Tensor, images: Tensor, targets: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return `gradient` and `batch_statistics`, both differentiable, under ``vmap`` too."""
        if not self.statistics.size:
            return self.gradient(weights, images, targets), images.new_zeros(0)

        def loss(weights: Tensor) -> tuple[Tensor, Tensor]:
            value = self.loss(weights, images, targets)
            return value, self._seen(images)

        both: Callable[..., tuple[Tensor, Tensor]] = grad(loss, has_aux=True)
        return both(weights)

    @property
    def eager_statistics(self) -> Tensor:
        """The running statistics that `eager_gradient` moves, ``(statistics.size,)``."""
        buffers = dict(self._eager_module.named_buffers())
        return self.statistics.flatten(
            {name: buffers[name].clone() for name, _ in self.statistics.segments}
        )

    @eager_statistics.setter
    def eager_statistics(self, statistics: Tensor) -> None:
        buffers = dict(self._eager_module.named_buffers())
        for name, value in self.statistics.unflatten(statistics).items():
            buffers[name].copy_(value)

    def eager_gradient(self, weights: Tensor, images: Tensor, targets: Tensor) -> Tensor:
        """Return the same gradient of the same loss by plain autograd: faster, a plain value.

        It moves `eager_statistics` as training does.
        """
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
    if work.example_clip:
        gradient = partial(_clipped_gradient, model, work.example_clip)
    return _descend(gradient, work, weights, images, targets, order)


def _clipped_gradient(
    model: FlatModel, norm: float, weights: Tensor, images: Tensor, targets: Tensor
) -> Tensor:
    """Return the mean of the gradients of single images, clipped to a norm (Abadi et al. 2016)."""
    each = vmap(model.gradient, in_dims=(None, 0, 0))(weights, images[:, None], targets[:, None])
    return clipped(each, norm).mean(dim=0)


def clipped(gradients: Tensor, norm: float) -> Tensor:
    """Scale gradients ``(..., size)`` to an L2 norm of at most ``norm`` each."""
    length: Tensor = torch.linalg.vector_norm(gradients, dim=-1, keepdim=True)
    return gradients * (norm / length.clamp_min(norm))


def _descend(
    gradient: Callable[[Tensor, Tensor, Tensor], Tensor],
    work: LocalWork,
    weights: Tensor,
    images: Tensor,
    targets: Tensor,
    order: Tensor | None,
) -> Tensor:
    """Compute the update of `local_update` by a way to compute gradients."""
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


class LocalReply(NamedTuple):
    """What a client sends of a round, before quantization.

    Attributes
    ----------
    update : Tensor
        ``(size,)``, see `local_update`.
    statistics : Tensor
        ``(statistics.size,)`` running statistics of BatchNorm layers, *old minus new*; usually
        empty.
    """

    update: Tensor
    statistics: Tensor


def local_reply(
    model: FlatModel,
    work: LocalWork,
    weights: Tensor,
    statistics: Tensor,
    images: Tensor,
    targets: Tensor,
    *,
    order: Tensor | None = None,
    eager: bool = False,
) -> LocalReply:
    """Compute all that a client sends of a round.

    Parameters
    ----------
    statistics : Tensor
        ``(model.statistics.size,)`` running statistics that the client was given.
    model, work, weights, images, targets, order, eager
        As of `local_update`.
    """
    if work.example_clip:
        if model.statistics.size:
            raise ValueError("example_clip: with BatchNorm no gradient is of one image alone")
        update = local_update(model, work, weights, images, targets, order=order, eager=eager)
        return LocalReply(update, statistics)
    if eager:
        model.eager_statistics = statistics
        update = local_update(model, work, weights, images, targets, order=order, eager=True)
        return LocalReply(update, statistics - model.eager_statistics)
    seen: list[Tensor] = []

    def gradient(weights: Tensor, images: Tensor, targets: Tensor) -> Tensor:
        slope, batch = model.gradient_and_statistics(weights, images, targets)
        seen.append(batch)
        return slope

    update = _descend(gradient, work, weights, images, targets, order)
    return LocalReply(update, statistics - model.moved(statistics, seen))


def one_hot(labels: Tensor, classes: int) -> Tensor:
    """Return float32 one-hot targets ``(n, classes)`` of integer labels ``(n,)``."""
    return torch.nn.functional.one_hot(labels.long(), classes).float()
