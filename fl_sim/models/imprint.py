"""The layer that a malicious server plants to read images of batches of any size."""

from torch import Tensor, nn

from fl_sim.models.spec import ModelSpec, build_architecture
from fl_sim.registry import register


@register("model", "imprint")
class Imprinted(nn.Module):
    """Another model behind an imprint layer.

    The layer ("Robbing the Fed", Fowl et al. 2022, arXiv 2110.13057) has ``bins`` ReLU units on the
    pixels, whose sum is added to every pixel. Adding up makes the gradient with respect to every
    unit the same, so that the difference of two units' gradients is due to the images that only one
    of them saw. `fl_sim.plans.imprint` sets its weights.

    Parameters
    ----------
    spec : ModelSpec
        The model as a whole.
    of : str
        Name of the model behind the layer.
    bins : int
        Units; two images of a batch of 8 share a bin of 128 once in five batches.
    """

    def __init__(self, spec: ModelSpec, *, of: str, bins: int = 128) -> None:
        super().__init__()
        channels, height, width = spec.shape
        self.imprint = nn.Linear(channels * height * width, bins)
        self.model = build_architecture(ModelSpec(of, spec.shape, spec.classes))

    def forward(self, images: Tensor) -> Tensor:
        """Map images ``(n, C, H, W)`` to logits ``(n, classes)``."""
        shift = self.imprint(images.flatten(1)).relu().sum(dim=1)
        logits: Tensor = self.model(images + shift[:, None, None, None])
        return logits
