"""Small convolutional networks, with normalisation or without."""

from itertools import pairwise
from typing import Literal

from torch import Tensor, nn

from fl_sim.models.norms import NormName, norm_layer
from fl_sim.models.spec import ModelSpec
from fl_sim.registry import register
from fl_sim.specs import within

_MOST_WIDTH, _MOST_LAYERS = 512, 8
_ACTIVATIONS = {"gelu": nn.GELU, "relu": nn.ReLU}


@register("model", "convnet")
class ConvNet(nn.Module):
    """Three stages of 3x3 convolutions, each of which halves the sides, and a linear classifier.

    Channels double from stage to stage. ``convnet:activation=relu,norm=batch,layers=2`` has
    0.29 million parameters on 32x32 colour images, and the widths 16 to 56 have 0.08 to 0.87.

    Parameters
    ----------
    spec : ModelSpec
        The model as a whole.
    width : int
        Channels of the first stage.
    layers : int
        Convolutions in a stage; the last of them has stride 2.
    norm : "group", "batch" or "none"
        Normalisation after each convolution.
    activation : "gelu" or "relu"
        After each normalisation.
    """

    def __init__(
        self,
        spec: ModelSpec,
        *,
        width: int = 32,
        layers: int = 1,
        norm: NormName = "group",
        activation: Literal["gelu", "relu"] = "gelu",
    ) -> None:
        super().__init__()
        within("width", width, 1, _MOST_WIDTH)
        within("layers", layers, 1, _MOST_LAYERS)
        widths = (spec.shape[0], width, 2 * width, 4 * width)
        blocks: list[nn.Module] = []
        for inputs, outputs in pairwise(widths):
            for layer in range(layers):
                source = outputs if layer else inputs
                stride = 2 if layer == layers - 1 else 1
                blocks += [
                    nn.Conv2d(source, outputs, 3, stride=stride, padding=1),
                    norm_layer(norm, outputs),
                    _ACTIVATIONS[activation](),
                ]
        self.body = nn.Sequential(*blocks, nn.AdaptiveAvgPool2d(2))
        self.head = nn.Linear(widths[-1] * 4, spec.classes)

    def forward(self, images: Tensor) -> Tensor:
        """Map images ``(n, C, H, W)`` to logits ``(n, classes)``."""
        logits: Tensor = self.head(self.body(images).flatten(1))
        return logits
