"""Pack codes of 1 to 31 bits into bytes and back, in a few vector operations on any device.

A code of ``b`` bits is cut into planes whose widths are the powers of two that sum to ``b`` (8 at
most, low bits first: 12 = 8 + 4, 7 = 4 + 2 + 1). Each plane is packed on its own, its first code in
the lowest bits of its first byte, and the planes follow one another; see docs/payload.md.
"""

import numpy as np
import torch
from torch import Tensor

from fl_sim.coding.vectors import empty

MAX_BITS = 31
_CHUNK = 1 << 17  # codes handled at a time: as many as fit a core's own cache


class PackingError(ValueError):
    """Packed bytes that `pack` cannot have returned."""


def code_bits(levels: int) -> int:
    """Return the bits of a code that has ``levels`` values; at least 1."""
    return max(1, (levels - 1).bit_length())


def packed_size(count: int, bits: int) -> int:
    """Return the bytes that ``count`` codes of ``bits`` bits occupy."""
    return sum(-(-count * width // 8) for width in _widths(bits))


def pack(codes: Tensor, bits: int) -> Tensor:
    """Pack integer codes.

    Parameters
    ----------
    codes : Tensor
        ``(n,)`` integers in ``[0, 2**bits)``: uint8 up to 8 bits, int32 above.
    bits : int
        Width of a code, 1 to 31.

    Returns
    -------
    Tensor
        ``(packed_size(n, bits),)`` uint8.
    """
    packed = empty(packed_size(codes.numel(), bits), torch.uint8, codes.device)
    at = shift = 0
    for width in _widths(bits):
        size = packed_size(codes.numel(), width)
        _fold(codes, shift, width, packed[at : at + size])
        at, shift = at + size, shift + width
    return packed


def unpack(packed: Tensor, bits: int, count: int) -> Tensor:
    """Undo `pack`: return ``(count,)`` codes, uint8 up to 8 bits and int32 above.

    Raises
    ------
    PackingError
        If there are too few or too many bytes, or a bit of the padding is set.
    """
    if packed.numel() != packed_size(count, bits):
        raise PackingError(f"{count} codes of {bits} bits do not fill {packed.numel()} bytes.")
    codes = empty(count, torch.uint8 if bits <= 8 else torch.int32, packed.device)
    at = shift = 0
    for width in _widths(bits):
        size = packed_size(count, width)
        _unfold(packed[at : at + size], width, shift, codes)
        at, shift = at + size, shift + width
    return codes


def pack_trits(codes: Tensor) -> Tensor:
    """Pack uint8 codes 0, 1, 2 five to a byte, the first the least significant digit."""
    padded = torch.nn.functional.pad(codes, (0, -codes.numel() % 5)).view(-1, 5)
    packed = padded[:, 4].clone()
    for digit in (3, 2, 1, 0):
        packed.mul_(3).add_(padded[:, digit])
    return packed


def unpack_trits(packed: Tensor, count: int) -> Tensor:
    """Undo `pack_trits`; raise `PackingError` on bytes it cannot have returned."""
    if packed.numel() != packed_trits_size(count):
        raise PackingError(f"{count} trits do not fill {packed.numel()} bytes.")
    digits = torch.empty(packed.numel(), 5, dtype=torch.uint8, device=packed.device)
    rest = packed.clone()
    for digit in range(5):
        digits[:, digit] = rest % 3
        rest //= 3
    codes = digits.view(-1)
    if bool(rest.any()) or bool(codes[count:].any()):
        raise PackingError("A byte of trits is above 242, or its padding is set.")
    return codes[:count]


def packed_trits_size(count: int) -> int:
    """Return the bytes that ``count`` trits occupy."""
    return -(-count // 5)


def _widths(bits: int) -> tuple[int, ...]:
    if not 1 <= bits <= MAX_BITS:
        raise ValueError(f"Codes of 1 to {MAX_BITS} bits can be packed, not of {bits}.")
    powers = tuple(width for width in (4, 2, 1) if bits % 8 & width)
    return (8,) * (bits // 8) + powers


def _fold(codes: Tensor, shift: int, width: int, packed: Tensor) -> None:
    """Pack ``width`` bits of each code, from ``shift`` up: two bytes merge to one."""
    per_byte = 8 // width
    for start in range(0, codes.numel(), _CHUNK):
        plane = codes[start : start + _CHUNK]
        if plane.dtype != torch.uint8 or shift:
            plane = plane >> shift
        plane = (plane & ((1 << width) - 1)).to(torch.uint8)
        if width == 1 and plane.device.type == "cpu":  # several times as fast as folding
            plane = torch.from_numpy(np.packbits(plane.numpy(), bitorder="little"))
            packed[start // 8 :][: plane.numel()] = plane
            continue
        if plane.numel() % per_byte:
            plane = torch.nn.functional.pad(plane, (0, -plane.numel() % per_byte))
        bits = width
        while bits < 8:
            pairs = plane.view(torch.int16)
            plane = (pairs >> (8 - bits)).bitwise_or_(pairs).to(torch.uint8)
            bits *= 2
        packed[start // per_byte :][: plane.numel()] = plane


def _unfold(packed: Tensor, width: int, shift: int, codes: Tensor) -> None:
    """Undo `_fold` by doubling, a byte spreads over an int16; other bits of ``codes`` stay."""
    step = _CHUNK * width // 8
    for start in range(0, packed.numel(), step):
        plane = packed[start : start + step]
        bits = 8
        while bits > width:
            bits //= 2
            pairs = plane.to(torch.int16)
            mask = ((1 << bits) - 1) * 0x0101
            plane = (pairs << (8 - bits)).bitwise_or_(pairs).bitwise_and_(mask).view(torch.uint8)
        target = codes[start * 8 // width :][: plane.numel()]
        if target.numel() < plane.numel():
            if bool(plane[target.numel() :].any()):
                raise PackingError("A bit of the padding is set.")
            plane = plane[: target.numel()]
        if shift:
            target |= plane.to(codes.dtype) << shift
        else:
            target.copy_(plane)
