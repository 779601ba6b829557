"""The plan of a server that turns an ordinary network into an analog-to-digital converter."""

from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from fl_sim.models import ModelSpec
from fl_sim.plans.chain import Chain, find_chain
from fl_sim.plans.plan import ServerPlan
from fl_sim.plans.trace import Trace, trace_of
from fl_sim.registry import register
from fl_sim.specs import positive, within
from fl_sim.updates.local_update import flat_model

_MOST_LEVELS = 256
_MOST_PUBLIC = 1000
_CHUNK = 50  # public images whose features are held at once
_MARGIN = 20.0  # by which the logits of two classes exceed the others
_GAIN = 2.0**-5  # of the convolution: small, so that a local step hardly moves a unit's answer
_FLAT = 1e-3  # most standard deviation of what a unit adds to a logit


@register("server", "thresholds")
@dataclass(frozen=True)
class Thresholds(ServerPlan):
    """Changes the weights of a convolution and two linear layers so that gradients spell images.

    Each channel of the convolution copies one colour less a level: after the ReLU it is positive
    where the pixel is brighter. Units of the first linear layer answer at random, and their biases
    let about one image of a batch pass (trap weights; Boenisch et al. 2021, arXiv 2112.02918). The
    last layer gives each unit an error signal of known sign and size. The gradient of a unit's row
    is then its error signal times the features of the image that passed: its sign alone tells
    which pixels are brighter than which levels.

    Attributes
    ----------
    reads : "auto", "signs" or "values"
        What the quantizer leaves. ``signs``: levels lie inside the range of pixels, and error
        signals have the same sign for all classes but one. ``values``: the lowest level is black,
        error signals have one size for all classes, and a channel is constant, if one is spare.
        ``auto``: as `for_quantizer` decides, and ``signs`` where the quantizer is not known.
    levels : int
        Of each colour; channels that are left are switched off.
    batch : int
        Images of a batch, of which about ``rate`` pass a unit.
    rate : float
        See ``batch``.
    slope : float
        Gradient of a white pixel. With several local steps it must be small, such as 1e-8, lest the
        model change between them; large where noise or steps have a size of their own.
    dither : "colours" or "none"
        Whether the levels of the colours are shifted against each other.
    floor : float
        Lowest level of ``values``. Below black, it lifts dark pixels over a coarse step.
    """

    threat: ClassVar[str] = "malicious: sets thresholds in the model's weights"
    reader: ClassVar[str] = "active_thresholds"

    reads: Literal["auto", "signs", "values"] = "auto"
    levels: int = 11
    batch: int = 8
    rate: float = 1.0
    slope: float = 1.0
    dither: Literal["colours", "none"] = "colours"
    floor: float = 0.0

    def __post_init__(self) -> None:
        within("levels", self.levels, 1, _MOST_LEVELS)
        positive("batch", self.batch)
        positive("rate", self.rate)
        positive("slope", self.slope)
        within("floor", self.floor, -2.0, 0.0)

    def for_quantizer(self, quantizer: str) -> "Thresholds":
        """Return the plan that suits what a quantizer leaves, if ``reads`` is ``auto``.

        Levels, rate and floor are chosen too where they are at their defaults.
        """
        if self.reads != "auto":
            return self
        suited = _suited(trace_of(quantizer))
        mine = {name: getattr(type(self), name) for name in suited}
        free = {k: v for k, v in suited.items() if k == "reads" or getattr(self, k) == mine[k]}
        return replace(self, **free)

    def first_layer(self, model: ModelSpec) -> tuple[str, str]:
        """Return the names of the convolution."""
        first = self._chain(model).first
        return first.weight, first.bias

    def check(self, model: ModelSpec) -> None:
        """Raise `ValueError` if the model is another chain of layers, or has too few channels."""
        self._chain(model)

    def weights(self, model: ModelSpec, weights: Tensor, public: Tensor) -> Tensor:
        """Return the planted weights, which do not depend on the trained ones.

        Raises
        ------
        ValueError
            As `check`.
        """
        chain = self._chain(model)
        layout = flat_model(model).layout
        tensors = layout.unflatten(weights.clone())
        kernel, offset = tensors[chain.first.weight], tensors[chain.first.bias]
        self._set_levels(kernel, offset)
        public = public[:_MOST_PUBLIC]
        rows = self._random_rows(kernel, offset, len(tensors[chain.hidden.bias]), public)
        self._set_errors(tensors[chain.head.weight], tensors[chain.head.bias])
        visible = self._visible(tensors[chain.head.weight], tensors[chain.head.bias])
        chunks, energy = [], 0.0
        for chunk in torch.split(public, _CHUNK):
            features = F.conv2d(chunk, kernel, offset, padding="same").relu().flatten(1)
            energy += float(features.square().sum()) / len(public)
            chunks.append(features @ rows.T)
        answers = torch.cat(chunks)
        # A local step changes an answer by error signal x energy: little beside its spread.
        size = min(self._push * energy / 8, _FLAT / self._push)
        spread = size / answers.std(dim=0).clamp_min(1e-12)
        tensors[chain.hidden.weight][:] = rows * spread[:, None]
        tensors[chain.hidden.bias][:] = -spread * self._quantiles(answers, visible)
        return layout.flatten(tensors)

    def _chain(self, model: ModelSpec) -> Chain:
        chain = find_chain(model)
        if chain is None or not chain.convolves:
            raise ValueError(
                "the plan needs a model convolution - ReLU - linear - ReLU - linear, such as cnn; "
                f"{model.name!r} is another"
            )
        biases = dict(flat_model(model).layout.segments)
        (channels,) = biases[chain.first.bias]
        most = channels // model.shape[0]
        if self.levels > most:
            raise ValueError(f"at most {most} levels fit the {channels} channels of {model.name!r}")
        return chain

    def thresholds(self, colours: int) -> Tensor:
        """Return the levels ``(levels, colours)``, rising."""
        level = torch.arange(self.levels).float()[:, None]
        shift = (torch.arange(colours) - (colours - 1) / 2) / colours
        shift = shift if self.dither == "colours" else torch.zeros(colours)
        if self.reads != "values":
            return (level + 1 + shift) / (self.levels + 1)
        return self.floor + (level + (level > 0) * shift) / self.levels

    def _set_levels(self, kernel: Tensor, offset: Tensor) -> None:
        colours, middle = kernel.shape[1], (kernel.shape[2] // 2, kernel.shape[3] // 2)
        kernel.zero_()
        offset.fill_(-_GAIN)
        for channel, level in enumerate(self.thresholds(colours).flatten()):
            kernel[channel, channel % colours, middle[0], middle[1]] = _GAIN
            offset[channel] = -level * _GAIN
        live = self.levels * colours
        if self.reads == "values" and live < len(offset):
            offset[live] = _GAIN

    def _random_rows(self, kernel: Tensor, offset: Tensor, units: int, public: Tensor) -> Tensor:
        """Return weights ``(units, features)`` whose answer is a random function of each pixel.

        The functions are linear between the levels, where they are drawn from N(0, 1): images
        of all brightnesses pass alike.
        """
        colours, pixels = kernel.shape[1], public[0, 0].numel()
        rng = torch.Generator().manual_seed(0)
        levels = self.thresholds(colours)
        knots = torch.cat([levels, levels[-1:] + 1 / self.levels])[:, :, None]
        drawn = torch.randn(units, self.levels, colours, pixels, generator=rng)
        drawn = torch.cat([torch.zeros_like(drawn[:, :1]), drawn], dim=1)
        rises = drawn.diff(dim=1) / knots.diff(dim=0)
        bends = torch.cat([rises[:, :1], rises.diff(dim=1)], dim=1)
        rows = torch.zeros(units, len(offset), pixels)
        rows[:, : self.levels * colours] = bends.flatten(1, 2)
        return rows.flatten(1)

    @property
    def _push(self) -> float:
        """Size of an error signal of one image, before the mean over the batch."""
        return self.slope * self.batch / _GAIN

    def _set_errors(self, weight: Tensor, bias: Tensor) -> None:
        classes, units = weight.shape
        unit = torch.arange(units)
        weight.zero_()
        bias.zero_()
        if self.reads != "values":
            weight[unit % classes, unit] = -self._push * classes
            return
        # Two classes have probability 1/2 each. Most units push both down and are blind to them,
        # the others tell them apart and are blind to the rest.
        bias[:2] = _MARGIN
        weight[:2] = -self._push
        apart = unit % classes < 2
        weight[0, apart] = (self._push * (1 - 2.0 * (unit % classes)))[apart]
        weight[1, apart] = -weight[0, apart]

    def _visible(self, weight: Tensor, bias: Tensor) -> Tensor:
        """Return the share of the classes that each unit sees, ``(units,)``."""
        errors = error_signals(weight, bias)
        seen = errors < 0 if self.reads != "values" else errors.abs() > self._push / 2
        return seen.float().mean(dim=1)

    def _quantiles(self, answers: Tensor, visible: Tensor) -> Tensor:
        """Return the answers ``(units,)`` that are to be exceeded."""
        passing = self.rate / (self.batch * visible)
        ordered = answers.sort(dim=0, descending=True).values
        place = (passing * len(answers)).long()
        chosen = ordered.gather(0, place.clamp_max(len(answers) - 1)[None])[0]
        below = ordered[-1] - (ordered[0] - ordered[-1])
        return torch.where(place < len(answers), chosen, below)


def _suited(trace: Trace) -> dict[str, Any]:
    """Return the parameters that read most of what is left, as far as that was measured.

    Few levels leave the wanted elements among the largest, which pruning keeps. A floor below
    black lifts dark pixels over a coarse step, and fewer images pass a unit where it is coarse.
    """
    if trace.signs:
        return {"reads": "signs"}
    if trace.dropped > 0.5:
        return {"reads": "values", "levels": 1}
    values: dict[str, Any] = {"reads": "values", "levels": 10}
    if trace.rotated:
        return values
    if trace.random:
        return values | ({"rate": 0.5} if trace.step > 1 else {})
    if trace.step > 1:
        return values | {"rate": 0.25, "floor": -0.75}
    return values | ({"rate": 0.5, "floor": -0.5} if trace.zeros > 0.1 else {})


def error_signals(weight: Tensor, bias: Tensor) -> Tensor:
    """Return the error signal of each unit for an image of each class, ``(units, classes)``.

    The activations are small beside the bias of the last layer, ``(classes,)``.
    """
    return weight.T @ (bias.softmax(dim=0)[:, None] - torch.eye(len(bias)))
