"""The layers of LOKI: kernels that open one section of a layer for each client."""

from torch import Tensor, nn

from fl_sim.models.spec import ModelSpec, build_architecture
from fl_sim.registry import register
from fl_sim.specs import within

_MOST_CLIENTS, _MOST_BINS = 1024, 4096


@register("model", "loki")
class Loki(nn.Module):
    """Another model behind a convolution and an imprint layer with a section for each client.

    The convolution has a set of kernels for each client, and the imprint layer weights on the
    pixels of each set (LOKI, Zhao et al. 2023, arXiv 2303.12233). The sum of the layer's ``bins``
    ReLU units is added to every pixel, as in `fl_sim.models.imprint`. `fl_sim.plans.loki` sets the
    weights.

    Parameters
    ----------
    spec : ModelSpec
        The model as a whole.
    of : str
        Name of the model behind the layers.
    clients : int
        Sets of kernels.
    bins : int
        Units of the imprint layer.
    """

    def __init__(self, spec: ModelSpec, *, of: str, clients: int = 8, bins: int = 128) -> None:
        super().__init__()
        within("clients", clients, 1, _MOST_CLIENTS)
        within("bins", bins, 2, _MOST_BINS)
        channels, height, width = spec.shape
        self.kernels = nn.Conv2d(channels, clients * channels, 3, padding=1, bias=False)
        self.imprint = nn.Linear(clients * channels * height * width, bins)
        self.model = build_architecture(ModelSpec(of, spec.shape, spec.classes))

    def forward(self, images: Tensor) -> Tensor:
        """Map images ``(n, C, H, W)`` to logits ``(n, classes)``."""
        shift = self.imprint(self.kernels(images).flatten(1)).relu().sum(dim=1)
        logits: Tensor = self.model(images + shift[:, None, None, None])
        return logits
