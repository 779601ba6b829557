"""The plan of a malicious server that plants an imprint layer to read clients' images."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from fl_sim.models import ModelSpec
from fl_sim.plans.plan import ServerPlan
from fl_sim.registry import register
from fl_sim.specs import within
from fl_sim.updates.local_update import flat_model

_MOST_BINS = 4096


@register("server", "imprint")
@dataclass(frozen=True)
class Imprint(ServerPlan):
    """Puts a layer in front of the model that sorts images by brightness, and sets it every round.

    Every unit measures the mean brightness of an image; their biases are quantiles of that
    brightness over public images, so that unit k passes what is brighter than the k-th quantile
    ("Robbing the Fed", Fowl et al. 2022, arXiv 2110.13057). Units are divided by their number, so
    that the layer brightens a picture by less than its own brightness.

    Attributes
    ----------
    bins : int
        Units; two images of a batch of 8 share a bin of 128 once in five batches.
    """

    threat: ClassVar[str] = "malicious: plants an imprint layer"
    reader: ClassVar[str] = "active_imprint"

    bins: int = 128

    def __post_init__(self) -> None:
        within("bins", self.bins, 2, _MOST_BINS)

    def model(self, name: str) -> str:
        """Return the model behind an imprint layer."""
        return f"imprint:bins={self.bins}({name})"

    def first_layer(self, model: ModelSpec) -> tuple[str, str]:
        """Return the names of the imprint layer."""
        del model
        return "imprint.weight", "imprint.bias"

    def check(self, model: ModelSpec) -> None:
        """Refuse a model that has no imprint layer of this many units in front."""
        if dict(flat_model(model).layout.segments).get("imprint.bias") != (self.bins,):
            raise ValueError(
                f"the plan needs a model behind an imprint layer of {self.bins} units, such as "
                f"{self.model('lenet')}; {model.name!r} is another"
            )

    def weights(self, model: ModelSpec, weights: Tensor, public: Tensor) -> Tensor:
        """Return the weights with the imprint layer set; the other layers are left as they are."""
        layout = flat_model(model).layout
        tensors = layout.unflatten(weights.clone())
        set_bins(tensors, public)
        return layout.flatten(tensors)


def set_bins(tensors: dict[str, Tensor], public: Tensor) -> None:
    """Set the units of an imprint layer so that each passes what is brighter than its quantile.

    Parameters
    ----------
    tensors : dict of str to Tensor
        Weights by name; ``imprint.weight`` and ``imprint.bias`` are set in place.
    public : Tensor
        ``(N, C, H, W)`` public images in [0, 1].
    """
    pixels, bins = public[0].numel(), len(tensors["imprint.bias"])
    thresholds = quantiles(public.flatten(1).mean(dim=1), bins)
    thresholds[0] = -1 / pixels  # below black: the first unit sees every image
    nn.init.constant_(tensors["imprint.weight"], 1 / (pixels * bins))
    tensors["imprint.bias"] = -thresholds / bins


def quantiles(brightness: Tensor, bins: int) -> Tensor:
    """Return the lower limits ``(bins,)`` of bins that hold equally many of ``(N,)`` values."""
    return brightness.quantile(torch.arange(bins) / bins)
