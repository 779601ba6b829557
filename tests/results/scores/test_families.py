"""Which quantizers are points of one line."""

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fl_sim.specs import expand_sweeps
from results.scores.families import families_of, with_families


def members(*specs):
    found = families_of([plain for spec in specs for plain in expand_sweeps(spec)])
    lines = {}
    for membership in found.values():
        lines.setdefault(membership.family, []).append(membership.value)
    return lines


@pytest.mark.parametrize(
    ("specs", "lines"),
    [
        (["none", "sign", "uniform:bits=4"], {}),
        (["none", "uniform:bits=1..3"], {"uniform:bits": [1, 2, 3]}),
        (["topk:keep=0.1+uniform:bits=[2,8]"], {"topk:keep=0.1+uniform:bits": [2, 8]}),
        (["topk:keep=[0.1,0.5]+sign"], {"topk:keep+sign": [0.1, 0.5]}),
        (["error_feedback(topk:keep=[0.1,0.5])"], {"error_feedback(topk:keep)": [0.1, 0.5]}),
        (["qsgd:levels=[1,4],norm=[l2,inf]"], {
            "qsgd:norm=l2,levels": [1, 4], "qsgd:norm=inf,levels": [1, 4]
        }),
        (
            ["topk:keep=[0.1,0.5]+uniform:bits=1..3"],
            {"topk:keep=0.1+uniform:bits": [1, 2, 3], "topk:keep=0.5+uniform:bits": [1, 2, 3]},
        ),
        (["log:base=2", "log:base=2,bits=[4,5]"], {"log:base=2,bits": [6, 4, 5]}),
        (["uniform:bits=[2,4]", "uniform:bits=[2,4],scope=global"], {
            "uniform:bits": [2, 4], "uniform:scope=global,bits": [2, 4]
        }),
        (["stochastic:levels=4", "stochastic:bits=4"], {}),
        (["theirs:a=1..2,b=x"], {"theirs:b=x,a": [1, 2]}),
    ],
)  # fmt: skip
def test_a_family_differs_in_one_number(specs, lines):
    assert members(*specs) == lines


@given(st.lists(st.sampled_from([1, 2, 3, 4, 8]), unique=True, min_size=2), st.data())
def test_the_order_of_the_specs_changes_no_family(bits, data):
    specs = [f"{name}:bits={b}" for name in ("uniform", "eden") for b in bits] + ["none"]
    shuffled = data.draw(st.permutations(specs))
    assert families_of(shuffled) == families_of(specs)
    assert len(families_of(specs)) == 2 * len(bits)


def test_rows_of_a_family_stand_together_in_the_order_of_their_values():
    specs = ["uniform:bits=8", "none", "eden:bits=2", "uniform:bits=2", "eden:bits=1"]
    table = with_families(pd.DataFrame({"quantizer": specs, "bytes": range(5)}))
    assert list(table["quantizer"]) == [specs[k] for k in (3, 0, 1, 4, 2)]
    assert list(table["bytes"]) == [3, 0, 1, 4, 2]
    assert list(table["family"]) == ["uniform:bits"] * 2 + ["none"] + ["eden:bits"] * 2
