"""A metric of another module, from its file through the command line to the tables."""

import csv

import numpy as np
import pandas as pd
import pytest
import torch
from rich.console import Console

from fl_sim.metrics import FurtherMetric, further_metrics
from fl_sim.registry import PartError, register
from fl_sim.storage.files import write_text
from fl_sim.study.runs import attack_key, score_key
from fl_sim.study.settings import SettingsError, dump_settings
from fl_sim.study.trials import trials_of
from results.figures import charts
from results.reading.run_reader import RunReader
from results.run_report import summarise
from results.scores.baselines import bar
from results.scores.scoring import score_images
from results.tables.terminal import print_results
from tests.commands import command, command_apart
from tests.results.conftest import graded, small_settings, write_run

SOURCE = """
from fl_sim import register

@register("metric", "brightness")
def brightness(images, truth, *, scale: float = 1.0):
    return abs(images.mean((1, 2, 3)) - truth.mean((1, 2, 3))) * scale

brightness.higher_is_better = False
"""
SMALL = [
    *("--quantizers", "none", "--rounds", "1", "--clients", "2", "--limit", "100", "--model"),
    *("mlp", "--attacks", "dlg:iterations=2,restarts=0", "--observe", "1", "--workers", "1"),
]


def rows_of(path):
    with path.open() as file:
        return list(csv.DictReader(file))


@pytest.mark.slow
def test_a_metric_from_a_file_is_a_column_and_is_scored_anew_when_it_changes(tmp_path):
    plugin, out = tmp_path / "brightness_plugin.py", tmp_path / "run"
    plugin.write_text(SOURCE)
    study = [*SMALL, "--out", out, "--plugin", plugin]
    study += ["--metrics", "brightness,brightness:scale=2"]
    assert command(*study) == 0
    made = {p: p.stat().st_mtime_ns for p in out.rglob("*.safetensors")}
    assert made
    scores, (result,) = rows_of(out / "scores.csv"), rows_of(out / "results.csv")
    for row in scores:
        once, twice = float(row["brightness"]), float(row["brightness-scale-2"])
        assert twice == pytest.approx(2 * once, rel=1e-5)
    middle = np.median([float(row["brightness"]) for row in scores])
    assert float(result["brightness_median"]) == pytest.approx(middle, rel=1e-5)
    plugin.write_text(SOURCE.replace("* scale", "* scale + 100"))
    assert command_apart(*study).returncode == 0
    (changed,) = rows_of(out / "results.csv")
    assert float(changed["brightness_median"]) == pytest.approx(100 + middle, abs=1e-2)
    assert changed["mse_median"] == result["mse_median"]
    assert {p: p.stat().st_mtime_ns for p in out.rglob("*.safetensors")} == made
    assert "brightness median" in (out / "report.html").read_text()


