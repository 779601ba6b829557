import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fl_sim.study.runs import training_key
from fl_sim.study.settings import SettingsError, dump_settings, load_settings
from fl_sim.study.study import load_study, read_study
from fl_sim.study.trials import trials_of


@pytest.fixture
def study_of(tmp_path):
    """Load a study from the text of its file."""

    def load(text, overrides=None, smoke=False):
        path = tmp_path / "study.toml"
        path.write_text(text)
        return load_study(path, overrides or {}, smoke=smoke)

    return load


AXES = '[data]\npartition = "dirichlet"\nalpha = [0.1, 1]\n[training]\nbatch_size = [1, 4]\n'


def test_settings_with_several_values_are_multiplied(study_of):
    study = study_of(AXES)
    assert dict(study.axes) == {"alpha": (0.1, 1.0), "batch_size": (1, 4)}
    assert [point.name for point in study.points] == [
        "alpha=0.1,batch_size=1",
        "alpha=0.1,batch_size=4",
        "alpha=1.0,batch_size=1",
        "alpha=1.0,batch_size=4",
    ]
    last = study.points[-1].settings
    assert (last.data.alpha, last.training.batch_size) == (1.0, 4)
    assert last.data.partition == "dirichlet"


def test_a_study_without_axes_is_one_run_in_its_own_folder(tmp_path):
    study = load_study(None, {"rounds": "3", "seeds": "0,1", "observe": "first,last"})
    (point,) = study.points
    (folder,) = study.create(tmp_path)
    assert (dict(study.axes), point.name, folder.root) == ({}, "", tmp_path)
    assert folder.settings() == point.settings
    assert (point.settings.seeds, point.settings.audit.observe) == ((0, 1), ("first", "last"))
    assert folder.settings_file.read_text() == dump_settings(point.settings) == study.toml


def test_axes_come_from_the_command_line_too_and_one_value_wins_over_a_list(study_of):
    assert study_of("", {"clients": "2,3"}).axes == {"clients": (2, 3)}
    study = study_of(AXES, {"alpha": "0.5"})
    assert study.axes == {"batch_size": (1, 4)}
    assert {point.settings.data.alpha for point in study.points} == {0.5}


def test_axes_may_be_sweeps_and_rules_too(study_of):
    text = AXES.replace("[0.1, 1]", '["0.1..1/log2", 10]').replace("[1, 4]", '"1..3"')
    study = study_of(text + '[[exclude]]\nbatch_size = "2..3"\nalpha = 10\n', {"rounds": "5..6"})
    axes = {"alpha": (0.1, 1.0, 10.0), "rounds": (5, 6), "batch_size": (1, 2, 3)}
    assert study.axes == axes
    assert len(study.points) == 14
    assert study_of(study.toml).axes == axes


def test_a_folder_with_a_comma_is_one_folder():
    study = load_study(None, {"dataset": "folder", "data_dir": "a,b"})
    assert study.points[0].settings.data.data_dir == Path("a,b").absolute()


def test_a_relative_folder_means_the_same_wherever_the_study_is_read(tmp_path, monkeypatch):
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    study = load_study(None, {"dataset": "folder", "data_dir": "pictures"})
    study.create(tmp_path / "run")
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert read_study(tmp_path / "run") == study
    assert study.points[0].settings.data.data_dir == tmp_path / "pictures"


def test_rules_on_relative_folders_hold(study_of):
    axis = '[data]\ndataset = "folder"\ndata_dir = ["a", "b"]\n'
    study = study_of(axis + '[[exclude]]\ndata_dir = "a"\n')
    assert [point.settings.data.data_dir.name for point in study.points] == ["b"]


def test_moved_pictures_are_the_same_and_other_ones_are_not(tmp_path):
    def key(folder, seed):
        for name in ("cat", "dog"):
            (folder / name).mkdir(parents=True)
            pixels = np.random.default_rng(seed).integers(0, 256, (12, 8, 8), dtype=np.uint8)
            for number, picture in enumerate(pixels):
                Image.fromarray(picture).save(folder / name / f"{number}.png")
        data = {"dataset": "folder", "data_dir": folder, "clients": 2}
        settings = load_study(None, data).points[0].settings
        return training_key(trials_of(settings)[0], settings)

    here, there, other = (
        key(tmp_path / name, seed) for name, seed in [("here", 0), ("there", 0), ("other", 1)]
    )
    assert here == there != other


