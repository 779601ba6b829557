"""A multilayer perceptron."""

from torch import Tensor, nn

from fl_sim.models.spec import ModelSpec
from fl_sim.registry import register


@register("model", "mlp")
class MLP(nn.Module):
    """Two fully connected layers of 128 tanh units; its first layer leaks in closed form."""

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        channels, height, width = spec.shape
        self.body = nn.Sequential(
            nn.Linear(channels * height * width, 128), nn.Tanh(), nn.Linear(128, 128), nn.Tanh()
        )
        self.head = nn.Linear(128, spec.classes)

    def forward(self, images: Tensor) -> Tensor:
        """Map images ``(n, C, H, W)`` to logits ``(n, classes)``."""
        logits: Tensor = self.head(self.body(images.flatten(1)))
        return logits
