"""Images read from an unquantized update in closed form: from one layer, or from all."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from attacker.matching.problems import Problems
from fl_sim.models import ModelSpec
from fl_sim.models.lenet import LeNet
from fl_sim.updates.layers import find_input
from fl_sim.updates.local_update import flat_model

_LEAST_SQUARES_STEPS = 300
_SATURATED = 1e-9  # least distance from its limits at which an activation is inverted


def has_linear_input(model: ModelSpec) -> bool:
    """Tell whether a layer with a bias is fully connected to the pixels."""
    return find_input(model) is not None


def invert_linear_input(problems: Problems) -> Tensor:
    """Read single images from the gradient of a fully connected first layer.

    Row k of dL/dW is dL/db_k times the image (Phong et al. 2018): the least-squares image over
    all rows. Returns ``(B, 1, C, H, W)``.
    """
    layer = find_input(problems.model)
    assert layer is not None
    assert layer.weight is not None
    assert layer.bias is not None
    bias, rows = problems.decoded(layer.bias), problems.decoded(layer.weight)
    tiny = torch.finfo(bias.dtype).tiny
    seen = (bias * problems.shown(layer.bias)).square() @ problems.shown(layer.weight)
    image = torch.einsum("bk,bkp->bp", bias, rows) / seen.clamp_min(tiny)
    return image.reshape(-1, *problems.image_shape)


def is_recursive(model: ModelSpec) -> bool:
    """Tell whether `invert_recursively` knows the architecture."""
    return isinstance(flat_model(model).module, LeNet)


def invert_recursively(problems: Problems) -> Tensor:
    """Read single images layer by layer, from the last to the first, with the label unknown.

    R-GAP (Zhu and Blaschko 2021, arXiv 2010.07733). The gradient of the last layer is the outer
    product of (probabilities - label) and the features. Each convolution then gives two sets of
    linear equations in its input: its output, and its weight gradient; they are solved in float64
    by conjugate gradients on the convolutions themselves, all problems at once.

    Returns ``(B, 1, C, H, W)``, exact to the last digits of an unquantized float32 update.
    """
    model = problems.flat_model
    weights = {n: p.double() for n, p in model.layout.unflatten(problems.weights).items()}
    assert isinstance(model.module, LeNet)
    layers = list(model.module.body)
    error = problems.decoded("head.bias").double()
    outer = problems.decoded("head.weight").double()
    seen = error.square() @ problems.shown("head.weight").double()
    features = torch.einsum("bk,bkf->bf", error, outer) / seen
    shapes = _output_shapes(layers, problems.model)
    activated = features.reshape(-1, *shapes[-1])
    slope = (error @ weights["head.weight"]).reshape(-1, *shapes[-1])
    for index in reversed(range(len(layers) // 2)):
        convolution, activation = layers[2 * index : 2 * index + 2]
        assert isinstance(convolution, nn.Conv2d)
        output, derivative = _inverse(activation, activated)
        slope = slope * derivative
        name = f"body.{2 * index}.weight"
        seen = problems.shown(name).double().flatten()
        equations = _Convolution(convolution, weights[name], seen, shapes[index], slope)
        bias = weights[f"body.{2 * index}.bias"][:, None, None]
        gradient = problems.decoded(name).double().flatten(1)
        activated = equations.solve(output - bias, gradient)
        slope = equations.back(slope)
    return activated.to(problems.weights.dtype).reshape(-1, *problems.image_shape)


def _output_shapes(layers: list[nn.Module], model: ModelSpec) -> list[tuple[int, ...]]:
    """Shapes of the input of each convolution, then of the features."""
    shapes = [tuple(model.shape)]
    signal = torch.zeros(1, *model.shape)
    for convolution, activation in zip(layers[::2], layers[1::2], strict=True):
        signal = activation(convolution(signal))
        shapes.append(tuple(signal.shape[1:]))
    return shapes


def _inverse(activation: nn.Module, activated: Tensor) -> tuple[Tensor, Tensor]:
    """Return the argument of a sigmoid or tanh, and its derivative there."""
    if isinstance(activation, nn.Sigmoid):
        value = activated.clamp(_SATURATED, 1 - _SATURATED)
        return torch.logit(value), value * (1 - value)
    value = activated.clamp(-1 + _SATURATED, 1 - _SATURATED)
    return torch.atanh(value), 1 - value.square()


@dataclass(frozen=True, eq=False)
class _Convolution:
    """The two sets of linear equations that one convolution gives for its input."""

    layer: nn.Conv2d
    weight: Tensor  # (O, I, k, k)
    seen: Tensor  # (O I k k) 0 for elements of the weight gradient that are hidden, else 1
    shape: tuple[int, ...]  # (I, H, W) of the input
    slope: Tensor  # (B, O, h, w) gradient with respect to the output

    def forward(self, signal: Tensor) -> Tensor:
        stride, padding = self.layer.stride, self._padding
        return F.conv2d(signal, self.weight, stride=stride, padding=padding)

    def back(self, output: Tensor) -> Tensor:
        stride, padding = self.layer.stride, self._padding
        reached = [
            (size - 1) * step - 2 * edge + kernel
            for size, step, edge, kernel in zip(
                output.shape[2:], stride, padding, self._kernel, strict=True
            )
        ]
        missing = [size - least for size, least in zip(self.shape[1:], reached, strict=True)]
        return F.conv_transpose2d(output, self.weight, None, stride, padding, missing)

    def gradient(self, signal: Tensor) -> Tensor:
        """Weight gradient ``(B, O I k k)`` of an input."""
        patches = F.unfold(signal, self._kernel, stride=self.layer.stride, padding=self._padding)
        return self.seen * torch.bmm(self.slope.flatten(2), patches.transpose(1, 2)).flatten(1)

    def gradient_back(self, gradient: Tensor) -> Tensor:
        matrix = (self.seen * gradient).reshape(len(gradient), self.slope.shape[1], -1)
        patches = torch.bmm(matrix.transpose(1, 2), self.slope.flatten(2))
        stride, padding = self.layer.stride, self._padding
        return F.fold(patches, self.shape[1:], self._kernel, stride=stride, padding=padding)

    @property
    def _kernel(self) -> tuple[int, ...]:
        return tuple(self.weight.shape[2:])

    @property
    def _padding(self) -> tuple[int, ...]:
        assert not isinstance(self.layer.padding, str)
        return self.layer.padding

    def solve(self, output: Tensor, gradient: Tensor) -> Tensor:
        """Return the least-squares input ``(B, I, H, W)``.

        The gradient's equations are scaled to the size of the output's, and the unknowns to the
        same weight in all equations together (Jacobi's preconditioner).
        """
        balance = self.weight.norm() / self.slope.flatten(1).norm(dim=1).clamp_min(1e-300)
        scale = balance[:, None]
        unit = self._diagonal(scale).clamp_min(1e-300).rsqrt()

        def apply(x: Tensor) -> Tensor:
            signal = (unit * x).reshape(-1, *self.shape)
            return torch.cat([self.forward(signal).flatten(1), scale * self.gradient(signal)], 1)

        def transpose(y: Tensor) -> Tensor:
            first, second = y[:, : output[0].numel()], y[:, output[0].numel() :]
            signal = self.back(first.reshape(output.shape)) + self.gradient_back(scale * second)
            return unit * signal.flatten(1)

        right = torch.cat([output.flatten(1), scale * gradient], dim=1)
        return (unit * conjugate_gradients(apply, transpose, right)).reshape(-1, *self.shape)

    def _diagonal(self, scale: Tensor) -> Tensor:
        """Sum of the squares of each unknown's coefficients in all equations, ``(B, unknowns)``."""
        squares = self.slope.square()
        of_output = replace(self, weight=self.weight.square()).back(torch.ones_like(squares))
        of_gradient = replace(self, weight=torch.ones_like(self.weight)).back(squares)
        return (of_output + scale[:, :, None, None].square() * of_gradient).flatten(1)


def conjugate_gradients(
    apply: Callable[[Tensor], Tensor],
    transpose: Callable[[Tensor], Tensor],
    right: Tensor,
    steps: int = _LEAST_SQUARES_STEPS,
    tolerance: float = 1e-12,
) -> Tensor:
    """Solve a batch of least-squares problems ``A x = right`` by conjugate gradients (CGLS).

    Parameters
    ----------
    apply, transpose : callable
        ``A`` and its transpose on a batch ``(B, ...)``.
    right : Tensor
        ``(B, m)`` right-hand sides.
    steps : int
        Most iterations.
    tolerance : float
        Stop when every gradient has fallen to this share of its first norm.
    """
    residual = right
    gradient = transpose(residual)
    solution = torch.zeros_like(gradient)
    direction = gradient
    norm = first = gradient.square().sum(dim=1, keepdim=True)
    tiny = torch.finfo(norm.dtype).tiny
    for _ in range(steps):
        image = apply(direction)
        rate = norm / image.square().sum(dim=1, keepdim=True).clamp_min(tiny)
        solution = solution + rate * direction
        residual = residual - rate * image
        gradient = transpose(residual)
        previous, norm = norm, gradient.square().sum(dim=1, keepdim=True)
        if bool((norm <= tolerance**2 * first).all()):
            break
        direction = gradient + norm / previous.clamp_min(tiny) * direction
    return solution
