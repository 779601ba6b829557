"""What some settings may be, apart from the code that does it: the help needs no PyTorch."""

from typing import Literal

UpdateKind = Literal["gradient", "delta"]

Schedule = Literal["constant", "linear", "cosine"]

MODEL_NAMES = ("lenet_dlg", "lenet", "convnet", "mlp", "cnn", "resnet18", "resnet20", "vit")
DATASET_NAMES = (
    "digits",
    "mnist",
    "fashion_mnist",
    "cifar10",
    "cifar100",
    "svhn",
    "folder",
    "parquet",
)
PARTITION_NAMES = ("iid", "dirichlet", "pathological")
SERVER_NAMES = (
    "curious",
    "imprint",
    "traps",
    "thresholds",
    "ares",
    "fishing",
    "loki",
    "inconsistent",
)
"""Names that come along with this project; a plug-in adds others."""

MAX_IMAGES = 1 << 20
"""Images in one update, at most."""

MAX_SUMMED = 1023
"""Clients whose integers of 22 bits add up below the modulus of 2^32 of secure aggregation."""
