"""The plan of a malicious server that sets trap weights: units that few images pass."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from fl_sim.models import ModelSpec
from fl_sim.plans.plan import ServerPlan
from fl_sim.registry import register
from fl_sim.seeding import Purpose, torch_rng
from fl_sim.specs import within
from fl_sim.updates.layers import find_relu_input
from fl_sim.updates.local_update import flat_model


@register("server", "traps")
@dataclass(frozen=True)
class Traps(ServerPlan):
    """Sets the first layer so that each of its units passes few images; adds nothing to the model.

    Half of the weights of a unit, at random places, are negative, and the other half are the same
    numbers in another order, positive and scaled. The scale is such that an image passes a unit
    with probability ``share``, measured on public images. What a unit passes alone is the gradient
    of its weights divided by that of its bias ("When the Curious Abandon Honesty", Boenisch et al.
    2021, arXiv 2112.02918).

    It needs a model whose first layer is fully connected to the pixels, with a bias, and a ReLU
    behind it, such as ``mlp:activation=relu``.

    Attributes
    ----------
    share : float
        Share of public images that pass a unit on average. A batch of n images is read best with
        about 1 / n.
    """

    threat: ClassVar[str] = "malicious: sets trap weights"
    reader: ClassVar[str] = "active_traps"

    share: float = 0.05

    def __post_init__(self) -> None:
        within("share", self.share, 0.0001, 0.5)

    def first_layer(self, model: ModelSpec) -> tuple[str, str]:
        """Return the names of the fully connected layer on the pixels."""
        layer = find_relu_input(model)
        assert layer is not None
        assert layer.weight is not None
        assert layer.bias is not None
        return layer.weight, layer.bias

    def check(self, model: ModelSpec) -> None:
        """Refuse a model without a fully connected ReLU layer on the pixels."""
        if find_relu_input(model) is None:
            raise ValueError(
                "the plan needs a model whose first layer is fully connected to the pixels, with a "
                f"bias and a ReLU, such as mlp:activation=relu; {model.name!r} is another"
            )

    def weights(self, model: ModelSpec, weights: Tensor, public: Tensor) -> Tensor:
        """Return the weights with the first layer set; the other layers are left as they are."""
        weight, bias = self.first_layer(model)
        layout = flat_model(model).layout
        tensors = layout.unflatten(weights.clone())
        units, pixels = tensors[weight].shape
        positive, negative = _halves(units, pixels)
        images = public.flatten(1).T
        passes_above = (negative @ images) / (positive @ images).clamp_min(1e-12)
        rank = max(1, round(self.share * passes_above.numel()))
        scale = passes_above.flatten().kthvalue(rank).values
        tensors[weight] = scale * positive - negative
        tensors[bias] = torch.zeros(units)
        return layout.flatten(tensors)


def _halves(units: int, pixels: int) -> tuple[Tensor, Tensor]:
    """Return magnitudes ``(units, pixels)`` of the positive and of the negative weights."""
    rng = torch_rng(0, Purpose.PLAN)
    half = pixels // 2
    drawn = torch.randn(units, half, generator=rng).abs() / pixels**0.5
    again = drawn.gather(1, torch.rand(units, half, generator=rng).argsort(dim=1))
    places = torch.rand(units, pixels, generator=rng).argsort(dim=1)
    empty = torch.zeros(units, pixels)
    positive = empty.scatter(1, places[:, :half], again)
    return positive, empty.scatter(1, places[:, half : 2 * half], drawn)
