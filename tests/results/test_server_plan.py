"""What the server does to its clients is said wherever results are shown."""

import io

import matplotlib.text
import pandas as pd
import pytest
from rich.console import Console

from fl_sim.study.settings import dump_settings
from fl_sim.study.study import load_study
from results import load_run
from results.exports import export
from results.figures.curves import curve_figure
from results.reading.study_reader import run_gallery
from results.run_report import summarise
from results.tables.paper import paper_table
from results.tables.terminal import print_results
from results.tables.verdicts import server_plans
from tests.results.conftest import graded, small_settings, write_run

CURIOUS = "Server plan: curious (honest but curious)."
IMPRINT = "Server plan: imprint:bins=4 (malicious: plants an imprint layer)."


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """A study of two server plans."""
    root = tmp_path_factory.mktemp("servers")
    settings = small_settings(
        quantizers=["none"],
        seeds=[0],
        model="mlp",
        audit={"attacks": ["dlg"], "observe": ["first"], "victims": 4},
    )
    (root / "study.toml").write_text(dump_settings(settings))
    asked = load_study(root / "study.toml", {"server": "curious,imprint:bins=4"})
    for point, folder in zip(asked.points, asked.create(root / "run"), strict=True):
        write_run(folder.root, point.settings, graded)
    summarise(root / "run")
    return load_run(root / "run")


def words_of(figure):
    texts = figure.findobj(matplotlib.text.Text)
    return " ".join(" ".join(text.get_text() for text in texts).split())


def test_each_row_names_its_plan_once(study):
    assert study.results["server"].tolist() == ["curious", "imprint:bins=4"]
    assert list(study.results.columns).count("server") == 1
    for run, plan in zip(study.runs.values(), ("curious", "imprint:bins=4"), strict=True):
        table = pd.read_csv(run.folder.root / "results.csv")
        assert table["server"].tolist() == [plan]
        assert paper_table(run.results)["server"].tolist() == [plan]
    assert list(paper_table(study.results).columns).count("server") == 1


def test_each_table_of_the_terminal_names_its_plan(study):
    console = Console(width=80, file=io.StringIO(), record=True)
    print_results(study.results, console)
    text = " ".join(console.export_text().split())
    assert text.index(CURIOUS) < text.index("server = imprint") < text.index(IMPRINT)


def test_figures_pages_and_exports_say_what_each_plan_is(study):
    assert server_plans(study.results) == f"{CURIOUS} {IMPRINT}"
    assert f"{CURIOUS} {IMPRINT}" in words_of(curve_figure(study.results))
    curious, imprint = study.runs.values()
    assert CURIOUS in words_of(run_gallery(curious))
    assert IMPRINT in words_of(run_gallery(imprint))
    assert IMPRINT in (imprint.folder.root / "report.html").read_text()
    assert CURIOUS not in (imprint.folder.root / "report.html").read_text()
    page = (study.root / "report.html").read_text()
    assert page.count(f"{CURIOUS} {IMPRINT}") == 3  # threat model, curve, victims
    written = {path.name: path for path in export(study.root, ["md", "tex"])}
    for name in ("results.md", "results.tex"):
        assert f"{CURIOUS} {IMPRINT}" in written[name].read_text()
