"""ResNets for small images (He et al. 2016, arXiv 1512.03385)."""

from itertools import pairwise
from typing import Literal

from torch import Tensor, nn
from torch.nn.functional import pad

from fl_sim.models.norms import NormName, norm_layer
from fl_sim.models.spec import ModelSpec
from fl_sim.registry import register


@register("model", "resnet18")
def resnet18(spec: ModelSpec, *, norm: Literal["group", "batch"] = "group") -> nn.Module:
    """Return a ResNet-18 with GroupNorm or BatchNorm, and the 3x3 stem for small images."""
    from torchvision.models.resnet import (  # noqa: PLC0415 - 130 MB, only where needed
        BasicBlock,
        ResNet,
    )

    model: nn.Module = ResNet(
        BasicBlock,
        [2, 2, 2, 2],
        num_classes=spec.classes,
        norm_layer=lambda width: norm_layer(norm, width, min(32, width // 4)),
    )
    # The CIFAR stem: small images do not survive the 7x7 stride-2 stem and its pooling.
    model.conv1 = nn.Conv2d(spec.shape[0], 64, 3, stride=1, padding=1, bias=False)
    model.maxpool = nn.Identity()
    return model


class _Block(nn.Module):
    """Two 3x3 convolutions beside a shortcut without parameters (option A of the paper)."""

    def __init__(self, inputs: int, outputs: int, norm: NormName) -> None:
        super().__init__()
        self.stride, self.added = (1, 0) if inputs == outputs else (2, outputs - inputs)
        self.body = nn.Sequential(
            nn.Conv2d(inputs, outputs, 3, stride=self.stride, padding=1, bias=False),
            norm_layer(norm, outputs),
            nn.ReLU(),
            nn.Conv2d(outputs, outputs, 3, padding=1, bias=False),
            norm_layer(norm, outputs),
        )

    def forward(self, features: Tensor) -> Tensor:
        """Map ``(n, inputs, H, W)`` to ``(n, outputs, H / stride, W / stride)``."""
        shortcut = features[:, :, :: self.stride, :: self.stride]
        shortcut = pad(shortcut, (0, 0, 0, 0, self.added // 2, self.added - self.added // 2))
        added: Tensor = self.body(features) + shortcut
        return added.relu()


@register("model", "resnet20")
class ResNet20(nn.Module):
    """The ResNet-20 of the paper's CIFAR-10 experiments: three stages of three blocks.

    0.27 million parameters; BatchNorm unless ``norm`` says otherwise.

    Parameters
    ----------
    spec : ModelSpec
        The model as a whole.
    norm : "batch", "group" or "none"
        Normalisation after each convolution.
    """

    def __init__(self, spec: ModelSpec, *, norm: NormName = "batch") -> None:
        super().__init__()
        widths = (16, *(width for width in (16, 32, 64) for _ in range(3)))
        self.body = nn.Sequential(
            nn.Conv2d(spec.shape[0], 16, 3, padding=1, bias=False),
            norm_layer(norm, 16),
            nn.ReLU(),
            *(_Block(inputs, outputs, norm) for inputs, outputs in pairwise(widths)),
            nn.AdaptiveAvgPool2d(1),
        )
        self.head = nn.Linear(64, spec.classes)
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, images: Tensor) -> Tensor:
        """Map images ``(n, C, H, W)`` to logits ``(n, classes)``."""
        logits: Tensor = self.head(self.body(images).flatten(1))
        return logits
