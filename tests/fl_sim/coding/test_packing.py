"""Packed codes come back as they were, in the order of bits the documentation gives."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fl_sim.coding.packing import (
    PackingError,
    code_bits,
    pack,
    pack_trits,
    packed_size,
    packed_trits_size,
    unpack,
    unpack_trits,
)
from tests.fl_sim.quantizers.quantizer_cases import seeded


def codes_of(count: int, bits: int) -> torch.Tensor:
    codes = torch.randint(0, 1 << bits, (count,), generator=seeded(count * 32 + bits))
    return codes.to(torch.uint8 if bits <= 8 else torch.int32)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(count=st.integers(0, 70), bits=st.integers(1, 31))
def test_codes_round_trip_in_the_promised_size(count, bits):
    codes = codes_of(count, bits)
    packed = pack(codes, bits)
    assert packed.dtype == torch.uint8
    assert packed.numel() == packed_size(count, bits)
    assert count * bits <= 8 * packed.numel() < count * bits + 8 * (bits.bit_count() + 1)
    assert torch.equal(unpack(packed, bits, count), codes)


@pytest.mark.parametrize("bits", [1, 3, 4, 7, 8, 12])
def test_codes_that_span_several_chunks_round_trip(bits):
    codes = codes_of(300_001, bits)
    assert torch.equal(unpack(pack(codes, bits), bits, 300_001), codes)


def test_order_of_bits_is_as_documented():
    assert pack(torch.tensor([1, 2, 15], dtype=torch.uint8), 4).tolist() == [0x21, 0x0F]
    ones = torch.tensor([1, 0, 0, 1, 0, 0, 0, 0, 1], dtype=torch.uint8)
    assert pack(ones, 1).tolist() == [0b1001, 1]
    # Three bits are a plane of their low two, then a plane of their high one.
    assert pack(torch.tensor([5, 3], dtype=torch.uint8), 3).tolist() == [0b1101, 0b01]
    assert pack(torch.tensor([0x1FE], dtype=torch.int32), 9).tolist() == [0xFE, 1]


@pytest.mark.parametrize(("bits", "count"), [(1, 3), (2, 3), (4, 1), (3, 1), (12, 1)])
def test_padding_must_be_zero(bits, count):
    packed = pack(codes_of(count, bits), bits)
    packed[-1] |= 0x80
    with pytest.raises(PackingError, match="padding"):
        unpack(packed, bits, count)


def test_wrong_sizes_are_refused():
    for change in (-1, 1):
        with pytest.raises(PackingError, match="do not fill"):
            unpack(torch.zeros(packed_size(10, 4) + change, dtype=torch.uint8), 4, 10)
        with pytest.raises(PackingError, match="do not fill"):
            unpack_trits(torch.zeros(2 + change, dtype=torch.uint8), 10)


@pytest.mark.parametrize("bits", [0, 32])
def test_widths_out_of_range_are_refused(bits):
    with pytest.raises(ValueError, match="1 to 31 bits"):
        packed_size(1, bits)


@settings(max_examples=50, deadline=None, derandomize=True)
@given(count=st.integers(0, 40))
def test_trits_round_trip_five_to_a_byte(count):
    codes = torch.randint(0, 3, (count,), generator=seeded(count)).to(torch.uint8)
    packed = pack_trits(codes)
    assert packed.numel() == packed_trits_size(count) == -(-count // 5)
    assert torch.equal(unpack_trits(packed, count), codes)


@pytest.mark.parametrize("byte", [243, 255, 3])
def test_trits_out_of_range_or_in_the_padding_are_refused(byte):
    with pytest.raises(PackingError, match="242"):
        unpack_trits(torch.tensor([byte], dtype=torch.uint8), 1)


def test_code_bits():
    assert [code_bits(levels) for levels in (1, 2, 3, 4, 5, 120, 256, 257)] == [
        1, 1, 2, 2, 3, 7, 8, 9,
    ]  # fmt: skip
