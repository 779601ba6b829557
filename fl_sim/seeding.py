"""Every random draw of a run, from one seed and a purpose, so that none depends on order."""

from enum import IntEnum

import numpy as np
import torch


class Purpose(IntEnum):
    """What a stream of random numbers is for; the first element of its spawn key."""

    SPLIT = 0
    PARTITION = 1
    MODEL = 2
    CLIENT_SAMPLING = 3
    BATCH = 4
    QUANTIZER = 5
    ATTACK = 6
    VICTIMS = 7
    BOOTSTRAP = 8
    CONTROL = 10
    TUNING = 11
    EVIDENCE = 12
    PLAN = 13
    ORDER = 14
    SECURE_SUM = 15
    PRETRAINING = 16


def numpy_rng(seed: int, purpose: Purpose, *keys: int) -> np.random.Generator:
    """Return the NumPy generator of ``purpose``, e.g. ``numpy_rng(0, Purpose.BATCH, round, 3)``."""
    return np.random.default_rng(_sequence(seed, purpose, keys))


def torch_rng(
    seed: int, purpose: Purpose, *keys: int, device: torch.device | str = "cpu"
) -> torch.Generator:
    """Return the torch generator of ``purpose`` on ``device``."""
    state = int(_sequence(seed, purpose, keys).generate_state(1, np.uint64)[0] >> np.uint64(1))
    return torch.Generator(device=device).manual_seed(state)


def _sequence(seed: int, purpose: Purpose, keys: tuple[int, ...]) -> np.random.SeedSequence:
    return np.random.SeedSequence(seed, spawn_key=(int(purpose), *keys))
