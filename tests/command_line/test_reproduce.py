"""Reproduce, status, force and provenance of a small run, from the command line."""

import json
import shutil

import pytest

from fl_sim.storage.files import read_tensors, write_tensors
from results.reproduction import differences
from tests.commands import command

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("reproduce")]

SMALL = [
    *("--rounds", "3", "--clients", "2", "--limit", "100", "--victims", "1", "--observe", "1,3"),
    *("--quantizers", "none,sign", "--workers", "1"),
    *("--attacks", "dlg:iterations=3,restarts=0,cell:iterations=3,restarts=0"),
]


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    root = tmp_path_factory.mktemp("runs") / "small"
    assert command(*SMALL, "--batch-size", "1,2", "--out", root) == 0
    return root


@pytest.fixture
def copy(small, tmp_path):
    return shutil.copytree(small, tmp_path / "copy")


def test_a_study_is_reproduced_to_the_byte(small, capsys):
    assert command("reproduce", small, "--quiet") == 0
    # at two points: 3 tables, 2 trials x 2 rounds observed and 2 attacks; 2 tables over both
    assert f"identical: {2 * (3 + 4 + 4) + 2} files" in capsys.readouterr().out
    assert command("reproduce", small) == 2  # the folder is there now


def test_what_differs_is_named(small, copy):
    table = copy / "batch_size=2" / "results.csv"
    text = table.read_text()
    table.write_text(text.replace("32114", "32115"))
    made = copy / "batch_size=1" / "reconstructions" / "sign_seed-0"
    path = made / "dlg-iterations-3-restarts-0" / "round-00003.safetensors"
    tensors, facts = read_tensors(path)
    tensors["images.0"][0, 0, 0, 0] += 1
    write_tensors(path, tensors, facts)
    (made / "cell-iterations-3-restarts-0" / "round-00003.safetensors").unlink()
    truncated = copy / "batch_size=1/observations/none_seed-0/round-00001.safetensors"
    truncated.write_bytes(truncated.read_bytes()[:99])
    observed, missing, images, cell = differences(small, copy)
    assert "cannot be read" in observed
    assert "only in" in missing
    assert images.endswith("round-00003.safetensors: tensor images.0")
    expected = "row 1, column uplink_bytes_per_update: 32114 became 32115"
    assert cell == f"batch_size=2/results.csv: {expected}"


def test_keys_of_other_code_are_no_difference(small, copy):
    path = next(copy.glob("*/reconstructions/*/*/*"))
    tensors, facts = read_tensors(path)
    write_tensors(path, tensors, facts | {"key": "other"})
    assert differences(small, copy) == []


def test_status_counts_what_is_done(copy, capsys):
    assert command("status", copy) == 0
    shown = capsys.readouterr().out
    assert shown.count("2 of 2") == 8  # attacked and scored, of 2 points x 2 quantizers
    assert "Left: nothing." in shown
    (copy / "batch_size=2/observations/none_seed-0/round-00001.safetensors").unlink()
    shutil.rmtree(copy / "batch_size=1/scores/sign_seed-0")
    capsys.readouterr()
    command("status", copy)
    assert "Left: 1 to be trained, 2 to be attacked, 4 to be scored." in capsys.readouterr().out


def times(root):
    return {path: path.stat().st_mtime_ns for path in root.glob("*/*/**/*") if path.is_file()}


def test_force_makes_all_again_and_nothing_else_does(copy):
    before, arguments = times(copy), [*SMALL, "--batch-size", "1,2", "--out", copy, "--quiet"]
    assert command(*arguments) == 0
    assert times(copy) == before
    assert command(*arguments, "--force") == 0
    assert [path for path, time in times(copy).items() if before[path] == time] == []


def test_a_run_tells_what_made_it(copy):
    facts = json.loads((copy / "batch_size=2" / "provenance.json").read_text())
    assert facts["settings"]["training"]["batch_size"] == 2
    assert facts["seeds"] == [0]
    (session,) = facts["sessions"]
    assert session["seconds"].keys() == {"training", "attacking"}
    assert session["machine"]["cores"] >= 1
    assert {"torch", "numpy", "flwr"} <= session["packages"].keys()
    page = (copy / "batch_size=2" / "report.html").read_text()
    assert f"torch {session['packages']['torch']}" in page
    assert session["started"] in page
