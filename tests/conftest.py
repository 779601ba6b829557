"""Shared fixtures: the real images beside the checkout, and one torch thread a process."""

from pathlib import Path

import pytest
import torch

torch.set_num_threads(1)

SHARED_DATA = Path(__file__).parent.parent.parent / "shared" / "data"


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Return the folder of real CIFAR-10 and MNIST images; skip where it is missing."""
    if not SHARED_DATA.is_dir():
        pytest.skip("../shared/data with CIFAR-10 and MNIST images is not beside the checkout")
    return SHARED_DATA
