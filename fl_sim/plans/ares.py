"""The plan of a malicious server that reads images from the activations of an ordinary layer."""

from dataclasses import dataclass, replace
from math import sqrt
from typing import ClassVar, Literal

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from fl_sim.models import ModelSpec
from fl_sim.plans.chain import Chain, answers, find_chain
from fl_sim.plans.imprint import quantiles
from fl_sim.plans.plan import ServerPlan
from fl_sim.plans.trace import trace_of
from fl_sim.registry import register
from fl_sim.seeding import Purpose, torch_rng
from fl_sim.specs import within
from fl_sim.updates.local_update import flat_model

_MOST_PUBLIC = 4000
_CHUNK = 50  # public images whose features are held at once
_QUIET = 1e-3  # of the logits: they hardly depend on the image
_KEPT = 0.9  # of what pruning keeps, for the gradient of the second layer


@register("server", "ares")
@dataclass(frozen=True)
class Ares(ServerPlan):
    """Lets the first layer measure images, and plants an imprint in the second one.

    Nothing is added to the model. The activations of the first layer are measurements of an image.
    All units of the second layer measure their mean, with quantiles over public images as biases,
    so that the difference of two neighbouring units' gradients is the activations of the images
    in between. The reader solves a sparse recovery for each image ("ARES", Gong et al. 2026, arXiv
    2603.17623; the imprint: Fowl et al. 2022, arXiv 2110.13057).

    It needs a chain convolution - ReLU - linear - ReLU - linear, such as ``cnn``, or one with a
    linear layer first, such as ``mlp:activation=relu``.

    Differs from the published form: rows are not random, but principal components of public images,
    rotated at random so that all units see equally much (``rows=random`` draws them); biases keep
    most units positive (``margin=0`` lets half of them be zero); units of the second layer have
    error signals of different sizes, so that rounding errors of units that see the same
    images differ, and average out.

    Attributes
    ----------
    rows : "components" or "random"
        Of the first layer.
    margin : float
        Bias of the first layer's units: by how many standard deviations the mean of public images
        is positive.
    share : float
        Of the second layer's units that are used; the others are off.
    """

    threat: ClassVar[str] = "malicious: plants an imprint in the second layer"
    reader: ClassVar[str] = "active_ares"

    rows: Literal["components", "random"] = "components"
    margin: float = 2.5
    share: float = 1.0

    def __post_init__(self) -> None:
        within("margin", self.margin, 0.0, 100.0)
        within("share", self.share, 0.001, 1.0)

    def for_quantizer(self, quantizer: str) -> "Ares":
        """Return the plan with as few units as pruning keeps, if ``share`` is not set."""
        dropped = trace_of(quantizer).dropped
        if dropped <= 0.5 or self.share != type(self).share:
            return self
        return replace(self, share=max(0.001, round(_KEPT * (1 - dropped), 3)))

    def check(self, model: ModelSpec) -> None:
        """Raise `ValueError` if the model is another chain of layers."""
        chain_of(model)

    def weights(self, model: ModelSpec, weights: Tensor, public: Tensor) -> Tensor:
        """Return the planted weights, which do not depend on the trained ones.

        Raises
        ------
        ValueError
            As `check`.
        """
        chain = chain_of(model)
        layout = flat_model(model).layout
        tensors = layout.unflatten(weights.clone())
        public = public[:_MOST_PUBLIC]
        kernel, offset = tensors[chain.first.weight], tensors[chain.first.bias]
        self._set_measurements(kernel, offset, public)
        brightness = torch.cat(
            [
                answers(kernel, offset, chunk).relu().mean(dim=1)
                for chunk in torch.split(public, _CHUNK)
            ]
        )
        hidden, bias = tensors[chain.hidden.weight], tensors[chain.hidden.bias]
        bins = max(2, round(self.share * len(bias)))
        thresholds = quantiles(brightness, bins)
        thresholds[0] = 0  # the first unit sees every image
        scale = _QUIET / (bins * brightness.mean())
        hidden.zero_()
        hidden[:bins] = scale / hidden.shape[1]
        bias.fill_(-1)
        bias[:bins] = -scale * thresholds
        head = tensors[chain.head.weight]
        head.zero_()
        head[:, :bins] = torch.outer(_slopes(len(head)), _gains(bins))
        tensors[chain.head.bias].zero_()
        return layout.flatten(tensors)

    def _set_measurements(self, kernel: Tensor, offset: Tensor, public: Tensor) -> None:
        """Set the weights ``(K, ...)`` and the biases ``(K,)`` of the first layer."""
        seen = _windows(public, kernel)
        rows = self._rows(seen, len(kernel))
        measured = seen @ rows.T
        kernel[:] = rows.reshape(kernel.shape)
        offset[:] = self.margin * measured.std(dim=0) - measured.mean(dim=0)

    def _rows(self, seen: Tensor, count: int) -> Tensor:
        """Return the rows ``(count, d)`` that measure what a unit sees, ``(N, d)``."""
        size = seen.shape[1]
        drawn = torch.randn(count, size, generator=torch_rng(0, Purpose.PLAN)) / sqrt(size)
        if self.rows == "random":
            return drawn
        kept = min(count, size)
        components: Tensor = torch.linalg.eigh(seen.T.cov()).eigenvectors[:, -kept:]
        mixed: Tensor = torch.linalg.qr(drawn[:, :kept]).Q
        return mixed @ components.T


def chain_of(model: ModelSpec) -> Chain:
    """Return the layers that the plan sets.

    Raises
    ------
    ValueError
        If the model is another chain of layers.
    """
    chain = find_chain(model)
    if chain is None:
        raise ValueError(
            "the plan needs a model convolution or linear - ReLU - linear - ReLU - linear, such as "
            f"cnn or mlp:activation=relu; {model.name!r} is another"
        )
    return chain


def _windows(images: Tensor, kernel: Tensor) -> Tensor:
    """Return what the units of a layer see of images, ``(N, d)``; windows do not overlap."""
    if kernel.dim() == 2:
        return images.flatten(1)
    size = tuple(kernel.shape[2:])
    return F.unfold(images, size, stride=size).transpose(1, 2).flatten(0, 1)


def _slopes(classes: int) -> Tensor:
    """Return weights ``(classes,)`` of either sign, whose error signals tell the label."""
    return torch.linspace(0.75, 1.25, classes) * (1 - 2 * (torch.arange(classes) % 2))


def _gains(units: int) -> Tensor:
    """Return how large the error signals of units are, ``(units,)`` in [0.5, 1]."""
    return 1 - torch.rand(units, generator=torch_rng(1, Purpose.PLAN)) / 2
