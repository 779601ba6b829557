"""Whatever the fuzzer found stays found; and a few seconds of random bytes for every target."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.fuzz.targets import TARGETS, seeds

CASES = sorted((Path(__file__).parent / "cases").glob("*/*"))


@pytest.mark.parametrize("path", CASES, ids=lambda path: f"{path.parent.name}-{path.name[-8:]}")
def test_what_the_fuzzer_found_is_answered(path):
    assert TARGETS[path.parent.name](path.read_bytes()) in (True, False)


@pytest.mark.parametrize("name", TARGETS)
def test_valid_bytes_and_random_ones_are_answered(name):
    valid = list(seeds(name))

    @settings(max_examples=150, deadline=None, database=None, derandomize=True)
    @given(st.data())
    def answer(data):
        seed = data.draw(st.sampled_from(valid))
        at = data.draw(st.integers(0, len(seed)))
        cut = data.draw(st.integers(at, min(len(seed), at + 8)))
        spoiled = seed[:at] + data.draw(st.binary(max_size=12)) + seed[cut:]
        assert TARGETS[name](spoiled) in (True, False)

    answer()
    accepted = [TARGETS[name](seed) for seed in valid]
    assert accepted[0]
    assert all(accepted) or name in ("observations", "reconstructions")  # some are spoiled
