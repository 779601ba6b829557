"""A multilayer perceptron."""

from typing import Literal

from torch import Tensor, nn

from fl_sim.models.spec import ModelSpec
from fl_sim.registry import register
from fl_sim.specs import within

_MOST_UNITS = 1 << 16
_ACTIVATIONS = {"tanh": nn.Tanh, "relu": nn.ReLU}


@register("model", "mlp")
class MLP(nn.Module):
    """Two fully connected layers of tanh units; its first layer leaks in closed form.

    Parameters
    ----------
    spec : ModelSpec
        The model as a whole.
    activation : "tanh" or "relu"
        Of both layers.
    width : int
        Units of each layer.
    """

    def __init__(
        self, spec: ModelSpec, *, activation: Literal["tanh", "relu"] = "tanh", width: int = 128
    ) -> None:
        super().__init__()
        within("width", width, 1, _MOST_UNITS)
        channels, rows, columns = spec.shape
        active = _ACTIVATIONS[activation]
        self.body = nn.Sequential(
            nn.Linear(channels * rows * columns, width), active(), nn.Linear(width, width), active()
        )
        self.head = nn.Linear(width, spec.classes)

    def forward(self, images: Tensor) -> Tensor:
        """Map images ``(n, C, H, W)`` to logits ``(n, classes)``."""
        logits: Tensor = self.head(self.body(images.flatten(1)))
        return logits
