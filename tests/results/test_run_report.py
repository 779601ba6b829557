import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from fl_sim.coding.entropy import entropy_coded_bytes
from fl_sim.observed.observations import load_observations, round_path
from fl_sim.storage.files import StoreError
from fl_sim.study.settings import SettingsError, dump_settings
from fl_sim.study.study import load_study
from results.reading.run_reader import RunReader
from results.run_report import summarise
from results.scores.rows import VICTIM, random_victims
from tests.results.conftest import graded, small_settings, write_run

FILES = ["results.csv", "families.csv", "scores.csv", "curve.png", "gallery.png"]


@pytest.fixture(scope="module")
def summary(graded_run: Path) -> pd.DataFrame:
    return summarise(graded_run).set_index("quantizer")


def test_the_study_is_summed_up_in_its_order(summary):
    assert list(summary.index) == ["none", "uniform:bits=4", "sign"]
    assert summary["trials"].tolist() == [2, 2, 2]
    assert summary["victims"].tolist() == [32] * 3  # seeds x rounds x clients x images
    assert summary["test_accuracy_mean"].tolist() == pytest.approx([0.605, 0.605, 0.555])
    assert summary.loc["none", "mse_median"] < 1e-12
    assert summary["mse_median"].is_monotonic_increasing
    assert summary.loc["uniform:bits=4", "strongest_attack"] == "cell"
    assert summary.loc["uniform:bits=4", "naive_attack"] == "dlg"
    assert summary["label_accuracy"].tolist() == [1, 1, 1]
    assert summary.loc["none", "verdict"] == "leaks"
    assert summary.loc["sign", "verdict"] == "not established"
    assert summary.loc["sign", "attack_failed_rate"] == 1
    assert 0.01 < summary["baseline_mse"].iloc[0] < 0.2


@pytest.mark.usefixtures("summary")
def test_scores_hold_every_victim_and_attack(graded_run):
    scores = pd.read_csv(graded_run / "scores.csv")
    assert len(scores) == 3 * 2 * 32
    assert not scores.duplicated(["quantizer", *VICTIM, "attack"]).any()
    assert scores.groupby(["quantizer", *VICTIM])["strongest"].sum().eq(1).all()
    none = scores[scores["quantizer"] == "none"]
    assert none["label_hit"].all()  # batches came back in the other order
    assert none["identified"].all()
    assert (scores["inconsistency"] < 1e-5).all()
    assert np.isfinite(scores["mse"]).all()


@pytest.mark.usefixtures("summary")
def test_results_are_the_same_bytes_again(graded_run):
    before = {name: (graded_run / name).read_bytes() for name in FILES}
    summarise(graded_run)
    assert {name: (graded_run / name).read_bytes() for name in FILES} == before


def test_bytes_are_those_of_the_payloads(graded_run, summary):
    run = RunReader(graded_run)
    path = round_path(run.folder.observations, "sign_seed-0", 1)
    payload = load_observations(path)[0].payload
    assert summary.loc["sign", "uplink_bytes_per_update"] == payload.nbytes
    assert summary.loc["sign", "bits_per_parameter"] == pytest.approx(
        8 * payload.nbytes / payload.layout.size
    )
    assert (
        summary.loc["uniform:bits=4", "entropy_coded_bytes_per_update"]
        < (summary.loc["uniform:bits=4", "uplink_bytes_per_update"])
    )
    assert 0 < entropy_coded_bytes(payload) <= payload.nbytes


def test_pictures_of_a_row_are_its_own(graded_run):
    run = RunReader(graded_run)
    strongest = run.scores[run.scores["strongest"]]
    for _, row in strongest.groupby("quantizer").sample(3, random_state=0).iterrows():
        error = (run.guess(row).clamp(0, 1) - run.victim(row)).square().mean()
        assert float(error) == pytest.approx(row["mse"], abs=1e-7)


def test_random_victims_are_shared_by_all_and_drawn_by_seed(graded_run):
    scores = RunReader(graded_run).scores
    missing = scores[~((scores["quantizer"] == "sign") & (scores["partition"] == 2))]
    drawn = random_victims(missing, 8)
    assert len(drawn) == 8
    assert 2 not in drawn["partition"].to_numpy()
    assert drawn.equals(random_victims(missing, 8))
    assert len(random_victims(missing, 1000)) == 24


