"""Payloads that were truncated, padded, altered, or forged by someone who knows the format."""

import tracemalloc
from dataclasses import replace

import numpy as np
import pytest
import torch

from fl_sim.coding.payload import Payload, PayloadError
from fl_sim.quantizers import parse_quantizer
from fl_sim.testing import quantizers
from tests.fl_sim.quantizers.quantizer_cases import SPECS, layout_of, seeded, update_of

ALTERATIONS = 10_000
FORGERIES = 300
UPDATE = update_of(*(torch.randn(n, generator=seeded(n)) for n in (50, 7, 30)))


@pytest.mark.parametrize("spec", SPECS)
def test_ten_thousand_altered_payloads_are_refused(spec):
    quantizers.check_altered_bytes_are_refused(parse_quantizer(spec), ALTERATIONS)


@pytest.mark.parametrize("spec", SPECS)
def test_forged_bodies_are_refused_or_decode_to_a_finite_update(spec):
    quantizers.check_forged_bodies(parse_quantizer(spec), FORGERIES)


@pytest.mark.parametrize("spec", SPECS)
def test_overlong_bodies_are_refused_before_anything_is_allocated(spec):
    layout = layout_of(40_000)
    quantizer = parse_quantizer(spec.replace("t0*=3,", ""))
    honest = quantizer.body_size(layout)
    forged = Payload(quantizer.spec, bytes(50 * honest), layout, quantizer.version).to_bytes()
    tracemalloc.start()
    try:
        received = Payload.from_bytes(forged, layout)
        tracemalloc.reset_peak()
        before, _ = tracemalloc.get_traced_memory()
        with pytest.raises(PayloadError, match="bytes, not"):
            quantizer.decode(received)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak - before <= 2 * honest


def test_a_payload_of_another_model_is_refused():
    data = parse_quantizer("sign").encode(UPDATE, seeded()).to_bytes()
    with pytest.raises(PayloadError, match="checksum"):
        Payload.from_bytes(data, layout_of(50, 30, 7))


def test_other_versions_are_refused_by_name():
    data = parse_quantizer("sign").encode(UPDATE, seeded()).to_bytes()
    with pytest.raises(PayloadError, match="has format version 3; this code reads 1 and 2"):
        Payload.from_bytes(b"\x03" + data[1:], UPDATE.layout)
    for spec in ("drive", "topk:keep=0.5+eden:bits=2", "error_feedback(drive)"):
        quantizer = parse_quantizer(spec)
        old = replace(quantizer.encode(UPDATE, seeded()), version=1)
        received = Payload.from_bytes(old.to_bytes(), UPDATE.layout)
        for read in (quantizer.decode, quantizer.cell, quantizer.symbols):
            with pytest.raises(PayloadError, match="version 1; this code reads version 2"):
                read(received)


@pytest.mark.parametrize(
    "data", [b"", b"\x01", b"\x01\x00", b"\x02\x00aaaaa", b"\x01\xff" + bytes(9)]
)
def test_fragments_are_refused(data):
    with pytest.raises(PayloadError):
        Payload.from_bytes(data, UPDATE.layout)


@pytest.mark.parametrize(
    ("spec", "offset", "value", "words"),
    [
        ("uniform:bits=3", 0, np.float32("nan").tobytes(), "not finite"),
        ("uniform:bits=3", 0, np.float32(1e30).tobytes(), "above its maximum"),
        ("uniform:levels=5", -2, b"\xff", "below 5"),
        ("absmax:bits=4", 0, np.float32(-1).tobytes(), "negative"),
        ("scaled_sign", 0, np.float32(-1).tobytes(), "negative"),
        ("terngrad", -5, b"\xff", "242"),
        ("natural", 0, b"\xff", "not finite"),
        ("sign", -1, b"\xff", "padding"),
        ("drive", 0, b"\xff" * 4, "negative seed"),
        ("topk:keep=0.1", 0, bytes(8), "kept positions"),
        ("kmeans:clusters=3", 0, np.float32(1e30).tobytes(), "ascend"),
        ("fp16", 0, b"\x00\x7c", "not finite"),
        ("fp8:format=e4m3", -1, b"\x7f", "not finite"),
        ("gaussian:sigma=1", 0, np.float32("inf").tobytes(), "not finite"),
    ],
)
def test_what_no_encoder_sends_is_named(spec, offset, value, words):
    quantizer = parse_quantizer(spec)
    body = bytearray(quantizer.encode(UPDATE, seeded()).body)
    start = offset % len(body)
    body[start : start + len(value)] = value
    with pytest.raises(PayloadError, match=words):
        quantizer.decode(Payload(spec, bytes(body), UPDATE.layout, quantizer.version))
