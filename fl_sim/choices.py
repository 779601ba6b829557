"""What some settings may be, apart from the code that does it: the help needs no PyTorch."""

from typing import Literal

UpdateKind = Literal["gradient", "delta"]

MODEL_NAMES = ("lenet_dlg", "lenet", "convnet", "mlp", "resnet18", "imprint_lenet")
"""The models of `fl_sim.models.MODELS`, which others may be added to."""

MAX_IMAGES = 1 << 20
"""Images in one update, at most."""
