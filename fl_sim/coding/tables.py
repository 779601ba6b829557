"""Values to codes of a sorted table and back, in pieces that stay in cache."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fl_sim.coding.groups import spans
from fl_sim.coding.memory import empty

_FEW_EDGES = 64  # up to which comparing with each edge is faster than searching among all


def find_codes(values: Tensor, edges: Tensor, codes: Tensor) -> None:
    """Write to ``codes``, for each value, how many of the ascending ``edges`` are below it."""
    few = len(edges) <= _FEW_EDGES and values.device.type == "cpu"
    for span in spans(values.numel()):
        if few:
            _count_edges_below(values[span].numpy(), edges.numpy(), codes[span].numpy())
        else:
            codes[span] = torch.bucketize(values[span], edges, out_int32=True)


def _count_edges_below(
    values: NDArray[np.float32], edges: NDArray[np.float32], counts: NDArray[np.generic]
) -> None:
    above = np.empty(values.shape, dtype=bool)
    counts.fill(0)
    for edge in edges:
        np.greater(values, edge, out=above)
        np.add(counts, above.view(np.uint8), out=counts, casting="unsafe")


def look_up(table: Tensor, codes: Tensor) -> Tensor:
    """Return ``table[codes]``."""
    values = empty(codes.numel(), torch.float32, codes.device)
    for span in spans(codes.numel()):
        torch.index_select(table, 0, codes[span].int(), out=values[span])
    return values
