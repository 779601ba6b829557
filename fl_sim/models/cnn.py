"""A convolution, then two fully connected layers, all with ReLU."""

from torch import Tensor, nn

from fl_sim.models.spec import ModelSpec
from fl_sim.registry import register
from fl_sim.specs import within

_MOST_CHANNELS, _MOST_HIDDEN = 256, 4096


@register("model", "cnn")
class CNN(nn.Module):
    """One 3x3 convolution, ReLU, one fully connected layer, ReLU, and the classifier.

    Parameters
    ----------
    spec : ModelSpec
        The model as a whole.
    channels : int
        Channels of the convolution.
    hidden : int
        Units of the fully connected layer.
    """

    def __init__(self, spec: ModelSpec, *, channels: int = 33, hidden: int = 256) -> None:
        super().__init__()
        within("channels", channels, 1, _MOST_CHANNELS)
        within("hidden", hidden, 1, _MOST_HIDDEN)
        inputs, height, width = spec.shape
        self.body = nn.Sequential(
            nn.Conv2d(inputs, channels, 3, padding=1),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(channels * height * width, hidden),
            nn.ReLU(),
        )
        self.head = nn.Linear(hidden, spec.classes)

    def forward(self, images: Tensor) -> Tensor:
        """Map images ``(n, C, H, W)`` to logits ``(n, classes)``."""
        logits: Tensor = self.head(self.body(images))
        return logits
