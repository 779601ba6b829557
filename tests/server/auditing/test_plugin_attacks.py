"""An attack of another module, from its file through the command line to the tables."""

import csv

import pytest

from fl_sim.floors import ATTACK_CODE
from fl_sim.registry import load_plugins
from fl_sim.study.runs import attack_key
from fl_sim.study.trials import trials_of
from tests.commands import command, command_apart
from tests.results.conftest import small_settings

SOURCE = """
from dataclasses import dataclass

import torch

from fl_sim import register
from fl_sim.observed.reconstructions import Reconstruction

@register("attack", "NAME")
@dataclass(frozen=True)
class PublicMean:
    '''Guesses the mean of the public images.'''

    label: int = 0

    def applies(self, observations):
        return True

    def reconstruct(self, observations, *, seed, public=None, progress=None, device="cpu"):
        return [self._guess(one, public.images.mean(0)) for one in observations]

    def _guess(self, one, mean):
        images = mean.expand(one.work.images, *one.model.shape).clone()
        labels = torch.full((one.work.images,), self.label)
        where = (one.trial, one.round, one.partition, "?")
        return Reconstruction(*where, images, labels, 0.0, "converged", "squared", 0)
"""
SMALL = [
    *("--quantizers", "none", "--rounds", "1", "--clients", "2", "--limit", "100", "--model"),
    *("mlp", "--observe", "1", "--workers", "2", "--quiet"),
]


def rows_of(path):
    with path.open() as file:
        return list(csv.DictReader(file))


def test_the_code_of_a_registered_attack_is_in_the_key_of_its_own_results_alone(
    tmp_path, monkeypatch
):
    path = tmp_path / "keyed_attack.py"
    path.write_text(SOURCE.replace("NAME", "keyed"))
    load_plugins([str(path)])
    monkeypatch.setattr("fl_sim.study.runs.code_version", "+".join)
    audit = {"attacks": ["keyed:label=1", "dlg"], "observe": ["first"], "victims": 4}
    settings = small_settings(audit=audit)
    trial = trials_of(settings)[0]
    keyed, dlg = (attack_key(trial, settings, name, "trained") for name in audit["attacks"])
    assert keyed.endswith("-" + "+".join((*ATTACK_CODE, "keyed_attack")))
    assert dlg.endswith("-" + "+".join(ATTACK_CODE))


@pytest.mark.slow
def test_a_changed_attack_from_a_file_makes_only_its_own_results_anew(tmp_path):
    plugin, out = tmp_path / "mean_plugin.py", tmp_path / "run"
    plugin.write_text(SOURCE.replace("NAME", "mean_of_public"))
    study = [*SMALL, "--out", out, "--plugin", plugin]
    study += ["--attacks", "mean_of_public:label=1,dlg:iterations=2,restarts=0"]
    assert command(*study) == 0

    def written():
        files = (out / "reconstructions").rglob("*.safetensors")
        return {path.parent.name: path.stat().st_mtime_ns for path in files}

    made = written()
    guessed = {row["attack"]: row["label"] for row in rows_of(out / "scores.csv")}
    assert guessed["mean_of_public:label=1"] == "1"
    plugin.write_text(plugin.read_text().replace("self.label)", "self.label + 1)"))
    assert command_apart(*study).returncode == 0
    guessed = {row["attack"]: row["label"] for row in rows_of(out / "scores.csv")}
    assert guessed["mean_of_public:label=1"] == "2"
    anew = {name for name, time in written().items() if time != made[name]}
    assert anew == {"mean-of-public-label-1"}


@pytest.mark.slow
def test_a_faulty_attack_ends_the_run_in_one_line(tmp_path, capsys):
    plugin = tmp_path / "faulty_plugin.py"
    source = SOURCE.replace("NAME", "faulty").replace("for one in observations]", "for one in ()]")
    plugin.write_text(source)
    study = [*SMALL, "--plugin", plugin, "--out", tmp_path / "run"]
    assert command(*study, "--attacks", "fualty") == 2
    assert "did you mean 'faulty'?" in capsys.readouterr().err
    assert command(*study, "--attacks", "faulty,dlg:iterations=2") == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: attacks = 'faulty': the attack returned 0 reconstructions for 2")


def test_attacks_of_a_plugin_are_listed(tmp_path, capsys):
    plugin = tmp_path / "listed_plugin.py"
    plugin.write_text(SOURCE.replace("NAME", "listed"))
    assert command("attacks", "--plugin", plugin) == 0
    assert "listed: Guesses the mean of the public images.\n    listed:label=0" in (
        capsys.readouterr().out
    )