def test_a_run_without_attacks_is_summarised_as_far_as_it_got(graded_run, tmp_path):
    shutil.copytree(graded_run, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "reconstructions")
    results = summarise(tmp_path / "run")
    assert results["verdict"].eq("not established").all()
    assert results["doubt"].eq("no attack was run, or none applies").all()
    assert results["test_accuracy_mean"].notna().all()
    assert len(pd.read_csv(tmp_path / "run" / "scores.csv")) == 0


def test_a_run_without_anything_but_settings_is_summarised(tmp_path):
    (tmp_path / "settings.toml").write_text(dump_settings(small_settings()))
    results = summarise(tmp_path)
    assert results["trials"].tolist() == [0, 0, 0]
    assert (tmp_path / "curve.png").exists()


def test_stale_and_broken_reconstructions_are_left_out(graded_run, tmp_path, caplog):
    shutil.copytree(graded_run, tmp_path / "run")
    (file,) = (tmp_path / "run" / "reconstructions" / "sign_seed-0" / "dlg").iterdir()
    file.write_bytes(file.read_bytes()[:100])
    run = RunReader(tmp_path / "run")
    rest = run.scores.query("quantizer == 'sign' and seed == 0")
    assert set(rest["attack"]) == {"cell"}
    assert set(rest["round"]) == {1, 5}
    assert "left out" in caplog.text
    text = run.folder.settings_file.read_text().replace("victims = 4", "victims = 3")
    run.folder.settings_file.write_text(text)
    assert RunReader(tmp_path / "run").scores.empty  # made under other settings


def test_a_broken_observation_is_an_error_that_names_the_file(graded_run, tmp_path):
    shutil.copytree(graded_run, tmp_path / "run")
    path = round_path(tmp_path / "run" / "observations", "none_seed-0", 1)
    path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(StoreError, match="round-00001"):
        summarise(tmp_path / "run")


def test_a_folder_that_is_no_run_is_refused(tmp_path):
    with pytest.raises(SettingsError, match="not the folder of a run"):
        summarise(tmp_path)


def test_an_attack_that_diverged_is_counted_not_averaged(tmp_path):
    def diverged(images, labels, quantizer, attack):
        if quantizer == "sign":
            return torch.full_like(images, torch.nan), labels
        return graded(images, labels, quantizer, attack)

    settings = small_settings(seeds=[0], quantizers=["none", "sign"])
    row = summarise(write_run(tmp_path / "run", settings, diverged).root).iloc[1]
    assert row["mse_median"] == 1
    assert row["attack_failed_rate"] == 1
    assert row["verdict"] == "not established"
    assert row["identified_rate"] == 0


def test_a_study_with_axes_is_summed_up_over_its_points(tmp_path):
    (tmp_path / "study.toml").write_text(dump_settings(small_settings(seeds=[0])))
    overrides = {"batch_size": "1,2", "quantizers": "none,sign", "attacks": "dlg", "rounds": "2"}
    study = load_study(tmp_path / "study.toml", overrides)
    folders = study.create(tmp_path / "run")
    for point, folder in zip(study.points, folders, strict=True):
        write_run(folder.root, point.settings, graded)
    results = summarise(tmp_path / "run")
    assert list(results.columns[:2]) == ["batch_size", "quantizer"]
    rows = [(1, "none"), (1, "sign"), (2, "none"), (2, "sign")]
    assert list(results[["batch_size", "quantizer"]].itertuples(index=False)) == rows
    of_point = summarise(folders[1].root)
    assert results["victims"].tolist()[2:] == of_point["victims"].tolist() == [16, 16]
    assert len(pd.read_csv(tmp_path / "run" / "history.csv")) == 2 * 2 * 3
    page = (tmp_path / "run" / "report.html").read_text()
    assert "batch_size=1 / none" in page
    assert "batch_size=2 / sign" in page
    assert (tmp_path / "run" / "curve.png").exists()


def test_colour_images(tmp_path):
    root = Path("../shared/data/cifar10")
    if not root.is_dir():
        pytest.skip("the CIFAR images of ../shared/data are not here")
    settings = small_settings(
        quantizers=["none"],
        seeds=[0],
        data={"dataset": "folder", "data_dir": str(root), "clients": 4, "limit": 40},
    )
    results = summarise(write_run(tmp_path / "run", settings, graded).root)
    assert results.loc[0, "mse_median"] < 1e-12
