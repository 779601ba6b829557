"""What the command line tells of itself, to people and to programs."""

import json
import tomllib
from pathlib import Path

import pytest

from attacker.presets import ATTACK_NAMES, SUITE, build_attack
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
