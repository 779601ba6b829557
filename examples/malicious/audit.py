"""Audit the app: ``python audit.py runs/malicious``. Reads what its server planted."""

import sys
from pathlib import Path

import torch
from planted.task import IMAGES_PER_CLIENT, Net, load_images, load_public_images

from fl_sim import LocalWork
from results import print_audit
from server import audit


def main(out: Path) -> None:
    """Print how well each client's images are reconstructed, and what that is worth."""
    torch.manual_seed(0)
    # One epoch over eight images in one batch is one step of SGD with the learning rate.
    work = LocalWork("delta", batch_size=IMAGES_PER_CLIENT, learning_rate=0.1)
    facts = {"shape": (1, 8, 8), "classes": 10, "work": work}
    found = audit(out / "observations", Net, attacks=["active_traps"], **facts)
    public, _ = load_public_images()
    print_audit(found.observations, found, lambda _, client: load_images(client), public)


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "runs/malicious"))
