"""The evidence can be made again: every part at smoke size, skipped where it stands."""

import sys
from types import SimpleNamespace

import pandas as pd
import pytest
import torch

from benchmarks.attack_trials import SPEC, Trial, observe_trial
from benchmarks.evidence import remake
from benchmarks.evidence.findings import TABLES
from docs.render.tables import RESULTS, index
from fl_sim.models import build_model
from fl_sim.updates.local_update import Layout, LocalWork
from results.reading.study_reader import StudyReader
from results.scores.gates import Truth
from tests.results.conftest import graded_run  # noqa: F401


@pytest.fixture
def remade(monkeypatch, capsys):
    """Run the command and return what it prints."""

    def run(*options):
        monkeypatch.setattr(sys, "argv", ["remake", *map(str, options)])
        remake.main()
        return capsys.readouterr().out

    return run


@pytest.mark.slow
def test_parts_are_made_at_smoke_size_and_skipped_where_they_stand(remade, tmp_path):
    options = ["--smoke", "--out", tmp_path, "--workers", 1]
    names = ["table", "joint_rounds", "imprint", "error_feedback"]
    assert "4 of 4 parts to make" in remade(*options, "--only", *names)
    for part in remake.PARTS:
        if part.name in names:
            table = pd.read_csv(tmp_path / "results" / part.csv, dtype=str)
            assert len(table) > 0
            assert set(table["command"]) == {part.command}
            assert table["code"].str.fullmatch("[0-9a-f]{16}").all()
            assert list(table)[-3:] == list(remake.MADE_BY)
    table = tmp_path / "results" / "attacks" / "table.csv"
    rows = pd.read_csv(table).set_index("attack")
    chosen = rows.loc["chosen"]
    assert chosen["best known dB"] >= chosen["PSNR dB"]
    assert chosen["chosen"] in {f"{name} 2" for name in rows.index}
    assert "0 of 4 parts to make" in remade(*options, "--only", *names, "--list")
    other = pd.read_csv(table, dtype=str).assign(code="0" * 16)
    other.to_csv(table, index=False)
    assert "1 of 4 parts to make" in remade(*options, "--only", *names, "--list")


def test_the_cost_is_said_before_anything_is_made(remade, tmp_path):
    said = remade("--list", "--out", tmp_path)
    assert f"{len(remake.PARTS)} of {len(remake.PARTS)} parts to make" in said
    assert f"{sum(part.minutes for part in remake.PARTS):g} CPU minutes" in said
    assert list(tmp_path.iterdir()) == []


def test_every_table_of_a_part_is_in_the_index_and_every_study_has_its_columns():
    known = {facts["csv"] for facts in index()}
    assert {part.csv for part in remake.PARTS if (RESULTS / part.csv).exists()} <= known
    studies = {part.name for part in remake.PARTS if "--study" in part.command}
    assert studies == set(TABLES)


@pytest.fixture
def study(graded_run):  # noqa: F811
    reader = StudyReader(graded_run)
    models = ("lenet_dlg", "lenet")
    scores = pd.concat([reader.scores.assign(model=name) for name in models], ignore_index=True)
    by_round = reader.results_by_round.assign(batch_size=1)
    return SimpleNamespace(
        scores=scores, results=reader.results, results_by_round=by_round, history=reader.history
    )


@pytest.mark.parametrize("name", TABLES)
def test_a_table_has_a_row_for_each_quantizer_and_the_columns_of_its_page(name, study):
    table = TABLES[name](study)
    assert list(dict.fromkeys(table["quantizer"])) == ["none", "uniform:bits=4", "sign"]
    if name == "stages":
        assert list(table["attack"]) == ["dlg", "cell", "chosen"] * 3
        best = table.set_index(["quantizer", "attack"])["best known dB, round 5"]
        assert best["sign", "chosen"] == best["sign", "dlg"]
    if name == "accuracy":
        assert list(table["points to none, seed 1"]) == ["+0.0", "+0.0", "-5.0"]
    if name == "dlg_table":
        assert {"sigmoid: MSE of dlg", "tanh: MSE of cell", "tanh: best known dB"} <= set(table)
    assert table.notna().all(axis=None) or name == "default"


def test_the_control_gives_each_client_the_payload_of_the_next():
    truth = Truth(torch.rand(3, 1, *SPEC.shape), torch.tensor([[0], [1], [2]]))
    module = build_model(SPEC)
    weights = Layout.of(module).flatten({k: p.detach() for k, p in module.named_parameters()})
    own, shuffled = (
        [one.payload.to_bytes() for one in observe_trial(trial, truth, weights)]
        for trial in (Trial("sign", ()), Trial("sign", (), shuffled=True))
    )
    assert shuffled == [*own[1:], own[0]]
    assert Trial("sign", (), LocalWork(batch_size=4), trained=True).setting == (
        "batch 4, trained weights"
    )
