"""How every process of ours computes: with one thread, and in memory that it keeps."""

import ctypes
import sys

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # parameters of glibc's mallopt
_MOST = 2**31 - 1  # bytes; mallopt takes an int


def set_up_process() -> None:
    """Use one thread, in linear algebra too, and keep the memory that tensors free.

    Tensors are small, and work is spread over processes. Sums are then the same on every machine.
    """
    import torch  # noqa: PLC0415 - not for --help
    from threadpoolctl import threadpool_limits  # noqa: PLC0415 - finds libraries that are loaded

    torch.set_num_threads(1)
    threadpool_limits(1)
    keep_freed_memory()


def keep_freed_memory() -> bool:
    """Keep the memory that large tensors free for the next ones; return whether this can be done.

    The C library of Linux gives large blocks back to the system as they are freed, and the system
    clears every page of the next one: up to half of the time of a convolutional network. Other
    systems are left as they are.

    Notes
    -----
    ``mallopt(3)``, ``M_MMAP_THRESHOLD`` and ``M_TRIM_THRESHOLD``.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    return mallopt is not None and all(
        mallopt(parameter, _MOST) == 1 for parameter in (_MMAP_THRESHOLD, _TRIM_THRESHOLD)
    )
