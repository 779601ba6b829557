"""The plan of a malicious server that silences all clients but one."""

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from fl_sim.models import ModelSpec
from fl_sim.plans.plan import ServerPlan, parse_plan
from fl_sim.registry import register
from fl_sim.specs import within
from fl_sim.updates.local_update import flat_model


@register("server", "inconsistent")
@dataclass(frozen=True)
class Inconsistent(ServerPlan):
    """Sends one client what another plan plants, and the others a model without a gradient.

    In the others' model no ReLU unit passes anything, so that their gradient is zero but for the
    biases of the last layer ("Eluding Secure Aggregation", Pasquini et al. 2021, arXiv
    2111.07380). The sum over all clients is then the gradient of the one that was not silenced.

    It needs a model in which a ReLU follows every layer but the last.

    Attributes
    ----------
    of : str
        Plan that the target is sent.
    target : int
        Place of the target among the clients that are asked in a round, from 0.
    """

    threat: ClassVar[str] = "malicious: sends all clients but one a model without a gradient"

    of: str
    target: int = 0

    def __post_init__(self) -> None:
        within("target", self.target, 0, 1 << 20)
        parse_plan(self.of)

    @property
    def spec(self) -> str:
        """Spec string that parses back to an equal plan."""
        parameters = f":target={self.target}" if self.target else ""
        return f"{self.name}{parameters}({parse_plan(self.of).spec})"

    @property
    def reader(self) -> str:  # type: ignore[override]
        """The attack that reads what the target was sent."""
        return parse_plan(self.of).reader

    @property
    def needs_pixels(self) -> bool:  # type: ignore[override]
        """Whether the plan for the target cannot be carried out on normalised pixels."""
        return parse_plan(self.of).needs_pixels

    def model(self, name: str) -> str:
        """Return the model that the plan for the target needs."""
        return parse_plan(self.of).model(name)

    def first_layer(self, model: ModelSpec) -> tuple[str, str] | None:
        """Return the layer that the plan for the target sets."""
        return parse_plan(self.of).first_layer(model)

    def for_quantizer(self, quantizer: str) -> "Inconsistent":
        """Return the plan with that for the target suited to the quantizer."""
        return replace(self, of=parse_plan(self.of).for_quantizer(quantizer).spec)

    def check(self, model: ModelSpec) -> None:
        """Refuse what the plan for the target refuses, and a model that cannot be silenced."""
        parse_plan(self.of).check(model)
        flat = flat_model(model)
        rng = torch.Generator().manual_seed(0)
        images = torch.rand((2, *model.shape), generator=rng)
        targets = torch.full((2, model.classes), 1 / model.classes)
        targets[:, 0] += 1
        gradient = flat.eager_gradient(_silent(flat.layout.size, model), images, targets)
        if int(gradient.count_nonzero()) > model.classes:
            raise ValueError(
                "the plan needs a model in which a ReLU follows every layer but the last, such as "
                f"mlp:activation=relu; {model.name!r} is another"
            )

    def weights(self, model: ModelSpec, weights: Tensor, public: Tensor) -> Tensor:
        """Return the weights that the target is sent."""
        return parse_plan(self.of).weights(model, weights, public)

    def weights_for(self, client: int, model: ModelSpec, weights: Tensor, public: Tensor) -> Tensor:
        """Return the weights of the target, or for others those without a gradient."""
        if client == self.target:
            return self.weights(model, weights, public)
        return _silent(len(weights), model)


def _silent(size: int, model: ModelSpec) -> Tensor:
    """Return weights ``(size,)`` with which no ReLU passes anything."""
    layout = flat_model(model).layout
    tensors = layout.unflatten(torch.zeros(size))
    for tensor in tensors.values():
        if tensor.dim() == 1:
            tensor.fill_(-1)
    return layout.flatten(tensors)
