"""Images, and who holds them."""

from fl_sim.data.datasets import Images, Splits, data_digest, load_splits
from fl_sim.data.partitions import Federation, load_federation, private_batch

__all__ = [
    "Federation",
    "Images",
    "Splits",
    "data_digest",
    "load_federation",
    "load_splits",
    "private_batch",
]
