"""The body of a payload: tensors to bytes, and back with a check of every value."""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from fl_sim.coding.packing import (
    PackingError,
    code_bits,
    packed_size,
    packed_trits_size,
    unpack,
    unpack_trits,
)
from fl_sim.coding.payload import PayloadError
from fl_sim.coding.vectors import empty
from fl_sim.updates.local_update import all_finite

FLOAT = 4  # bytes of a float32


def to_bytes(*parts: Tensor) -> bytes:
    """Concatenate the little-endian bytes of contiguous tensors."""
    return b"".join(part.contiguous().view(torch.uint8).cpu().numpy().data for part in parts)


def codes_buffer(size: int, levels: int, device: torch.device) -> Tensor:
    """Return an uninitialised buffer for codes below ``levels``, of the type `pack` takes."""
    return empty(size, torch.uint8 if levels <= 256 else torch.int32, device)


def byte_planes(codes: Tensor, levels: int) -> list[Tensor]:
    """Cut unpacked codes into bytes, all low ones first, which an entropy coder codes best."""
    shifts = range(0, code_bits(levels), 8)
    return [((codes >> shift) & 0xFF).to(torch.uint8) for shift in shifts]


class Reader:
    """Reads a body of known size from front to back."""

    def __init__(self, body: bytes) -> None:
        self._bytes = empty(len(body), torch.uint8)
        self._bytes.numpy()[:] = np.frombuffer(body, dtype=np.uint8)
        self._at = 0

    def take(self, size: int) -> Tensor:
        """Return the next ``size`` bytes as a uint8 view."""
        if self._at + size > self._bytes.numel():
            raise PayloadError(f"The body of {self._bytes.numel()} bytes ends too early.")
        self._at += size
        return self._bytes[self._at - size : self._at]

    def floats(self, *shape: int) -> Tensor:
        """Return the next float32 values; refuse any that is not finite."""
        count = int(torch.Size(shape).numel())
        values = self.take(count * FLOAT).clone().view(torch.float32)
        return refuse_nonfinite(values).view(shape)

    def integer(self) -> int:
        """Return the next int32; refuse a negative one."""
        value = int(self.take(4).clone().view(torch.int32))
        if value < 0:
            raise PayloadError("The payload holds a negative seed.")
        return value

    def magnitudes(self, *shape: int) -> Tensor:
        """Return the next float32 values; refuse any that is negative or not finite."""
        values = self.floats(*shape)
        if bool((values < 0).any()):
            raise PayloadError("The payload holds a negative scale.")
        return values

    def codes(self, count: int, levels: int) -> Tensor:
        """Return the next ``count`` packed codes; refuse any that is not below ``levels``."""
        bits = code_bits(levels)
        codes = _checked(unpack, self.take(packed_size(count, bits)), bits, count)
        if levels != 1 << bits and count and int(codes.max()) >= levels:
            raise PayloadError(f"A code is not below {levels}.")
        return codes

    def trits(self, count: int) -> Tensor:
        """Return the next ``count`` codes 0, 1, 2, packed five to a byte."""
        return _checked(unpack_trits, self.take(packed_trits_size(count)), count)


def _checked(unpacking: Callable[..., Tensor], *arguments: object) -> Tensor:
    try:
        return unpacking(*arguments)
    except PackingError as error:
        raise PayloadError(str(error)) from error


def refuse_nonfinite(values: Tensor) -> Tensor:
    """Return ``values``, or raise `PayloadError` if one is not finite."""
    if not all_finite(values):
        raise PayloadError("The payload holds a value that is not finite.")
    return values
