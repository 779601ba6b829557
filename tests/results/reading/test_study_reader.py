import pandas as pd
import pytest

from fl_sim.study.settings import SettingsError, dump_settings
from fl_sim.study.study import load_study
from results import load_run
from results.exports import export
from tests.results.conftest import graded, small_settings, write_run


@pytest.fixture(scope="module")
def graded_study(tmp_path_factory):
    """Two points, alpha 0.5 and 9, of which the second is not attacked."""
    root = tmp_path_factory.mktemp("runs") / "study"
    tree = "quantizers = ['none', 'sign']\n[data]\nclients = 3\nlimit = 400\nalpha = [0.5, 9.0]\n"
    file = root.with_suffix(".toml")
    file.write_text(tree + "[training]\nrounds = 2\n[audit]\nattacks = ['cell']\nvictims = 3\n")
    study = load_study(file, {})
    first, _ = study.create(root)
    write_run(first.root, study.points[0].settings, graded)
    return root


def test_a_run_is_read_in_three_lines(graded_run):
    run = load_run(str(graded_run))
    assert list(run.results["quantizer"]) == ["none", "uniform:bits=4", "sign"]
    assert run.results.columns[0] == "quantizer"
    assert (
        len(run.scores) == 3 * 2 * 2 * 2 * 4 * 2
    )  # quantizers seeds rounds attacks clients images
    assert run.history["round"].max() == 5
    assert run.curve()._repr_png_().startswith(b"\x89PNG")
    assert run.gallery().width > run.gallery().height / 2


def test_a_study_is_read_over_all_its_points(graded_study):
    study = load_run(graded_study)
    assert list(study.runs) == ["alpha=0.5", "alpha=9.0"]
    results = study.results
    assert list(results.columns[:2]) == ["alpha", "quantizer"]
    assert list(results["alpha"]) == [0.5, 0.5, 9.0, 9.0]
    assert list(results["verdict"]) == ["leaks", "not established", *["not established"] * 2]
    assert set(study.scores["alpha"]) == {0.5}
    by_round = study.results_by_round
    assert list(by_round.columns[:3]) == ["alpha", "round", "quantizer"]
    assert by_round.groupby("alpha")["round"].count().to_dict() == {0.5: 4, 9.0: 0}
    assert study.curve().width > 1000
    assert study.gallery("alpha=0.5").width > 500
    with pytest.raises(ValueError, match="nothing has been attacked"):
        study.gallery("alpha=9.0")
    with pytest.raises(KeyError):
        study.gallery()


def test_a_study_is_exported_over_all_its_points(graded_study):
    paths = export(graded_study, ["md", "tex", "parquet", "png"])
    names = [path.relative_to(graded_study).as_posix() for path in paths]
    tables = ["results.md", "results.tex", "curve.tex", "curve.pdf"]
    tables += ["results.parquet", "scores.parquet"]
    figures = ["curve.png", "psnr_by_alpha.png"]
    figures += ["alpha=0.5/curve_by_round.png", "alpha=0.5/gallery.png"]
    assert names == [*tables, *figures]
    lines = paths[0].read_text().splitlines()
    assert lines[0].startswith("| alpha | quantizer | ")
    assert [line.split(" | ")[0] for line in lines[2:6]] == ["| 0.5", "| 0.5", "| 9.0", "| 9.0"]
    assert lines[5].endswith("| not established* |")
    doubt = "`sign`: not established, no attack was run, or none applies"
    assert any(doubt in line for line in lines[6:])
    frame = pd.read_parquet(paths[4])
    assert list(frame["established"]) == list(load_run(graded_study).results["established"])


def test_what_is_no_run_is_refused(tmp_path):
    with pytest.raises(SettingsError, match="not the folder of a run"):
        load_run(tmp_path)
    (tmp_path / "settings.toml").write_text(dump_settings(small_settings()))
    assert list(load_run(tmp_path).results["doubt"]) == ["no attack was run, or none applies"] * 3
