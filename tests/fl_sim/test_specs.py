"""Sweeps in specs: what they stand for, and what is refused."""

import math
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fl_sim.specs import MAX_SWEEP, expand_sweeps


@pytest.mark.parametrize(
    ("sweep", "plain"),
    [
        ("none", ["none"]),
        ("uniform:bits=1..3", ["uniform:bits=1", "uniform:bits=2", "uniform:bits=3"]),
        ("gaussian:sigma=[0.01,1e-1, 1]", ["gaussian:sigma=" + s for s in ("0.01", "1e-1", "1")]),
        (
            "topk:keep=0.001..1/log7",
            [f"topk:keep={k}" for k in ("0.001", "0.00316", "0.01", "0.0316", "0.1", "0.316", "1")],
        ),
        ("eden:bits=[1,2..4,8]", [f"eden:bits={bits}" for bits in (1, 2, 3, 4, 8)]),
        ("x:a=-1..1/lin5", [f"x:a={a}" for a in ("-1", "-0.5", "0", "0.5", "1")]),
        (
            "topk:keep=[0.1,0.5]+uniform:bits=1..2,scope=global",
            [
                f"topk:keep={keep}+uniform:bits={bits},scope=global"
                for keep in ("0.1", "0.5")
                for bits in (1, 2)
            ],
        ),
        (
            "error_feedback(qsgd:levels=[2,4],norm=[l2,inf])",
            [
                f"error_feedback(qsgd:levels={levels},norm={norm})"
                for levels in (2, 4)
                for norm in ("l2", "inf")
            ],
        ),
        ("0..4", ["0", "1", "2", "3", "4"]),
        ("../data", ["../data"]),
        ("folder:path=../data", ["folder:path=../data"]),
    ],
)
def test_a_sweep_stands_for_plain_specs(sweep, plain):
    assert expand_sweeps(sweep) == tuple(plain)


@pytest.mark.parametrize(
    ("sweep", "words"),
    [
        ("uniform:bits=8..1", "bits=8..1 is not allowed; give the lower end first"),
        ("uniform:bits=1..8/log", "bits=1..8/log is not allowed; give low..high"),
        ("uniform:bits=1..x", "bits=1..x is not allowed; give low..high"),
        ("uniform:bits=1..8/geo4", "give low..high"),
        ("uniform:bits=[1,2", r"bits=\[1,2 is not allowed"),
        ("uniform:bits=[]", r"bits=\[\] is not allowed"),
        ("uniform:bits=[[1,2],3]", "is not allowed; give low..high"),
        ("uniform:bits=[1,9..2]", "bits=9..2 is not allowed; give the lower end first"),
        ("gaussian:sigma=0.1..1", "sigma=0.1..1 is not allowed; give whole numbers"),
        ("gaussian:sigma=0..1/log5", "sigma=0..1/log5 is not allowed; give ends above 0"),
        ("gaussian:sigma=1..2/lin1", "give 2 to 1000 values"),
        ("gaussian:sigma=1..1.001/log50", "give fewer values"),
        ("topk:keep=0.1+uniform:bits=1..100000", "bits=1..100000 is not allowed; give 2 to 1000"),
        ("x:a=1..100,b=1..100", "more than 1000"),
        ("4..0", "4..0 is not allowed"),
    ],
)
def test_a_bad_sweep_is_refused_in_one_line(sweep, words):
    with pytest.raises(ValueError, match=words) as caught:
        expand_sweeps(sweep)
    assert "\n" not in str(caught.value)


@given(st.integers(-99, 99), st.integers(1, MAX_SWEEP - 1))
def test_whole_numbers_are_counted_with_both_ends(low, steps):
    values = expand_sweeps(f"x:a={low}..{low + steps}")
    assert [int(value.removeprefix("x:a=")) for value in values] == [*range(low, low + steps + 1)]


@given(st.floats(1e-12, 1e12), st.floats(1.5, 1e6), st.integers(2, 30))
def test_log_sweeps_have_equal_ratios_but_for_rounding(low, ratio, count):
    high = low * ratio
    try:
        values = [float(one) for one in expand_sweeps(f"{low!r}..{high!r}/log{count}")]
    except ValueError as error:
        assert "fewer values" in str(error)  # noqa: PT017 - only very close values may be refused
        assert ratio ** (1 / (count - 1)) < 1.02
        return
    assert (values[0], values[-1], len(values)) == (low, high, count)
    for one, other in pairwise(values):
        assert math.log(other / one) == pytest.approx(math.log(ratio) / (count - 1), abs=0.012)


@given(st.floats(-1e3, 1e3), st.floats(1, 1e6), st.integers(2, 20))
def test_lin_sweeps_have_equal_distances_but_for_rounding(low, width, count):
    high = low + width
    values = [float(one) for one in expand_sweeps(f"{low!r}..{high!r}/lin{count}")]
    assert (values[0], values[-1], len(values)) == (low, high, count)
    largest = max(abs(low), abs(high))
    for one, other in pairwise(values):
        assert other - one == pytest.approx(width / (count - 1), abs=2e-5 * largest)


PLAIN = st.from_regex(
    r"[a-z_]{1,8}(:[a-z]{1,4}=[0-9a-z.\-]{0,5}(,[a-z]{1,4}=[0-9a-z.]{1,5})?)?", fullmatch=True
)


@given(PLAIN.filter(lambda text: ".." not in text))
def test_a_plain_spec_stays_as_it_is(spec):
    assert expand_sweeps(spec) == (spec,)


@given(st.lists(st.integers(1, 4), min_size=1, max_size=4))
def test_sweeps_are_multiplied_to_different_plain_specs(counts):
    spec = "x:" + ",".join(f"{name}=1..{n + 1}" for name, n in zip("abcd", counts, strict=False))
    plain = expand_sweeps(spec)
    assert len(set(plain)) == math.prod(n + 1 for n in counts)
    assert all(expand_sweeps(one) == (one,) for one in plain)
