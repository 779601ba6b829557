"""Which of the images that were read off a batch belongs to which of its labels."""

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torch.func import jacrev

from attacker.matching.labels import recover_labels
from attacker.matching.problems import Problems
from fl_sim.updates.layers import Layer


def expected_slopes(problems: Problems, images: Tensor, layer: Layer) -> Tensor:
    """Return the gradient of a layer's bias that each image alone would give with each label.

    The probabilities less the label, times how the logits change with the bias.

    Parameters
    ----------
    problems : Problems
        A batch of B, which share their weights.
    images : Tensor
        ``(B, n, C, H, W)``.
    layer : Layer
        With K units.

    Returns
    -------
    Tensor
        ``(B, n, classes, K)``.
    """
    model = problems.flat_model
    tensors = model.layout.unflatten(problems.weights)
    bias = tensors[str(layer.bias)]

    def logits(moved: Tensor, image: Tensor) -> Tensor:
        weights = model.layout.flatten(tensors | {str(layer.bias): moved})
        return model.logits(weights, image[None])[0]

    each = []
    for image in images.flatten(0, 1):
        slopes = jacrev(logits)(bias, image)  # (classes, K)
        odds = logits(bias, image).softmax(dim=0)
        each.append((odds @ slopes - slopes).detach())
    return torch.stack(each).reshape(*images.shape[:2], *each[0].shape)


def in_order_of_labels(problems: Problems, images: Tensor, errors: Tensor) -> Tensor:
    """Return images ``(B, n, C, H, W)`` in the order of `recover_labels`.

    Parameters
    ----------
    problems : Problems
        A batch of B.
    images : Tensor
        In any order.
    errors : Tensor
        ``(B, n, classes)``: how badly each label suits each image.
    """
    ordered = []
    for batch, costs, own in zip(images, errors, recover_labels(problems), strict=True):
        order = linear_sum_assignment(costs[:, own].T.detach().numpy())[1].tolist()
        ordered.append(batch[order])
    return torch.stack(ordered)
