"""Large buffers without their page faults, which cost more than quantizing does."""

import numpy as np
import torch
from torch import Tensor

_LARGE = 1 << 20  # elements; NumPy asks for huge pages from 4 MB up


def empty(size: int, dtype: torch.dtype, device: torch.device | str = "cpu") -> Tensor:
    """Return an uninitialised ``(size,)`` tensor.

    On the CPU its memory comes from NumPy, which asks the kernel for huge pages; the first touch
    of 100 MB then takes about a tenth of the time (see benchmarks/quantizers.py).
    """
    if torch.device(device).type != "cpu" or size < _LARGE:
        return torch.empty(size, dtype=dtype, device=device)
    return torch.from_numpy(np.empty(size * dtype.itemsize, dtype=np.uint8)).view(dtype)
