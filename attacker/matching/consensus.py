"""What several guesses at the same images agree on: which is which, and their mean."""

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

_OTHER_LABEL = 100.0  # cost of taking images of different labels for one; that of pixels is below 1


def merged(images: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Return the mean of several guesses at each batch.

    Parameters
    ----------
    images : Tensor
        ``(B, K, n, C, H, W)``: K guesses at each of B batches, each in an order of its own.
    targets : Tensor
        ``(B, K, n, classes)``.

    Returns
    -------
    tuple of Tensor
        ``(B, n, C, H, W)`` and ``(B, n, classes)``, in the order of the first guesses.
    """
    order = _orders(images, targets)
    return _reordered(images, order).mean(dim=1), _reordered(targets, order).mean(dim=1)


def agreed(images: Tensor, targets: Tensor) -> Tensor:
    """Return for each image of each guess the mean of what all guesses take it for.

    Parameters
    ----------
    images, targets : Tensor
        As of `merged`.

    Returns
    -------
    Tensor
        ``(B, K, n, C, H, W)``.
    """
    order = _orders(images, targets)
    mean = _reordered(images, order).mean(dim=1, keepdim=True)
    return _reordered(mean.expand_as(images), order.argsort(dim=2))


def _orders(images: Tensor, targets: Tensor) -> Tensor:
    """Return ``(B, K, n)``: which image of each guess is which of the first.

    Guesses are assigned to the mean of those before them: the least squares of pixels, among images
    of the same label where there are as many.
    """
    return torch.stack([_order(*batch) for batch in zip(images.cpu(), targets.cpu(), strict=True)])


def _order(images: Tensor, targets: Tensor) -> Tensor:
    orders = [torch.arange(images.shape[1])]
    total = images[0]
    for number in range(1, len(images)):
        pixels = _distances(total / number, images[number])
        cost = pixels + _OTHER_LABEL * _distances(targets[0], targets[number])
        orders.append(torch.from_numpy(linear_sum_assignment(cost.nan_to_num().numpy())[1]))
        total = total + images[number][orders[-1]]
    return torch.stack(orders)


def _distances(ones: Tensor, others: Tensor) -> Tensor:
    """Return the mean squared distance ``(n, m)`` of every one to every other."""
    return (ones[:, None] - others[None]).square().flatten(2).mean(dim=2)


def _reordered(values: Tensor, order: Tensor) -> Tensor:
    """Return values ``(B, K, n, ...)`` in the order ``(B, K, n)`` of their third dimension."""
    index = order.to(values.device).view(*order.shape, *(1,) * (values.dim() - 3))
    return values.take_along_dim(index, dim=2)
