import csv
import tomllib
from importlib import import_module
from pathlib import Path

import pytest
from flwr.app import Context, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import ServerApp

from clients.app import app as client_app
from fl_sim.engines.grids import LocalGrid
from fl_sim.study.settings import SettingsError, load_settings
from server.app import app as server_app
from server.strategies.reception import RoundFailedError
from server.training import find_nodes

PYPROJECT = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())
FLOWER = PYPROJECT["tool"]["flwr"]["app"]


def run(config):
    context = Context(
        run_id=1,
        node_id=1,
        node_config={},
        state=RecordDict(),
        run_config=FLOWER["config"] | config,
    )
    server_app(LocalGrid(client_app, 2), context)


def test_flowers_components_are_the_apps():
    for key, kind in (("serverapp", ServerApp), ("clientapp", ClientApp)):
        module, name = FLOWER["components"][key].split(":")
        assert isinstance(getattr(import_module(module), name), kind)


def test_flower_run_trains_what_its_run_config_says(tmp_path):
    config = {"clients": "2", "num-server-rounds": "2", "quantizers": "sign", "batch-size": "3"}
    run({**config, "out": str(tmp_path / "out")})
    with (tmp_path / "out" / "history.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["round"] for row in rows] == ["0", "1", "2"]
    assert {row["quantizer"] for row in rows} == {"sign"}
    assert len(list((tmp_path / "out" / "observations").rglob("*.safetensors"))) == 2


def test_a_run_config_that_cannot_be_used_is_refused(tmp_path):
    with pytest.raises(SettingsError, match="batch_size = '0'"):
        run({"batch-size": "0", "out": str(tmp_path / "out")})


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("mlp:width=0", "model = 'mlp:width=0': width=0 is not allowed"),
        ("vit:patch=5", "patch=5 does not divide the sides of 8x8 images"),
        ("torchvision:name=alexnet", "cannot classify 1x8x8 images"),
    ],
)
def test_a_model_that_does_not_fit_the_images_is_refused(tmp_path, model, message):
    with pytest.raises(SettingsError, match=message):
        run({"model": model, "out": str(tmp_path / "out")})


def test_numbers_in_a_run_config_are_read_as_their_text_is(tmp_path):
    config = {"clients": 2, "num-server-rounds": 1, "quantizers": "sign", "learning-rate": 0.01}
    out = tmp_path / "out"
    run({**config, "seeds": 3, "observe": 1, "limit": 50, "fixed-batch": True, "out": str(out)})
    settings = load_settings(out / "settings.toml", {})
    assert (settings.seeds, settings.audit.observe, settings.data.limit) == ((3,), ("1",), 50)
    assert settings.training.fixed_batch
    assert settings.training.server_learning_rate == 0.01


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"batch-size": True}, "batch_size = 'True'"),
        ({"study": 0}, "study = '0': cannot be read"),
        ({"clients": 5000}, "clients = 5000: at most"),
        ({"bach-size": 2}, "bach_size = '2': no such setting; did you mean 'batch_size'"),
    ],
)
def test_what_a_run_config_cannot_be_is_logged_in_one_line_and_ends_the_run(
    tmp_path, caplog, config, words
):
    with pytest.raises(SettingsError, match=words):
        run({**config, "out": str(tmp_path / "out")})
    (line,) = [record.getMessage() for record in caplog.records if record.levelname == "ERROR"]
    assert words in line
    assert not (tmp_path / "out").exists()


def test_a_trial_that_fails_ends_the_run(tmp_path, monkeypatch):
    def fail(*_):
        raise RoundFailedError("no update could be used")

    monkeypatch.setattr("server.app.train_trial", fail)
    with pytest.raises(RoundFailedError, match=r"1 trial.*sign"):
        run({"clients": 2, "quantizers": "sign", "out": str(tmp_path / "out")})


def test_nodes_that_do_not_come_up_are_missed_in_time():
    with pytest.raises(TimeoutError, match="3 partitions are needed"):
        find_nodes(LocalGrid(client_app, 2), 3, timeout=0.2)
