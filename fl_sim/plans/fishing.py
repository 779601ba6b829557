"""The plan of a malicious server that lets one class alone cause the gradient of a batch."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from fl_sim.models import ModelSpec
from fl_sim.plans.plan import ServerPlan
from fl_sim.registry import register
from fl_sim.specs import within
from fl_sim.updates.layers import Layer, find_head
from fl_sim.updates.local_update import flat_model

_MOST_CLASSES = 1 << 20


@register("server", "fishing")
@dataclass(frozen=True)
class Fishing(ServerPlan):
    """Sets the classifier so that images of one class alone move the layers below it.

    The rows of all other classes are zero, and the bias of the target class is far below theirs.
    The model then predicts every other class with the same probability, and the target class never.
    So an image of another class has no gradient below the classifier. An image of the target class
    has that of its logit. The update of a batch of n images is the update of those of the target
    class divided by n, but for the rows of other classes (class fishing, Wen et al. 2022, arXiv
    2202.00580).

    It needs a model whose logits are the output of a linear layer with a bias. The row of the
    target class is left as it is trained.

    Attributes
    ----------
    target : int
        The class whose images are wanted.
    boost : float
        How far the target's bias lies below the others; images of other classes count less than
        those of the target by a factor of about exp(-boost).
    """

    threat: ClassVar[str] = "malicious: sets the classifier to fish for one class"
    reader: ClassVar[str] = "active_fishing"

    target: int = 0
    boost: float = 100.0

    def __post_init__(self) -> None:
        within("target", self.target, 0, _MOST_CLASSES)
        within("boost", self.boost, 1, 1e6)

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
        del public
        weight, bias = names_of(find_head(model))
        layout = flat_model(model).layout
        tensors = layout.unflatten(weights.clone())
        others = torch.arange(model.classes) != self.target
        tensors[weight][others] = 0
        tensors[bias] = torch.where(others, 0.0, -self.boost)
        return layout.flatten(tensors)


def names_of(head: Layer | None) -> tuple[str, str]:
    """Return the names of weight and bias of a classifier that `Fishing.check` lets pass."""
    assert head is not None
    assert head.weight is not None
    assert head.bias is not None
    return head.weight, head.bias
