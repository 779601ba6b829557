"""Payloads and observation files of earlier code: read to the same values, written the same."""

import numpy as np
import pytest
import torch

from fl_sim.coding.payload import Payload
from fl_sim.observed.observations import load_observations, round_path, save_observations
from fl_sim.quantizers import parse_quantizer
from fl_sim.quantizers.catalogue import EXAMPLES
from fl_sim.storage.files import read_tensors
from tests.fl_sim.quantizers.make_golden import (
    LAYOUT,
    OBSERVATION,
    fixed_update,
    generator,
    observed,
    read_golden,
)

# What these write depends on the processor: torch draws normal numbers by another method without
# AVX2, and rotations are sums whose order the processor chooses.
ONLY_READ = {
    "gaussian:sigma=0.01",
    "dp_gaussian:clip=1,noise=0.1",
    "drive",
    "eden:bits=4",
    "noisy_sign:clip=1,noise=0.1",
    "skellam:clip=1,noise=0.1",
    "discrete_gaussian:clip=1,noise=0.1",
    "clip:norm=1",
}
GOLDEN = read_golden()


def test_every_quantizer_of_the_catalogue_has_golden_bytes():
    assert set(GOLDEN) >= set(EXAMPLES), "python -m tests.fl_sim.quantizers.make_golden"


@pytest.mark.parametrize("spec", GOLDEN)
def test_golden_payloads_are_read_to_the_same_values(spec):
    payload = Payload.from_bytes(bytes.fromhex(GOLDEN[spec]["payload"]), LAYOUT)
    assert payload.spec == spec
    values = parse_quantizer(spec).decode(payload).vector
    golden = torch.from_numpy(np.frombuffer(bytes.fromhex(GOLDEN[spec]["values"]), "<f4").copy())
    if parse_quantizer(spec).cell(payload).transform is None:
        assert torch.equal(values, golden)
    else:  # a sum of the rotation, whose order the processor chooses
        torch.testing.assert_close(values, golden, rtol=0, atol=float(golden.abs().max()) * 1e-6)


@pytest.mark.parametrize("spec", sorted(set(GOLDEN) - ONLY_READ))
def test_golden_payloads_are_written_the_same(spec):
    payload = parse_quantizer(spec).encode(fixed_update(), generator())
    assert payload.to_bytes().hex() == GOLDEN[spec]["payload"]


def test_a_golden_observation_is_read_and_written_the_same(tmp_path):
    (seen,) = load_observations(OBSERVATION)
    made = observed()
    who = (seen.trial, seen.round, seen.partition, seen.model, seen.work, seen.server)
    assert who == ("golden", 1, 5, made.model, made.work, "curious")
    assert torch.equal(seen.weights, made.weights)
    assert seen.payload == made.payload
    save_observations(tmp_path, [made])
    tensors, facts = read_tensors(round_path(tmp_path, "golden", 1))
    golden_tensors, golden_facts = read_tensors(OBSERVATION)
    assert facts == golden_facts
    assert tensors.keys() == golden_tensors.keys()
    assert all(torch.equal(tensors[name], golden_tensors[name]) for name in tensors)
