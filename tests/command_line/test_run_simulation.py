"""The command line as its user types it: bad input, a small study on both engines, resuming."""

import csv

import pytest
import torch

from tests.commands import command

SMALL = [
    *("--rounds", "3", "--clients", "3", "--limit", "200", "--victims", "2"),
    *("--quantizers", "none,stochastic:bits=4,error_feedback(sign)"),
    *("--attacks", "dlg:iterations=15,restarts=0", "--workers", "1"),
]

NO_GPU = pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--quantizers", "unifrom:bits=4"], ["quantizers", "unifrom", "uniform"]),
        (["--quantizers", "uniform:bits=0"], ["quantizers", "bits", "0"]),
        (["--quantizers", "uniform:bits=33"], ["quantizers", "bits", "33"]),
        (["--quantizers", "topk:keep=0"], ["quantizers", "keep", "0"]),
        (["--dataset", "cifar"], ["dataset", "cifar", "cifar10"]),
        (["--dataset", "folder", "--data-dir", "no/such"], ["data_dir", "no/such", "folder"]),
        (["--clients", "2000"], ["clients", "2000", "1294"]),
        (["--batch-size", "500"], ["batch_size", "500", "129"]),
        (["--rounds", "-5"], ["rounds", "-5", "1"]),
        (["--attacks", "dgl"], ["attacks", "dgl", "dlg"]),
        (["--seeds", "zero"], ["seeds", "zero", "integer"]),
        (["--no-such-option", "1"], ["--no-such-option"]),
        (["--quantizers", "none", "--quantizers", "sign"], ["--quantizers", "twice"]),
        (["attack", "no/such", "--attacks", "dlg", "--attacks", "cell"], ["--attacks", "twice"]),
        pytest.param(["--device", "cuda"], ["device", "cuda", "cpu"], marks=NO_GPU),
        (["--device", "tpu"], ["device", "tpu", "cpu"]),
        (["report", "no/such/run"], ["no/such/run"]),
    ],
)
def test_wrong_input_is_one_line_and_exit_status_2(capsys, tmp_path, arguments, words):
    out = tmp_path / "out"
    extra = ["--out", out] if arguments[0].startswith("--") else []
    assert command(*extra, *arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    (line,) = captured.err.strip().splitlines()
    assert line.startswith("error: ")
    assert [word for word in words if word not in line] == []
    assert not out.exists()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[training]\nround = 3\n", ["training.round", "no such setting", "rounds"]),
        ("rounds = 3\n", ["rounds", "no such setting"]),
        ("[training\nrounds = 3\n", ["study", "TOML"]),
    ],
)
def test_a_wrong_study_is_one_line_and_exit_status_2(capsys, tmp_path, text, words):
    study = tmp_path / "study.toml"
    study.write_text(text)
    assert command("--study", study, "--out", tmp_path / "out") == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert [word for word in words if word not in line] == []
    assert not (tmp_path / "out").exists()


def test_an_output_folder_that_is_a_file_is_refused(capsys, tmp_path):
    out = tmp_path / "taken"
    out.write_text("mine")
    assert command("--out", out) == 2
    assert "is a file" in capsys.readouterr().err
    assert out.read_text() == "mine"


def test_an_empty_name_of_an_output_folder_is_refused(capsys):
    assert command("--out", "") == 2
    assert "out = '': the name of a folder" in capsys.readouterr().err


def rows_of(path):
    with path.open() as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def small_run(tmp_path_factory):
    """Run the small study once on the in-process engine."""
    out = tmp_path_factory.mktemp("runs") / "small"
    assert command(*SMALL, "--out", out) == 0
    return out


@pytest.mark.slow
def test_a_study_leaves_its_tables_and_pictures(small_run):
    names = {path.name for path in small_run.iterdir()}
    tables = {"settings.toml", "history.csv", "scores.csv", "results.csv"}
    assert tables | {"curve.png", "gallery.png", "observations", "reconstructions"} <= names
    results = rows_of(small_run / "results.csv")
    assert [row["quantizer"] for row in results] == [
        "none",
        "stochastic:bits=4",
        "error_feedback(sign)",
    ]
    assert float(results[0]["uplink_bytes_per_update"]) == 4 * 8026 + 10
    assert len(rows_of(small_run / "history.csv")) == 3 * 4  # three rounds and the untrained model


@pytest.mark.slow
@pytest.mark.parametrize("elsewhere", [("--engine", "ray"), ("--workers", "2")], ids=str)
def test_both_engines_give_the_same_bytes(small_run, tmp_path, elsewhere):
    out = tmp_path / "elsewhere"
    assert command(*SMALL, *elsewhere, "--out", out) == 0
    for kind in ("results.csv", "scores.csv", "history.csv", "observations/*/*"):
        expected = sorted(path.relative_to(small_run) for path in small_run.glob(kind))
        assert expected
        assert [p for p in expected if (out / p).read_bytes() != (small_run / p).read_bytes()] == []


@pytest.mark.slow
def test_a_finished_run_is_not_made_again_and_a_lost_piece_is(small_run):
    made = sorted(small_run.glob("observations/*/*")) + sorted(small_run.glob("training/*"))
    made += sorted(small_run.glob("reconstructions/*/*/*"))
    results = (small_run / "results.csv").read_bytes()
    before = {path: path.stat().st_mtime_ns for path in made}
    made[-1].write_bytes(made[-1].read_bytes()[:50])  # as a crash of the disk might leave it
    assert command(*SMALL, "--out", small_run) == 0
    after = {path: path.stat().st_mtime_ns for path in made}
    assert [path for path in made if after[path] != before[path]] == [made[-1]]
    assert (small_run / "results.csv").read_bytes() == results


@pytest.mark.slow
def test_an_attack_is_added_to_what_a_run_observed(small_run):
    spec = "idlg:iterations=15,restarts=0"
    assert command("attack", small_run, "--attacks", spec, "--workers", "2") == 0
    attacks = {row["attack"] for row in rows_of(small_run / "scores.csv")}
    assert attacks == {"dlg:iterations=15,restarts=0", spec}