def test_values_that_fold_alike_are_points_of_their_own(study_of):
    study = study_of('[data]\ndataset = "folder"\ndata_dir = ["a b", "a-b", "a/b"]\n')
    names = {point.name for point in study.points}
    assert len(names) == 3
    assert all(re.fullmatch(r"data_dir=(a-)?b-[0-9a-f]{8}", name) for name in names)


def test_a_study_is_read_back_from_its_folder(study_of, tmp_path):
    study = study_of(AXES + '[[exclude]]\nquantizers = "sign"\nalpha = 0.1\n')
    folders = study.create(tmp_path / "out")
    assert read_study(tmp_path / "out") == study
    assert [folder.root.name for folder in folders] == [point.name for point in study.points]
    assert [folder.settings() for folder in folders] == [point.settings for point in study.points]


RULES = """
quantizers = ["none", "sign", "uniform:bits=4"]
seeds = [0, 1]
[training]
update = "delta"
local_steps = [1, 5]
[[exclude]]
quantizers = ["sign", "uniform:bits=4"]
local_steps = 5
[[exclude]]
quantizers = "none"
seeds = 1
"""


def test_a_rule_excludes_the_trials_that_it_equals_in_every_key(study_of):
    points = study_of(RULES).points
    left = [[(t.quantizer, t.seed) for t in trials_of(p.settings)] for p in points]
    both = [("none", 0), ("sign", 0), ("uniform:bits=4", 0), ("sign", 1), ("uniform:bits=4", 1)]
    assert left == [both, [("none", 0)]]


def test_a_point_of_which_nothing_is_left_is_not_run(study_of):
    study = study_of(AXES + "[[exclude]]\nalpha = 1\nbatch_size = [1, 2]\n")
    assert "alpha=1.0,batch_size=1" not in [point.name for point in study.points]
    assert len(study.points) == 3
    assert study.axes == {"alpha": (0.1, 1.0), "batch_size": (1, 4)}


SMOKE = "[training]\nrounds = 100\nbatch_size = 8\n[smoke]\nrounds = 2\nclients = [2, 3]\n"


def test_the_smoke_size_wins_over_the_file_and_the_command_line_over_both(study_of):
    assert study_of(SMOKE).points[0].settings.training.rounds == 100
    small = study_of(SMOKE, {"clients": "4"}, smoke=True).points[0].settings
    training = small.training
    assert (training.rounds, training.batch_size, small.data.clients) == (2, 8, 4)
    assert study_of(SMOKE, smoke=True).axes == {"clients": (2, 3)}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[data]\nalpha = []\n", ["alpha", "at least one"]),
        ("[data]\nalpha = [1, 1.0]\n", ["alpha=1.0", "once"]),
        ("[data]\nalpha = [1, 'x']\n", ["alpha", "x", "number"]),
        ("[engine]\nworkers = [1, 2]\n", ["workers", "integer"]),
        ("model = ['lenet', 'lenet_dgl']\n", ["model", "lenet_dgl", "lenet_dlg"]),
        ("exclude = 3\n", ["exclude", "3", "[[exclude]]"]),
        ("[[exclude]]\nlocal_step = 5\n", ["exclude", "local_step", "local_steps"]),
        ("[[exclude]]\nlocal_steps = 'many'\n", ["exclude.local_steps", "many", "integer"]),
        ("[[exclude]]\nquantizers = 'sing'\n", ["quantizers", "sing", "sign"]),
        ("[[exclude]]\nattacks = 'dlg'\n", ["exclude", "attacks"]),
        ("[[exclude]]\nseeds = 0\n", ["exclude", "no trial"]),
        ("[smoke]\nround = 1\n", ["smoke.round", "rounds"]),
        ("[smoke.training]\nrounds = 1\n", ["smoke.training", "no such setting"]),
        ("smoke = 1\n", ["smoke", "table"]),
    ],
)
def test_what_cannot_be_used_is_named_with_what_is_allowed(study_of, text, words):
    with pytest.raises(SettingsError) as caught:
        study_of(text)
    message = str(caught.value)
    assert "\n" not in message
    assert [word for word in words if word not in message] == []


def test_a_study_without_a_smoke_size_has_none(study_of):
    with pytest.raises(SettingsError, match=r"no \[smoke\] table"):
        study_of("", smoke=True)


def test_where_one_run_is_needed_an_axis_is_refused(tmp_path):
    with pytest.raises(SettingsError, match=r"alpha = '0.1,1': one value"):
        load_settings(None, {"alpha": "0.1,1"})
