"""Bytes on the wire against the table of bit counts, and after an entropy coder."""

from math import ceil, log2

import pytest
import torch

from benchmarks.quantizer_error import sample_update
from docs.render.quantizers import catalogue_lines
from fl_sim.coding.entropy import entropy_coded_bytes
from fl_sim.models import ModelSpec
from fl_sim.quantizers import parse_quantizer
from fl_sim.quantizers.catalogue import catalogue
from fl_sim.updates.local_update import Layout, Update, flat_model
from tests.fl_sim.quantizers.quantizer_cases import SPECS, seeded, update_of

LENET = ModelSpec("lenet_dlg", (3, 32, 32), 10)
RESNET = ModelSpec("resnet18", (3, 32, 32), 10)
HEADER = 6  # version, length of the spec, checksum; the spec itself comes on top

# bits an element, bits a tensor, bits an update; the table of the documentation.
TABLE = {
    "none": (32, 0, 0),
    "fp16": (16, 0, 0),
    "bf16": (16, 0, 0),
    "fp8:format=e4m3": (8, 32, 0),
    "uniform:bits=4": (4, 64, 0),
    "uniform:levels=120": (7, 64, 0),
    "absmax:bits=4": (4, 32, 0),
    "stochastic:bits=4": (4, 64, 0),
    "stochastic:levels=240": (8, 64, 0),
    "qsgd:levels=4,norm=l2": (ceil(log2(9)), 32, 0),
    "terngrad": (1.6, 32, 0),
    "natural": (9, 0, 0),
    "sign": (1, 0, 0),
    "scaled_sign": (1, 32, 0),
    "log:base=2": (6, 32, 0),
    "kmeans:clusters=16": (4, 32 * 16, 0),
    "fixed_point:bits=8,fraction=6": (8, 0, 0),
    "blockwise:bits=8,block=64": (8.5, 0, 0),
    "topk:keep=0.1": (0.1 * 32 + 1, 0, 0),
    "topk:keep=0.1+stochastic:bits=4": (0.1 * 4 + 1, 64, 0),
    "drive": (1, 0, 32 + 32),
    "eden:bits=2": (2, 0, 64 + 32),
    "gaussian:sigma=0.1": (32, 0, 0),
    "laplace:scale=0.1": (32, 0, 0),
    "dp_gaussian:clip=1,noise=1": (32, 0, 0),
    "noisy_sign:clip=1,noise=0.1": (1, 0, 0),
    "rqm:clip=1,margin=1,levels=16,keep=0.42": (4, 0, 0),
    "poisson_binomial:clip=1,trials=16,theta=0.25": (5, 0, 0),
    "skellam:clip=1,noise=0.1": (16, 0, 32),
    "discrete_gaussian:clip=1,noise=0.1,bits=8": (8, 0, 32),
    "clip:norm=1+uniform:bits=4": (4, 64, 0),
    "error_feedback(sign)": (1, 0, 0),
}


@pytest.mark.parametrize("spec", TABLE)
@pytest.mark.parametrize("model", [LENET, RESNET], ids=["lenet", "resnet18"])
def test_body_size_is_within_two_percent_of_the_table(spec, model):
    layout = flat_model(model).layout
    element, tensor, update = TABLE[spec]
    bits = element * layout.size + tensor * len(layout.segments) + update
    assert parse_quantizer(spec).body_size(layout) == pytest.approx(bits / 8, rel=0.02)


@pytest.mark.parametrize("spec", TABLE)
def test_header_is_as_documented(spec):
    update = sample_update()
    payload = parse_quantizer(spec).encode(update, seeded())
    assert payload.nbytes == HEADER + len(spec) + parse_quantizer(spec).body_size(update.layout)


def test_topk_takes_the_smaller_of_bitmap_and_indices():
    layout = flat_model(RESNET).layout
    index_bits = ceil(log2(layout.size))
    sparse = parse_quantizer("topk:keep=0.01").body_size(layout)
    assert sparse == pytest.approx(0.01 * layout.size * (32 + index_bits) / 8, rel=0.02)
    dense = parse_quantizer("topk:keep=0.5").body_size(layout)
    assert dense == pytest.approx(layout.size * (0.5 * 32 + 1) / 8, rel=0.02)


def test_four_bits_of_a_lenet_take_at_most_eight_thousand_bytes():
    payload = parse_quantizer("uniform:bits=4").encode(sample_update(), seeded())
    assert len(payload.to_bytes()) <= 8000


@pytest.mark.parametrize("spec", ["uniform:bits=4", "sign", "topk:keep=0.01", "eden:bits=2"])
def test_resnet_round_trip(spec):
    layout = flat_model(RESNET).layout
    update = Update(torch.randn(layout.size, generator=seeded()) * 1e-3, layout)
    quantizer = parse_quantizer(spec)
    payload = quantizer.encode(update, seeded())
    assert len(payload.body) == quantizer.body_size(layout)
    assert quantizer.decode(payload).vector.isfinite().all()


@pytest.mark.parametrize("spec", SPECS)
def test_entropy_coded_size_is_never_above_the_raw_size(spec):
    update = update_of(torch.randn(400, generator=seeded()), torch.randn(30, generator=seeded(1)))
    quantizer = parse_quantizer(spec)
    payload = quantizer.encode(update, seeded())
    assert HEADER + len(spec) < entropy_coded_bytes(payload) <= payload.nbytes
    assert len(quantizer.symbols(payload)) > 0


def test_mostly_zero_codes_shrink_and_random_bits_do_not():
    x = torch.randn(40_000, generator=seeded())
    x[0] = 40.0
    update = update_of(x)
    coarse = parse_quantizer("absmax:bits=2").encode(update, seeded())
    assert entropy_coded_bytes(coarse) < 0.02 * coarse.nbytes
    signs = parse_quantizer("sign").encode(update, seeded())
    assert entropy_coded_bytes(signs) > 0.95 * signs.nbytes


def test_unpacked_codes_are_tried_too():
    """Three-bit codes straddle bytes, which hides their skew from a byte-wise coder."""
    x = torch.randn(40_000, generator=seeded()).abs().square()
    payload = parse_quantizer("uniform:bits=3,scope=global").encode(update_of(x), seeded())
    symbols = parse_quantizer("uniform:bits=3,scope=global").symbols(payload)
    assert len(symbols) == 8 + 40_000
    assert entropy_coded_bytes(payload) < 0.7 * payload.nbytes


def test_documentation_holds_the_catalogue_of_the_code(pytestconfig):
    text = (pytestconfig.rootpath / "docs" / "quantizers.md").read_text()
    for line in catalogue_lines():
        assert line in text, "run python -m docs.render"
    assert len(catalogue_lines()) == len(catalogue())


def test_empty_tensors_cost_nothing():
    update = update_of([1.0, 2.0], torch.zeros(0), [3.0])
    for spec in SPECS:
        quantizer = parse_quantizer(spec)
        if "t0" not in spec:
            decoded = quantizer.decode(quantizer.encode(update, seeded()))
            assert decoded.vector.shape == (3,)
            assert quantizer.cell(quantizer.encode(update, seeded())).center.isfinite().all()
    assert Layout(update.layout.segments).size == 3
