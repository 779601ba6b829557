"""LeNets: three convolutions and one linear layer."""

from collections.abc import Callable

from torch import Tensor, nn

from fl_sim.models.spec import ModelSpec
from fl_sim.registry import register


class LeNet(nn.Module):
    """The LeNet of Deep Leakage from Gradients (Zhu et al. 2019): three 5x5 convolutions of 12.

    Strides 2, 2, 1 and no pooling: twice differentiable, which gradient matching needs.
    """

    def __init__(self, spec: ModelSpec, activation: Callable[[], nn.Module]) -> None:
        super().__init__()
        channels, height, width = spec.shape
        self.body = nn.Sequential(
            nn.Conv2d(channels, 12, 5, stride=2, padding=2),
            activation(),
            nn.Conv2d(12, 12, 5, stride=2, padding=2),
            activation(),
            nn.Conv2d(12, 12, 5, stride=1, padding=2),
            activation(),
        )
        features = 12 * (-(-height // 4)) * (-(-width // 4))
        self.head = nn.Linear(features, spec.classes)

    def forward(self, images: Tensor) -> Tensor:
        """Map images ``(n, C, H, W)`` to logits ``(n, classes)``."""
        logits: Tensor = self.head(self.body(images).flatten(1))
        return logits


@register("model", "lenet")
def lenet(spec: ModelSpec) -> nn.Module:
    """Return a LeNet with tanh, the default of a study."""
    return LeNet(spec, nn.Tanh)


@register("model", "lenet_dlg")
def lenet_dlg(spec: ModelSpec) -> nn.Module:
    """Return the LeNet of Deep Leakage from Gradients: sigmoid, weights from U(-0.5, 0.5)."""
    model = LeNet(spec, nn.Sigmoid)
    for parameter in model.parameters():
        nn.init.uniform_(parameter, -0.5, 0.5)
    return model
