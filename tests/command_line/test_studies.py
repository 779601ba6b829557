"""Every study of ``studies/``, as its user runs it at smoke size."""

import sys
from pathlib import Path

import pandas as pd
import pytest

import run_simulation
from fl_sim.study.study import load_study

STUDIES = sorted((Path(__file__).parents[2] / "studies").rglob("*.toml"))


def test_the_questions_of_the_project_each_have_a_study():
    names = {path.stem for path in STUDIES}
    assert names >= {"default", "accuracy", "reconstruction", "stages", "seeds"}
    assert names >= {"defences", "guarantees"}
    assert names >= {"dlg_table", "one_bit", "rounds", "non_iid", "local_steps", "batch_size"}
    assert names >= {"curves", "curves_cifar"}


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.stem)
def test_a_study_says_what_it_asks_how_to_read_it_and_how_long_it_takes(path):
    head = path.read_text(encoding="utf-8").split("\nquantizers")[0]
    assert all(line.startswith("#") for line in head.splitlines())
    for word in ("?", "Read ", "Full size: ", "CPU minutes"):
        assert word in head


@pytest.mark.slow
@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.stem)
def test_a_study_runs_at_smoke_size(path, monkeypatch, capsys, tmp_path):
    out = tmp_path / "out"
    arguments = ["--study", path, "--smoke", "--workers", "1", "--out", out]
    monkeypatch.setattr(sys, "argv", ["run_simulation.py", *map(str, arguments)])
    run_simulation.main()
    study = load_study(path, {}, smoke=True)
    results = pd.read_csv(out / "results.csv")
    settings = study.points[0].settings
    assert len(results) == len(study.points) * len(settings.quantizers)
    assert (results["trials"] == len(settings.seeds)).all()
    assert (results["victims"] > 0).all()
    assert results["test_accuracy_mean"].between(0, 1).all()
    assert all(results[name].nunique() == len(values) for name, values in study.axes.items())
