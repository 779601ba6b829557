from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fl_sim.study.settings import (
    Settings,
    SettingsError,
    dump_settings,
    load_settings,
    parse_settings,
    set_leaf,
    split_list,
)

ROOT = Path(__file__).parents[3]


def test_the_default_study_is_the_default_settings():
    assert load_settings(ROOT / "studies" / "default.toml", {}) == Settings()


def test_resolved_settings_read_back_equal(tmp_path):
    settings = load_settings(None, {"quantizers": "none,qsgd:levels=4,norm=inf", "limit": "100"})
    path = tmp_path / "settings.toml"
    path.write_text(dump_settings(settings))
    assert load_settings(path, {}) == settings


def test_the_command_line_wins_over_the_file(tmp_path):
    path = tmp_path / "study.toml"
    path.write_text("seeds = [3]\n[training]\nrounds = 7\nbatch_size = 2\n")
    settings = load_settings(path, {"rounds": "9", "seeds": "0,1"})
    assert (settings.training.rounds, settings.training.batch_size) == (9, 2)
    assert settings.seeds == (0, 1)


def test_specs_keep_their_own_commas():
    text = "none,qsgd:levels=4,norm=inf,error_feedback(qsgd:levels=4,norm=l2),sign"
    assert split_list(text) == (
        "none",
        "qsgd:levels=4,norm=inf",
        "error_feedback(qsgd:levels=4,norm=l2)",
        "sign",
    )


@given(st.lists(st.integers(0, 10**6), min_size=1, max_size=5, unique=True))
def test_seeds_survive_the_command_line(seeds):
    assert load_settings(None, {"seeds": ",".join(map(str, seeds))}).seeds == tuple(seeds)


def test_sweeps_stand_for_plain_quantizers_seeds_attacks_and_rounds(tmp_path):
    path = tmp_path / "study.toml"
    path.write_text(
        'quantizers = ["none", "uniform:bits=1..3", "log:base=2,bits=5..6"]\nseeds = "0..2"\n'
        '[audit]\nattacks = ["cell:tv=1e-4..1e-2/log3", "dlg", "dlg"]\nobserve = "1..3"\n'
    )
    settings = load_settings(path, {})
    uniform = tuple(f"uniform:bits={bits}" for bits in (1, 2, 3))
    assert settings.quantizers == ("none", *uniform, "log:base=2,bits=5", "log:base=2")
    assert settings.seeds == (0, 1, 2)
    assert settings.audit.attacks == ("cell:tv=0.0001", "cell:tv=0.001", "cell:tv=0.01", "dlg")
    assert settings.observed_rounds == (1, 2, 3)
    plain = {"quantizers": ",".join(settings.quantizers), "seeds": "0,1,2"}
    assert load_settings(path, plain) == settings
    given = {"quantizers": "none,gaussian:sigma=[0.01,0.1],sign", "seeds": "[0,2..3]"}
    settings = load_settings(None, given)
    assert settings.quantizers == ("none", "gaussian:sigma=0.01", "gaussian:sigma=0.1", "sign")
    assert settings.seeds == (0, 2, 3)


def test_observed_rounds_are_named_counted_or_percentages():
    settings = load_settings(None, {"rounds": "100", "observe": "first,5%,middle,7,last"})
    assert settings.observed_rounds == (1, 6, 7, 50, 100)


