"""ResNet-18 for small images."""

from torch import nn

from fl_sim.models.spec import ModelSpec
from fl_sim.registry import register


@register("model", "resnet18")
def resnet18(spec: ModelSpec) -> nn.Module:
    """Return a ResNet-18 with GroupNorm (He et al. 2016, arXiv 1512.03385)."""
    from torchvision.models.resnet import (  # noqa: PLC0415 - 130 MB, only where needed
        BasicBlock,
        ResNet,
    )

    model: nn.Module = ResNet(
        BasicBlock,
        [2, 2, 2, 2],
        num_classes=spec.classes,
        norm_layer=lambda width: nn.GroupNorm(min(32, width // 4), width),
    )
    # The CIFAR stem: small images do not survive the 7x7 stride-2 stem and its pooling.
    model.conv1 = nn.Conv2d(spec.shape[0], 64, 3, stride=1, padding=1, bias=False)
    model.maxpool = nn.Identity()
    return model
