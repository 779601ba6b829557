"""Test accuracy and loss of the global model, measured by the server."""

import torch
from torch import Tensor

from fl_sim.data import Images
from fl_sim.updates.local_update import FlatModel, LocalWork

_CHUNK = 512


def evaluate(
    model: FlatModel, work: LocalWork, weights: Tensor, statistics: Tensor, test: Images
) -> tuple[float, float]:
    """Return test accuracy in [0, 1] and mean cross-entropy in nats.

    BatchNorm layers normalise by the running ``statistics``, as in evaluation mode.
    """
    correct, loss = 0, 0.0
    with torch.no_grad():
        for start in range(0, len(test), _CHUNK):
            rows = slice(start, start + _CHUNK)
            logits = model.logits(weights, work.inputs(test.pixels(rows)), statistics)
            labels = test.labels[rows]
            correct += int((logits.argmax(dim=1) == labels).sum())
            loss += float(torch.nn.functional.cross_entropy(logits, labels, reduction="sum"))
    return correct / len(test), loss / len(test)
