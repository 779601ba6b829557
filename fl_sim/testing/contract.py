"""What all checks share: the error they raise, and a check of where random numbers come from."""

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import numpy as np
import torch

Made = TypeVar("Made")


class ContractError(AssertionError):
    """A part that does not keep a promise; the message says which."""


def require(kept: object, message: str) -> None:
    """Raise `ContractError` with a message unless a promise is kept."""
    if not kept:
        raise ContractError(message)


def make_twice(what: str, make: Callable[[], Made]) -> tuple[Made, Made]:
    """Call a function at two global random states.

    Parameters
    ----------
    what : str
        What the function makes, for messages.
    make : callable
        The function; it must not change the random states of Python, NumPy and PyTorch.

    Returns
    -------
    tuple
        What both calls returned: the caller compares the two.

    Raises
    ------
    ContractError
        If a call changes a global random state.
    """
    with _seeded(1):
        first = _make(what, make)
    with _seeded(2):
        return first, _make(what, make)


def _make(what: str, make: Callable[[], Made]) -> Made:
    before = _states()
    made = make()
    for library, state in _states().items():
        require(
            state == before[library],
            f"{what} changes the global random state of {library}; "
            "draw from a generator of its own",
        )
    return made


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Seed the global random states; restore them at the end."""
    python, numpy = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(devices=[]):
            random.seed(seed)
            np.random.seed(seed)
            torch.manual_seed(seed)
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)


def _states() -> dict[str, object]:
    _, numpy_words, *numpy_place = np.random.get_state(legacy=True)
    return {
        "Python": random.getstate(),
        "NumPy": (numpy_words.tobytes(), *numpy_place),  # type: ignore[union-attr]
        "PyTorch": torch.random.get_rng_state().numpy().tobytes(),
    }
