"""A small convolutional network with normalisation."""

from itertools import pairwise

from torch import Tensor, nn

from fl_sim.models.spec import ModelSpec
from fl_sim.registry import register


@register("model", "convnet")
class ConvNet(nn.Module):
    """Three 3x3 convolution blocks of 32, 64 and 128 channels with GroupNorm and GELU."""

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        widths = (spec.shape[0], 32, 64, 128)
        blocks: list[nn.Module] = []
        for inputs, outputs in pairwise(widths):
            blocks += [
                nn.Conv2d(inputs, outputs, 3, stride=2, padding=1),
                nn.GroupNorm(8, outputs),
                nn.GELU(),
            ]
        self.body = nn.Sequential(*blocks, nn.AdaptiveAvgPool2d(2))
        self.head = nn.Linear(widths[-1] * 4, spec.classes)

    def forward(self, images: Tensor) -> Tensor:
        """Map images ``(n, C, H, W)`` to logits ``(n, classes)``."""
        logits: Tensor = self.head(self.body(images).flatten(1))
        return logits