def test_a_gradient_is_one_batch_and_a_delta_has_its_local_steps():
    work = load_settings(None, {"batch_size": "4", "local_steps": "5"}).training.work
    assert (work.kind, work.images, work.local_steps) == ("gradient", 4, 1)
    work = load_settings(
        None, {"update": "delta", "batch_size": "4", "local_steps": "6", "local_batches": "2"}
    ).training.work
    assert (work.kind, work.images, work.local_steps) == ("delta", 8, 6)


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ({"quantizers": "unifrom:bits=4"}, ["quantizers", "unifrom", "uniform"]),
        ({"quantizers": "uniform:bits=0"}, ["quantizers", "bits", "0"]),
        ({"quantizers": "none,none"}, ["quantizers", "none", "once"]),
        ({"quantizers": "none,uniform:bits=8..1"}, ["quantizers = ", "bits=8..1", "lower end"]),
        ({"quantizers": "uniform:bits=0..4"}, ["quantizers = ", "bits=0", "1 to 16"]),
        ({"quantizers": "uniform:bits=1..3,uniform:bits=2"}, ["uniform:bits=2", "only once"]),
        ({"quantizers": "qsgd:levels=2..99/log4,norm=l2"}, ["levels=7.34", "whole number"]),
        ({"quantizers": "gaussian:sigma=[0.1,1"}, ["quantizers = ", "sigma=[0.1,1", "[a,b,c]"]),
        ({"seeds": "4..0"}, ["seeds = ", "4..0", "lower end"]),
        ({"seeds": "0..1/lin3"}, ["seeds", "0.5", "integer"]),
        ({"attacks": "cell:tv=0..1/log3"}, ["attacks", "tv=0..1/log3", "above 0"]),
        ({"batch_size": "1..x"}, ["batch_size = ", "1..x", "low..high"]),
        ({"dataset": "cifar"}, ["dataset", "'cifar'", "cifar10"]),
        ({"dataset": "folder"}, ["data_dir", "folder"]),
        ({"model": "lenet_dgl"}, ["model", "lenet_dgl", "lenet_dlg"]),
        ({"rounds": "-1"}, ["rounds", "'-1'", "greater than or equal to 1"]),
        ({"rounds": "1" + "0" * 400}, ["rounds", "less than or equal to 1000000000"]),
        ({"rounds": "many"}, ["rounds", "many", "integer"]),
        ({"observe": "frist"}, ["observe", "frist", "first"]),
        ({"observe": "201"}, ["observe", "201", "200"]),
        ({"observe": "9" * 400 + "%"}, ["observe", "999%", "a percentage"]),
        ({"observe": "9" * 5000}, ["observe", "999", "a round number"]),
        ({"observe": "²"}, ["observe", "²", "a round number"]),
        ({"batch_size": str(10**9)}, ["batch_size", str(10**9), "1048576"]),
        ({"local_steps": str(2**21)}, ["local_steps", str(2**21), "1048576"]),
        (
            {"update": "delta", "batch_size": "2", "local_steps": str(2**20)},
            ["batch_size", "2", "1048576"],
        ),
        ({"seeds": "-1"}, ["seeds", "-1"]),
        ({"seeds": str(2**63)}, ["seeds", str(2**63)]),
        ({"seeds": "1,2,1"}, ["seeds", "1", "once"]),
        ({"timeout": "inf"}, ["timeout", "inf", "finite"]),
        ({"server_learning_rate": "inf"}, ["server_learning_rate", "inf", "finite"]),
        ({"local_learning_rate": "nan"}, ["local_learning_rate", "nan", "finite"]),
        ({"alpha": "inf"}, ["alpha", "inf"]),
        ({"alpha": "1e-300"}, ["alpha", "1e-300", "0.001"]),
        ({"update": "delta", "local_batches": "2"}, ["local_batches", "2", "1"]),
    ],
)
def test_what_cannot_be_used_is_named_with_what_is_allowed(overrides, words):
    with pytest.raises(SettingsError) as caught:
        load_settings(None, overrides)
    message = str(caught.value)
    assert "\n" not in message
    assert [word for word in words if word not in message] == []


def test_an_unknown_key_names_the_nearest(tmp_path):
    path = tmp_path / "study.toml"
    path.write_text("[training]\nbatchsize = 4\n")
    with pytest.raises(SettingsError, match="batchsize.*did you mean 'batch_size'"):
        load_settings(path, {})


def test_a_byte_order_mark_and_single_numbers_are_read(tmp_path):
    path = tmp_path / "study.toml"
    path.write_text("seeds = 3\n[audit]\nobserve = [1]\n", encoding="utf-8-sig")
    settings = load_settings(path, {})
    assert (settings.seeds, settings.audit.observe) == ((3,), ("1",))


@pytest.mark.parametrize(
    "name", ["batch_size", "server_learning_rate", "seeds", "observe", "model"]
)
@pytest.mark.parametrize("value", [True, [True]])
def test_true_is_no_number(name, value):
    tree = {}
    set_leaf(tree, name, value)
    with pytest.raises(SettingsError, match=rf"{name} = \[?True"):
        parse_settings(tree)


def test_the_commas_of_one_spec_do_not_make_a_list_of_it():
    overrides = {"server": "loki:clients=3,bins=32", "model": "mlp:activation=relu,width=64"}
    settings = load_settings(None, overrides)
    assert (settings.server, settings.model) == tuple(overrides.values())
