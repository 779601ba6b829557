"""What every quantizer promises, whatever its map."""

import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings

from fl_sim.coding.payload import PayloadError
from fl_sim.quantizers import parse_quantizer
from fl_sim.registry import names
from fl_sim.testing import check_quantizer, quantizers
from fl_sim.updates.local_update import Update
from tests.fl_sim.quantizers.quantizer_cases import (
    SPECS,
    is_randomized,
    layout_of,
    seeded,
    update_of,
    updates,
)

every_quantizer = pytest.mark.parametrize("spec", SPECS)
few = settings(max_examples=20, deadline=None, derandomize=True)

IDEMPOTENT = [
    "none", "fp16", "bf16", "fp8:format=e4m3", "fp8:format=e5m2", "uniform:bits=4",
    "uniform:levels=5", "uniform:bits=7,scope=global", "absmax:bits=2", "absmax:bits=8",
    "sign", "log:base=2", "log:base=1.5,bits=4", "fixed_point:bits=8,fraction=6",
    "blockwise:bits=4,block=3", "topk:keep=0.1", "topk:keep=0.4,scope=global",
]  # fmt: skip
ODD = [
    "none", "fp16", "bf16", "fp8:format=e4m3", "absmax:bits=4", "blockwise:bits=4,block=3",
    "log:base=2", "topk:keep=0.3", "kmeans:clusters=1000",
]  # fmt: skip
SCALE_EQUIVARIANT = [
    "none", "bf16", "fp8:format=e4m3", "uniform:bits=4", "absmax:bits=4", "stochastic:bits=4",
    "qsgd:levels=4,norm=l2", "terngrad", "natural", "scaled_sign", "log:base=2",
    "kmeans:clusters=3", "blockwise:bits=4,block=3", "topk:keep=0.3", "drive", "eden:bits=3",
    "topk:keep=0.3+stochastic:bits=4", "mixed:first=8,rest=2",
]  # fmt: skip


def test_every_registered_quantizer_is_tested_here():
    tested = {type(parse_quantizer(spec)).name for spec in SPECS}
    assert tested == set(names("quantizer"))


@every_quantizer
def test_every_quantizer_passes_the_checks_for_others(spec):
    check_quantizer(spec)


@every_quantizer
@few
@given(update=updates())
def test_bytes_round_trip_and_sizes(spec, update):
    quantizers.check_bytes(parse_quantizer(spec), update)


@every_quantizer
@few
@given(update=updates())
def test_cell_holds_what_was_sent(spec, update):
    quantizer = parse_quantizer(spec)
    quantizers.check_cell(quantizer, update)
    payload = quantizer.encode(update, seeded())
    cell = quantizer.cell(payload)
    assert torch.equal(quantizer.step(payload), cell.step)
    if cell.noise == "none":
        assert quantizer.misfit(payload, update.vector).max() <= 1e-4


@every_quantizer
@few
@given(update=updates(magnitude=100.0))
def test_misfit_is_differentiable_and_grows_outside(spec, update):
    quantizers.check_misfit(parse_quantizer(spec), update)


@every_quantizer
@pytest.mark.parametrize("value", [0.0, 0.5, -3.0])
def test_constant_tensors(spec, value):
    quantizer = parse_quantizer(spec)
    update = update_of([value] * 5, [value], [value] * 30)
    decoded = quantizer.decode(quantizer.encode(update, seeded())).vector
    assert torch.isfinite(decoded).all()
    if spec.startswith(("uniform", "stochastic", "none", "fp16", "bf16", "kmeans", "absmax")):
        torch.testing.assert_close(decoded, update.vector, rtol=1e-6, atol=0)
    noisy = ("gaussian", "laplace", "dp_", "noisy_", "rqm", "poisson", "skellam", "sign)", "sign")
    if value == 0.0 and not any(name in spec.replace("scaled_sign", "") for name in noisy):
        assert (decoded == 0).all()


@pytest.mark.parametrize("spec", IDEMPOTENT)
@few
@given(update=updates())
def test_idempotence(spec, update):
    quantizer = parse_quantizer(spec)
    once = quantizer.decode(quantizer.encode(update, seeded()))
    twice = quantizer.decode(quantizer.encode(once, seeded()))
    scale = float(once.vector.abs().max()) * 1e-6
    torch.testing.assert_close(twice.vector, once.vector, rtol=1e-6, atol=scale)


@pytest.mark.parametrize("spec", ODD)
@few
@given(update=updates())
def test_sign_symmetry(spec, update):
    quantizer = parse_quantizer(spec)
    decoded = quantizer.decode(quantizer.encode(update, seeded())).vector
    flipped = Update(-update.vector, update.layout)
    mirrored = quantizer.decode(quantizer.encode(flipped, seeded())).vector
    largest = float(update.vector.abs().max())
    torch.testing.assert_close(mirrored, -decoded, rtol=1e-6, atol=1e-9 * largest)


