"""The plan of a malicious server that lets a few images of a batch cause its gradient alone."""

from dataclasses import dataclass
from math import sqrt
from typing import ClassVar, Literal

import torch
from torch import Tensor

from fl_sim.models import ModelSpec
from fl_sim.plans.plan import ServerPlan
from fl_sim.registry import register
from fl_sim.seeding import Purpose, torch_rng
from fl_sim.specs import within
from fl_sim.updates.layers import Layer, find_head
from fl_sim.updates.local_update import flat_model

_MOST_CLASSES = 1 << 20
_MOST_PUBLIC = 1000
_LEAST_SPREAD = 1e-12


@register("server", "fishing")
@dataclass(frozen=True)
class Fishing(ServerPlan):
    """Sets the classifier so that few images move the layers below it.

    The rows of all classes but the target are zero, so that an image reaches the layers below only
    by the logit of the target class: by its probability there less 1 for images of the class, and
    by its probability for others (Wen et al. 2022, arXiv 2202.00580).

    With ``share=1`` the bias of the target is far below the others. Every image of the class then
    has a gradient, and no other image has one (class fishing). The row of the target is left as it
    is trained.

    With a smaller share a feature of the image decides (feature fishing): the target's row is a
    random direction in the space of features, and its bias is a quantile of what public images
    reach there. Below it the model never predicts the target, above it always does. So the images
    of the class below the quantile have a gradient, and of all others those above it. Wen et al.
    take a single feature; a direction sees the whole image where a feature of a convolution sees a
    part of it. No classifier can do both at once, select a class and images within it: the
    gradient of an image is linear in its label. Hence `wanted`.

    It needs a model whose logits are the output of a linear layer with a bias.

    Attributes
    ----------
    target : int
        The class.
    boost : float
        How far the target's bias lies below the others; images of other classes count less than
        those of the target by a factor of about exp(-boost). In feature fishing, change of the
        logit in one standard deviation of the feature.
    share : float
        Share of the wanted images that are to cause the gradient, as measured on public images.
        About 1 / n isolates one image of n.
    wanted : "class" or "others"
        In feature fishing, whose images are wanted: those of the target class, where a client has
        only these; or those of all other classes, where it has none of the class.
    feature : int
        In feature fishing, which of many random directions. Each isolates other images.
    """

    threat: ClassVar[str] = "malicious: sets the classifier to fish for images"
    reader: ClassVar[str] = "active_fishing"

    target: int = 0
    boost: float = 100.0
    share: float = 1.0
    wanted: Literal["class", "others"] = "class"
    feature: int = 0

    def __post_init__(self) -> None:
        within("target", self.target, 0, _MOST_CLASSES)
        within("boost", self.boost, 1, 1e6)
        within("share", self.share, 1e-4, 1)
        within("feature", self.feature, 0, 1 << 20)
        if self.wanted == "others" and not self.by_feature:
            raise ValueError("wanted='others' needs a feature; give a share below 1, such as 0.125")

    @property
    def by_feature(self) -> bool:
        """Whether a feature decides which images cause the gradient, not the class alone."""
        return self.share < 1

    def check(self, model: ModelSpec) -> None:
        """Refuse a model without a linear classifier with a bias, and a class it does not have."""
        head = find_head(model)
        if head is None or head.weight is None or head.bias is None:
            raise ValueError(
                "the plan needs a model whose logits are the output of a linear layer with a bias, "
                f"such as lenet; {model.name!r} is another"
            )
        if self.target >= model.classes:
            raise ValueError(
                f"target={self.target} is not a class of the data; give 0 to {model.classes - 1}"
            )

    def weights(self, model: ModelSpec, weights: Tensor, public: Tensor) -> Tensor:
        """Return the weights with the classifier set; the other layers are left as they are."""
        weight, bias = names_of(find_head(model))
        layout = flat_model(model).layout
        tensors = layout.unflatten(weights.clone())
        others = torch.arange(model.classes) != self.target
        tensors[weight][others] = 0
        tensors[bias] = torch.where(others, 0.0, -self.boost)
        if self.by_feature:
            tensors[weight][self.target] = self._direction(tensors[weight][self.target])
            tensors[bias][self.target] = 0
            reached = self._reached(model, layout.flatten(tensors), public[:_MOST_PUBLIC])
            slope = self.boost / reached.std(correction=0).clamp_min(_LEAST_SPREAD)
            share = self.share if self.wanted == "class" else 1 - self.share
            tensors[weight][self.target] *= slope
            tensors[bias][self.target] = -slope * reached.quantile(share)
        return layout.flatten(tensors)

    def _direction(self, row: Tensor) -> Tensor:
        rng = torch_rng(0, Purpose.PLAN, self.feature)
        return torch.randn(row.shape, generator=rng) / sqrt(row.numel())

    def _reached(self, model: ModelSpec, weights: Tensor, images: Tensor) -> Tensor:
        """Return the target's logit at images, ``(N,)``."""
        flat = flat_model(model)
        with torch.no_grad():
            logits = flat.logits(weights, images)
        reached: Tensor = logits[:, self.target]
        return reached

    def silence(self, model: ModelSpec, weights: Tensor, images: Tensor) -> Tensor:
        """Return how surely images leave the layers below alone, if wanted, ``(N,)``.

        Parameters
        ----------
        model : ModelSpec
            The model that clients are given.
        weights : Tensor
            ``(size,)``, as planted.
        images : Tensor
            ``(N, C, H, W)``, as the model sees them.
        """
        if not self.by_feature:
            return images.new_ones(len(images))
        reached = self._reached(model, weights, images)
        return reached if self.wanted == "class" else -reached

    def is_planted(self, model: ModelSpec, weights: Tensor) -> bool:
        """Tell whether weights are as the plan leaves them, but for the target's row."""
        weight, bias = names_of(find_head(model))
        tensors = flat_model(model).layout.unflatten(weights)
        others = torch.arange(model.classes) != self.target
        return not (tensors[weight][others].any() or tensors[bias][others].any())


def names_of(head: Layer | None) -> tuple[str, str]:
    """Return the names of weight and bias of a classifier that `Fishing.check` lets pass."""
    assert head is not None
    assert head.weight is not None
    assert head.bias is not None
    return head.weight, head.bias
