"""The example app: Flower's quick-start, run in this process, and audited."""

import tomllib
from importlib import import_module
from pathlib import Path

import pytest
import torch
from flwr.app import Context, RecordDict

from fl_sim.engines import LocalGrid
from fl_sim.updates import LocalWork

APP = Path(__file__).parents[2] / "examples" / "quickstart"
FLOWER = tomllib.loads((APP / "pyproject.toml").read_text())["tool"]["flwr"]["app"]


def component(name):
    module, attribute = FLOWER["components"][name].split(":")
    return getattr(import_module(module), attribute)


def run(out, clients, **config):
    config = FLOWER["config"] | {"out": str(out)} | config
    context = Context(1, 1, {}, RecordDict(), config)
    component("serverapp")(LocalGrid(component("clientapp"), clients, config), context)


@pytest.fixture(autouse=True)
def importable(monkeypatch):
    monkeypatch.syspath_prepend(str(APP))


def test_the_example_trains_and_its_audit_recovers_what_clients_trained_on(tmp_path, capsys):
    run(tmp_path, 2, **{"num-server-rounds": 1})
    audit = import_module("audit")
    audit.main(tmp_path)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["round", "client", "attack", "PSNR", "labels"]
    assert len(lines) == 3
    assert all(float(line.split()[3]) > 20 for line in lines[1:])  # dB; grey is at about 9
    assert all(line.endswith("100%") for line in lines[1:])
    assert set(torch.load(tmp_path / "final_model.pt", weights_only=True)) == {
        f"{layer}.{kind}" for layer in ("conv1", "conv2", "fc") for kind in ("weight", "bias")
    }


def test_the_same_seed_gives_the_same_bytes(tmp_path):
    for folder in ("one", "two"):
        run(tmp_path / folder, 2, **{"num-server-rounds": 2})
    kept = [sorted((tmp_path / f).rglob("*.safetensors")) for f in ("one", "two")]
    assert [p.read_bytes() for p in kept[0]] == [p.read_bytes() for p in kept[1]]
    assert len(kept[0]) == 2


def test_the_audit_refuses_another_model_and_an_empty_store(tmp_path):
    from fl_sim.files import StoreError
    from server.app_audit import audit

    run(tmp_path, 2, **{"num-server-rounds": 1})
    facts = {"shape": (1, 8, 8), "classes": 10, "work": LocalWork("delta", batch_size=4)}
    with pytest.raises(StoreError, match="not an observation"):
        audit(tmp_path / "observations", lambda: torch.nn.Linear(64, 10), **facts)
    with pytest.raises(StoreError, match="no observations"):
        audit(tmp_path / "elsewhere", lambda: torch.nn.Linear(64, 10), **facts)
    with pytest.raises(StoreError, match=r"'conv1.weight' where the model has 'weight'"):
        audit(tmp_path / "observations", lambda: torch.nn.BatchNorm1d(3), **facts)