@pytest.mark.parametrize("spec", SCALE_EQUIVARIANT)
@few
@given(update=updates())
def test_scale_equivariance(spec, update):
    """Powers of two leave every float operation's rounding alone, so the codes are the same."""
    quantizer = parse_quantizer(spec)
    decoded = quantizer.decode(quantizer.encode(update, seeded())).vector
    scaled = Update(update.vector * 2.0**-7, update.layout)
    result = quantizer.decode(quantizer.encode(scaled, seeded())).vector
    largest = float(update.vector.abs().max()) * 2.0**-7
    torch.testing.assert_close(result, decoded * 2.0**-7, rtol=1e-6, atol=1e-6 * largest)


def test_sign_ignores_scale_and_sends_zero_as_plus():
    quantizer = parse_quantizer("sign")
    update = update_of([0.0, -0.0, 1e-9, -1e-9, 7.0, -7.0])
    decoded = quantizer.decode(quantizer.encode(update, seeded())).vector
    assert decoded.tolist() == [1, 1, 1, -1, 1, -1]
    scaled = Update(update.vector * 1e-6, update.layout)
    assert quantizer.encode(scaled, seeded()).body == quantizer.encode(update, seeded()).body


def test_payload_of_another_quantizer_is_refused():
    update = update_of([1.0, 2.0])
    payload = parse_quantizer("uniform:bits=4").encode(update, seeded())
    with pytest.raises(PayloadError, match="uniform:bits=4"):
        parse_quantizer("uniform:bits=3").decode(payload)


@every_quantizer
def test_randomized_quantizers_differ_by_seed_and_others_do_not(spec):
    update = update_of(torch.randn(64, generator=seeded()))
    quantizer = parse_quantizer(spec)
    bodies = {quantizer.encode(update, seeded(seed)).body for seed in range(4)}
    assert (len(bodies) > 1) == is_randomized(spec)


PROGRAM = """
import torch, zlib
from fl_sim.quantizers import parse_quantizer
from fl_sim.updates.local_update import Layout, Segment, Update

update = Update(torch.linspace(-1, 1, 301) ** 3, Layout((Segment("a", (301,)),)))
specs = ("uniform:bits=3", "stochastic:bits=5", "eden:bits=2", "natural", "kmeans:clusters=9")
quantizers = [parse_quantizer(spec) for spec in specs]
payloads = [q.encode(update, torch.Generator().manual_seed(3)) for q in quantizers]
checksum = zlib.crc32(b"".join(payload.to_bytes() for payload in payloads))
print(checksum)
"""


def test_bytes_are_the_same_in_another_process():
    here: dict[str, object] = {}
    exec(PROGRAM, here)
    command = [sys.executable, "-c", PROGRAM]
    there = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert int(there) == here["checksum"]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@every_quantizer
def test_updates_on_an_accelerator_are_encoded_there(spec):
    update = update_of(torch.randn(500, generator=seeded()), torch.randn(77, generator=seeded(1)))
    there = Update(update.vector.cuda(), update.layout)
    quantizer = parse_quantizer(spec)
    payload = quantizer.encode(there, torch.Generator(device="cuda").manual_seed(0))
    assert quantizer.decode(payload).vector.device.type == "cpu"
    if not is_randomized(spec):
        here = quantizer.decode(quantizer.encode(update, seeded())).vector
        torch.testing.assert_close(quantizer.decode(payload).vector, here, rtol=1e-4, atol=1e-4)


def test_nothing_breaks_on_every_length_up_to_a_few_bytes():
    for spec in SPECS:
        quantizer = parse_quantizer(spec)
        for size in range(1, 35):
            update = Update(torch.randn(size, generator=seeded(size)), layout_of(size))
            payload = quantizer.encode(update, seeded())
            assert quantizer.decode(payload).vector.shape == (size,)


def test_plain_signs_tell_nothing_of_the_size_of_an_update():
    quantizer = parse_quantizer("sign")
    update = update_of([1.0, -2.0, 3.0], [-0.5, 0.25])
    payload = quantizer.encode(update, seeded())
    wrong = torch.tensor([-1.0, -2.0, 3.0, -0.5, -0.25])
    misfit = quantizer.misfit(payload, wrong)
    assert (misfit > 0).tolist() == [True, False, False, False, True]
    torch.testing.assert_close(quantizer.misfit(payload, 1e-3 * wrong), misfit)
