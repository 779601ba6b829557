"""What the command line tells of itself, to people and to programs."""

import json
import tomllib
from pathlib import Path

import pytest

from attacker.presets import ATTACK_NAMES, SUITE, build_attack
from fl_sim.privacy.accountant import GaussianGuarantee
from fl_sim.quantizers import parse_quantizer
from fl_sim.registry import names
from tests.commands import command


def printed(capsys, *arguments):
    assert command(*arguments) == 0
    return capsys.readouterr().out


def test_the_version_is_that_of_the_project(capsys):
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())
    assert printed(capsys, "--version") == f"fl-sim {project['project']['version']}\n"


def test_every_attack_is_listed_with_a_sentence_and_a_spec_that_builds(capsys):
    lines = printed(capsys, "attacks").splitlines()
    sentences, specs = lines[::2], [line.strip() for line in lines[1::2]]
    known = (*ATTACK_NAMES, *names("attack"))
    assert tuple(line.partition(": ")[0] for line in sentences) == known
    assert all(line.endswith(".") for line in sentences)
    assert specs.pop(ATTACK_NAMES.index("suite")) == ", ".join(SUITE)
    for spec in specs[: len(ATTACK_NAMES) - 1]:
        assert build_attack(spec) == build_attack(spec.partition(":")[0])


def test_attacks_as_json(capsys):
    entries = json.loads(printed(capsys, "attacks", "--json"))
    assert tuple(entry["name"] for entry in entries) == (*ATTACK_NAMES, *names("attack"))
    assert all(entry["summary"] for entry in entries)
    (suite,) = (entry for entry in entries if "members" in entry)
    assert (suite["name"], suite["members"]) == ("suite", list(SUITE))
    assert entries[0]["values"]["labels"] == "joint"


def test_quantizers_as_json(capsys):
    entries = json.loads(printed(capsys, "quantizers", "--json"))
    assert {entry["name"] for entry in entries} == set(names("quantizer"))
    assert [parse_quantizer(entry["example"]).name for entry in entries] == [
        entry["name"] for entry in entries
    ]
    assert {entry["unbiased"] for entry in entries} == {True, False}


@pytest.mark.slow
def test_the_status_as_json(capsys, tmp_path):
    small = ["--rounds", "1", "--clients", "2", "--limit", "60", "--victims", "1", "--workers", "1"]
    small += ["--quantizers", "sign", "--attacks", "analytic", "--quiet", "--out", tmp_path / "run"]
    assert command(*small) == 0
    capsys.readouterr()
    facts = json.loads(printed(capsys, "status", tmp_path / "run", "--json"))
    (row,) = facts["done"]
    assert (row["quantizer"], row["trained"], row["of_trained"]) == ("sign", 1, 1)
    assert facts["left"] == {"trained": 0, "attacked": 0, "scored": 0}
    assert facts["at_work"] == ""
    assert facts["last_session"]["seconds"].keys() == {"training", "attacking"}


def test_epsilon_is_printed_for_what_guarantees_one(capsys):
    (facts,) = json.loads(
        printed(capsys, "epsilon", "noisy_sign:clip=1,noise=2", "--rounds", "100", "--json")
    )
    assert facts["epsilon"] == GaussianGuarantee(0.5).epsilon(100, 1e-5)
    said = printed(capsys, "epsilon", "noisy_sign:clip=1,noise=2", "--rounds", "100")
    assert said.startswith("noisy_sign:clip=1,noise=2: epsilon 91.")
    assert "at delta 1e-05" in said


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["sign"], ["quantizers = 'sign'", "guarantees nothing", "clip:norm=1+gaussian"]),
        (["clip:norm=1+stochastic:bits=4"], ["guarantees nothing"]),
        (["gaussian:sigma=1+clip:norm=1"], ["only clip and topk may come before"]),
        (["clip:norm=1+error_feedback(sign)"], ["outermost"]),
        (["dp_gaussian:clip=1,noise=1", "--delta", "0"], ["delta", "greater than 0"]),
        (["dp_gaussian:clip=1,noise=1", "--rounds", "0"], ["rounds"]),
    ],
)
def test_epsilon_of_what_has_none_is_refused_in_one_line(capsys, arguments, words):
    assert command("epsilon", *arguments) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert all(word in lines[0] for word in words)
