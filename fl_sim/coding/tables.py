"""Values to codes of a sorted table and back, in pieces that stay in cache."""

import torch
from torch import Tensor

from fl_sim.coding.groups import spans
from fl_sim.coding.memory import empty


def find_codes(values: Tensor, edges: Tensor, codes: Tensor) -> None:
    """Write to ``codes`` between which ascending ``edges`` each value lies."""
    for span in spans(values.numel()):
        codes[span] = torch.bucketize(values[span], edges, out_int32=True)


def look_up(table: Tensor, codes: Tensor) -> Tensor:
    """Return ``table[codes]``."""
    values = empty(codes.numel(), torch.float32, codes.device)
    for span in spans(codes.numel()):
        values[span] = table.take(codes[span].long())
    return values
