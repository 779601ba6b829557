"""Audit the app: ``python audit.py runs/resnet``. Attacks what its server saw."""

import sys
from pathlib import Path

import torch
from resnet.task import (
    IMAGES_PER_CLIENT,
    MEAN,
    MOMENTUM,
    STD,
    WEIGHT_DECAY,
    Net,
    load_images,
    load_test_images,
)

from fl_sim import LocalWork
from results import print_audit
from server import audit


def main(out: Path, attack: str = "cell") -> None:
    """Print how well each client's images are reconstructed, and what that is worth."""
    torch.manual_seed(0)
    work = LocalWork(
        "delta",
        batch_size=IMAGES_PER_CLIENT,
        learning_rate=0.1,
        momentum=MOMENTUM,
        weight_decay=WEIGHT_DECAY,
        shuffled=True,
        augmented=True,
        mean=MEAN,
        std=STD,
    )
    facts = {"shape": (1, 8, 8), "classes": 10, "work": work}
    found = audit(out / "observations", Net, attacks=[attack], **facts)
    public, _ = load_test_images()
    print_audit(found.observations, found, lambda turn, client: load_images(client, turn), public)


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "runs/resnet"))
