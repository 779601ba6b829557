"""The plan of a malicious server that reads clients' images off the sum of their updates."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from fl_sim.models import ModelSpec
from fl_sim.plans.imprint import set_bins
from fl_sim.plans.plan import ServerPlan
from fl_sim.registry import register
from fl_sim.specs import within
from fl_sim.updates.local_update import flat_model


@register("server", "loki")
@dataclass(frozen=True)
class Loki(ServerPlan):
    """Puts an imprint layer in front of the model that has a section for each client.

    Each client is sent kernels that copy its images into its own section and nothing into the
    others (LOKI, Zhao et al. 2023, arXiv 2303.12233). Its gradient is zero in the sections of the
    others, so that the sum over all clients, which is all that secure aggregation shows, still
    tells them apart. In a section units are brightness bins, as of the plan ``imprint``.

    Attributes
    ----------
    clients : int
        Sections. With more clients in a round, several share one.
    bins : int
        Units; images of one client that share a bin are read as their mean.
    """

    threat: ClassVar[str] = "malicious: plants an imprint layer with a section for each client"
    reader: ClassVar[str] = "active_loki"
    needs_pixels: ClassVar[bool] = True

    clients: int = 8
    bins: int = 128

    def __post_init__(self) -> None:
        within("clients", self.clients, 1, 1024)
        within("bins", self.bins, 2, 4096)

    def model(self, name: str) -> str:
        """Return the model behind the layers of LOKI."""
        return f"loki:clients={self.clients},bins={self.bins}({name})"

    def check(self, model: ModelSpec) -> None:
        """Refuse a model that has no such layers in front."""
        shapes = dict(flat_model(model).layout.segments)
        channels, height, width = model.shape
        pixels = self.clients * channels * height * width
        if "kernels.weight" not in shapes or shapes.get("imprint.weight") != (self.bins, pixels):
            raise ValueError(
                f"the plan needs a model behind the layers of LOKI, such as {self.model('lenet')}; "
                f"{model.name!r} is another"
            )

    def weights(self, model: ModelSpec, weights: Tensor, public: Tensor) -> Tensor:
        """Return the weights with the kernels of every client open."""
        layout = flat_model(model).layout
        tensors = layout.unflatten(weights.clone())
        set_bins(tensors, public)
        kernels = tensors["kernels.weight"].zero_()
        channels = len(public[0])
        for place in range(len(kernels)):
            kernels[place, place % channels, 1, 1] = 1
        return layout.flatten(tensors)

    def weights_for(self, client: int, model: ModelSpec, weights: Tensor, public: Tensor) -> Tensor:
        """Return the weights with the kernels of one client open."""
        layout = flat_model(model).layout
        tensors = layout.unflatten(self.weights(model, weights, public))
        kernels = tensors["kernels.weight"]
        section = torch.arange(len(kernels)) // len(public[0])
        kernels[section != client % self.clients] = 0
        return layout.flatten(tensors)
