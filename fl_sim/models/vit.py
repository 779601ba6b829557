"""A small vision transformer (Dosovitskiy et al. 2021, arXiv 2010.11929)."""

import torch
from torch import Tensor, nn

from fl_sim.models.spec import ModelSpec
from fl_sim.registry import register
from fl_sim.specs import within

_MOST_WIDTH, _MOST_LAYERS, _MOST_SIDE = 1024, 24, 64


@register("model", "vit")
class VisionTransformer(nn.Module):
    """Patches as tokens, transformer layers without dropout, and the mean token classified.

    0.46 million parameters on 32x32 images.

    Parameters
    ----------
    spec : ModelSpec
        The model as a whole.
    patch : int
        Side of a patch; it must divide both sides of the images.
    width : int
        Elements of a token.
    layers : int
        Transformer layers, normalised before attention and before the perceptron.
    heads : int
        Heads of each attention; it must divide the width.
    """

    def __init__(
        self, spec: ModelSpec, *, patch: int = 4, width: int = 96, layers: int = 4, heads: int = 3
    ) -> None:
        super().__init__()
        within("patch", patch, 1, _MOST_SIDE)
        within("width", width, 1, _MOST_WIDTH)
        within("layers", layers, 1, _MOST_LAYERS)
        within("heads", heads, 1, width)
        channels, rows, columns = spec.shape
        if rows % patch or columns % patch:
            raise ValueError(f"patch={patch} does not divide the sides of {rows}x{columns} images.")
        if width % heads:
            raise ValueError(f"heads={heads} does not divide width={width}.")
        self.embed = nn.Conv2d(channels, width, patch, stride=patch)
        tokens = (rows // patch) * (columns // patch)
        self.position = nn.Parameter(torch.randn(1, tokens, width) * 0.02)
        self.body = nn.Sequential(
            *(
                nn.TransformerEncoderLayer(
                    width,
                    heads,
                    4 * width,
                    dropout=0.0,
                    activation="gelu",
                    batch_first=True,
                    norm_first=True,
                )
                for _ in range(layers)
            ),
            nn.LayerNorm(width),
        )
        self.head = nn.Linear(width, spec.classes)

    def forward(self, images: Tensor) -> Tensor:
        """Map images ``(n, C, H, W)`` to logits ``(n, classes)``."""
        tokens = self.embed(images).flatten(2).transpose(1, 2) + self.position
        logits: Tensor = self.head(self.body(tokens).mean(dim=1))
        return logits
