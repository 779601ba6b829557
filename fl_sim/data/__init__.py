"""Images, and who holds them."""

from fl_sim.data import hub  # noqa: F401 - it registers itself
from fl_sim.data.datasets import Images, Splits, load_splits
from fl_sim.data.partitions import Federation, load_federation, private_batch, private_rows

__all__ = [
    "Federation",
    "Images",
    "Splits",
    "load_federation",
    "load_splits",
    "private_batch",
    "private_rows",
]
