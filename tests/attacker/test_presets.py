from typing import get_args

import pytest

from attacker.matching.optimizers import LBFGS, SignedAdam
from attacker.matching.starts import STARTS, StartName
from attacker.presets import ATTACK_NAMES, SUITE, build_attack, suite


@pytest.mark.parametrize("name", ATTACK_NAMES)
def test_every_preset_builds_and_knows_its_name(name):
    assert build_attack(name).name == name


def test_a_preset_can_be_edited():
    attack = build_attack("cell:restarts=4,tv=1e-4,iterations=700")
    assert (attack.restarts, attack.loss.tv) == (4, 1e-4)
    assert isinstance(attack.optimizer, LBFGS)
    assert attack.optimizer.iterations == 700


def test_the_optimizer_can_be_exchanged_and_brings_its_own_parameters():
    attack = build_attack("cell:optimizer=signed_adam,rate=0.05,iterations=9")
    assert attack.optimizer == SignedAdam(iterations=9, rate=0.05)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("dgl", r"no attack 'dgl'; one of dlg, .*; did you mean 'dlg'\?"),
        ("cell:restart=3", r"'restart'; one of .*restarts.*; did you mean 'restarts'\?"),
        ("cell:restarts=many", "restarts=many is not a whole number"),
        ("cell:tv=-1", r"tv=-1 is not allowed; give 0 to 1e30\."),
        ("cell:objective=cosin", r"cosin is not allowed; one of .*; did you mean 'cosine'\?"),
        ("cell:rate=0.1", r"no parameter 'rate'; one of objective, .*, history"),
        ("dlg:optimizer=signed_adam,history=3", "no parameter 'history'; one of .*, rate"),
        ("cell:optimizer=adam", r"optimizer=adam is not allowed; .*did you mean 'signed_adam'\?"),
        ("cell:start=gray", r"start=gray is not allowed; one of normal, .*; did you mean 'grey'\?"),
        ("cell:tv=nan", "tv=nan is not allowed; give 0 to"),
        ("cell:restarts=-1", "restarts=-1 is not allowed; give 0 to"),
        ("cell:batch=0", "batch=0 is not allowed; give a number above 0"),
        ("cell:history=0", "history=0 is not allowed; give a number above 0"),
        ("cell:tv=1,tv=2", "tv is given twice"),
        ("cell:tv", "'tv' is not of the form name=value"),
        ("cell(sign)", "it wraps no other part"),
        ("analytic:iterations=2", r"no parameter 'iterations'; one of start, batch"),
        ("learned:start=grey", r"start=grey is not allowed; one of linear_layer, "),
        ("suite:tv=1", "no parameter 'tv'; it takes none"),
    ],
)
def test_bad_specs_are_refused_in_one_line(spec, message):
    with pytest.raises(ValueError, match=message) as caught:
        build_attack(spec)
    assert "\n" not in str(caught.value)


def test_every_start_can_be_named():
    assert tuple(STARTS) == get_args(StartName)


def test_a_suite_is_built_of_any_specs_and_other_suites():
    assert build_attack("suite") == suite() == suite(*SUITE)
    built = suite("dlg:restarts=5", "suite", name="mine")
    assert built.name == "mine"
    assert built.members == (build_attack("dlg:restarts=5"), *suite().members)
    with pytest.raises(ValueError, match="no attack 'dgl'"):
        suite("cell", "dgl")
