"""How an attack learns the labels of a batch: from the update itself, or along with the images."""

from typing import Literal, get_args

import torch
from torch import Tensor

from attacker.problems import Problems

LabelStrategy = Literal["joint", "analytic"]
LABEL_STRATEGIES: tuple[str, ...] = get_args(LabelStrategy)


def recover_labels(problems: Problems) -> Tensor:
    """Recover the labels of every batch, as counts, from the last layer's gradient.

    The gradient of the last bias is the mean of (predicted probability - one-hot label), so class
    c occurs n (p_c - b_c) times. For n = 1 only the true class can be negative (iDLG, Zhao et al.
    2020). For larger batches p is guessed as the mean prediction at noise images, and labels are
    handed out one by one to the class with the largest remaining count (after Geng et al. 2021).

    Returns
    -------
    Tensor
        ``(B, n)`` int64, sorted in each row.
    """
    bias = problems.decoded(-1)
    if problems.work.images == 1:
        return bias.argmin(dim=1, keepdim=True)
    counts = problems.work.images * (problems.mean_prediction - bias)
    handed_out = torch.zeros_like(counts)
    for _ in range(problems.work.images):
        first = (counts - handed_out).argmax(dim=1, keepdim=True)
        handed_out.scatter_add_(1, first, torch.ones_like(counts[:, :1]))
    classes = torch.arange(counts.shape[1])
    return torch.stack([classes.repeat_interleave(row.long()) for row in handed_out])
