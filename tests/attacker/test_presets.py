import pytest

from attacker.matching.optimizers import LBFGS, SignedAdam
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
        ("cell:restarts=many", r"restarts='many' must be a whole number"),
        ("cell:tv=-1", r"tv='-1' must not be negative"),
        ("cell:objective=cosin", r"cosin is not allowed; one of .*; did you mean 'cosine'\?"),
        ("cell:rate=0.1", r"'rate'"),
    ],
)
def test_bad_specs_are_refused_in_one_line(spec, message):
    with pytest.raises(ValueError, match=message) as caught:
        build_attack(spec)
    assert "\n" not in str(caught.value)


def test_a_suite_is_built_of_any_specs_and_other_suites():
    assert build_attack("suite") == suite() == suite(*SUITE)
    built = suite("dlg:restarts=5", "suite", name="mine")
    assert built.name == "mine"
    assert built.members == (build_attack("dlg:restarts=5"), *suite().members)
    with pytest.raises(ValueError, match="no attack 'dgl'"):
        suite("cell", "dgl")
