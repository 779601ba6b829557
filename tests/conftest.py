"""Shared fixtures: real images beside the checkout, one torch thread a process, no time limits."""

import os
from collections import Counter
from pathlib import Path

import pytest
import torch
from hypothesis import settings

torch.set_num_threads(1)
settings.register_profile("any machine", deadline=None)
settings.load_profile("any machine")

os.environ.setdefault("RAY_worker_niceness", "0")  # or other tests starve what runs on Ray

SHARED_DATA = Path(__file__).parent.parent.parent / "shared" / "data"


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Return the folder of real CIFAR-10 and MNIST images; skip where it is missing."""
    if not SHARED_DATA.is_dir():
        pytest.skip("../shared/data with CIFAR-10 and MNIST images is not beside the checkout")
    return SHARED_DATA


def pytest_terminal_summary(terminalreporter) -> None:
    """Say in one line what was skipped, and why."""
    skipped = terminalreporter.stats.get("skipped", ())
    reasons = Counter(report.longrepr[2].removeprefix("Skipped: ") for report in skipped)
    if reasons:
        told = "; ".join(f"{count} ({reason})" for reason, count in reasons.most_common())
        terminalreporter.write_line(f"skipped: {told}")