FAULTS = {
    "raises": ("raise ArithmeticError('no\\nluck')", "raised ArithmeticError: no luck"),
    "one_number": ("return 0.5", "returned shape () for"),
    "not_a_number": ("return images.mean((1, 2, 3)) * float('nan')", "returned nan"),
    "text": ("return ['a'] * len(images)", "raised ValueError"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_metric_that_fails_is_one_line_and_leaves_the_tables_as_they_were(tmp_path, capsys, name):
    body, words = FAULTS[name]
    write_text(
        tmp_path / f"plugin_{name}.py",
        "from fl_sim import register\n"
        f"@register('metric', '{name}')\ndef score(images, truth):\n    {body}\n"
        "score.higher_is_better = True\n",
    )
    settings = small_settings(seeds=[0], quantizers=["none"])
    folder = write_run(tmp_path / "run", settings, graded)
    summarise(folder.root)
    before = {p: p.read_bytes() for p in folder.root.iterdir() if p.suffix in {".csv", ".html"}}
    text = dump_settings(settings).replace("metrics = []", f"metrics = ['{name}']")
    text = text.replace("plugin = []", f"plugin = ['{tmp_path / f'plugin_{name}.py'}']")
    write_text(folder.settings_file, text)
    assert command("report", folder.root, "--quiet") == 1
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith(f"error: metrics = '{name}': the metric {words}")
    assert {p: p.read_bytes() for p in before} == before
    assert not list(folder.root.rglob(".*.csv*"))


def register_all():
    """Metrics of this module; registered once, under names of their own."""

    @register("metric", "likeness")
    def likeness(images, truth):
        images -= truth  # its own copy: nobody else is scored on it
        return -(images**2).mean((1, 2, 3))

    likeness.higher_is_better = True

    @register("metric", "undecided")
    def undecided(images, truth):
        return images.mean((1, 2, 3))

    @register("metric", "mse")
    def mse(images, truth):
        return likeness(images, truth)

    mse.higher_is_better = False


register_all()


def test_a_metric_sees_clamped_images_and_changes_none():
    generator = torch.Generator().manual_seed(0)
    truth = torch.rand(3, 1, 8, 8, generator=generator)
    images = truth + torch.randn(truth.shape, generator=generator)
    images[1, 0, 0, 0] = torch.inf
    scores = score_images(images, truth, None, further_metrics(["likeness"]))
    finite = [0, 2]
    assert scores["likeness"][finite].tolist() == (-scores["mse"][finite]).tolist()
    grey = float(((0.5 - truth[1].double()) ** 2).mean())
    assert scores["likeness"][1] == pytest.approx(-grey)
    plain = score_images(images, truth)
    assert scores[plain.columns].equals(plain)


def test_a_metric_must_say_its_direction_and_leave_the_columns_of_others():
    assert further_metrics(["likeness"])[0].higher_is_better
    with pytest.raises(
        SettingsError, match="metrics = 'undecided': must have an attribute higher_is"
    ):
        further_metrics(["undecided"])
    with pytest.raises(SettingsError, match="metrics = 'mse': is a column of every study"):
        further_metrics(["mse"])


def test_no_column_of_the_scores_can_be_replaced(graded_run):
    from fl_sim.metrics import _TAKEN

    assert set(RunReader(graded_run).scores.columns) - set(_TAKEN) == set()


def test_a_further_metric_leaves_training_and_attacks_as_they_are():
    audit = {"attacks": ["dlg"], "observe": ["first"], "victims": 4}
    keys = []
    for metrics in ([], ["likeness"]):
        settings = small_settings(audit=audit | {"metrics": metrics})
        attacked = attack_key(trials_of(settings)[0], settings, "dlg")
        keys.append((attacked, score_key(attacked, settings.audit.metrics)))
    assert keys[0][0] == keys[1][0]
    assert keys[0][1] != keys[1][1]


@pytest.mark.parametrize("setting", [{"metrics": ["likenes"]}, {"metrics": ["likeness"] * 2}])
def test_a_wrong_setting_is_refused(setting):
    audit = {"attacks": ["dlg"], "observe": ["first"], "victims": 4} | setting
    with pytest.raises(SettingsError, match="likenes.*(did you mean 'likeness'|only once)"):
        small_settings(audit=audit)


def test_a_score_for_each_pair_is_needed():
    metric = FurtherMetric("short", lambda images, truth: np.zeros(len(images) - 1), False)
    with pytest.raises(PartError, match=r"metrics = 'short'.*shape \(1,\) for 2 images"):
        metric(np.zeros((2, 1, 8, 8)), np.zeros((2, 1, 8, 8)))


def test_the_terminal_shows_a_metric_where_it_fits_and_a_run_without_attacks_has_it(tmp_path):
    audit = {"attacks": ["dlg"], "observe": ["first"], "victims": 4, "metrics": ["likeness"]}
    settings = small_settings(seeds=[0], quantizers=["none"], audit=audit)
    run = RunReader(write_run(tmp_path / "run", settings, graded).root)
    results = summarise(run.folder.root)
    assert results["likeness_median"][0] == pytest.approx(0, abs=1e-9)
    assert {"likeness_median_low", "likeness_median_high"} <= set(results.columns)
    for width, shown in ((80, False), (115, False), (140, True)):
        console = Console(width=width, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
        print_results(results, console)
        assert ("likeness" in console.export_text()) is shown
    switch = charts.curve(results, run.scores, run.baselines, run.metrics)[1]["metric"]
    restyle, relayout = switch["likeness, median victim"]
    assert relayout["xaxis.autorange"] == "reversed"  # a higher score is no protection
    assert restyle["x"][1] == pytest.approx([-bar(run.baselines)] * 2)
    write_text(tmp_path / "empty" / "settings.toml", dump_settings(settings))
    empty = summarise(tmp_path / "empty")
    assert empty["likeness_median"].isna().all()
    assert "likeness" in pd.read_csv(tmp_path / "empty" / "scores.csv").columns
