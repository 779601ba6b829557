"""The example app: Flower's quick-start, run in this process, and audited."""

from importlib import import_module

import pytest
import torch

from fl_sim.updates.local_update import LocalWork
from tests.examples.apps import ExampleApp

APP = ExampleApp("quickstart")


@pytest.fixture(autouse=True)
def importable(monkeypatch):
    monkeypatch.syspath_prepend(str(APP.folder))


def test_the_example_trains_and_its_audit_recovers_what_clients_trained_on(tmp_path, capsys):
    APP.run(tmp_path, 2, **{"num-server-rounds": 1})
    audit = import_module("audit")
    audit.main(tmp_path)
    lines = capsys.readouterr().out.splitlines()
    head = next(n for n, line in enumerate(lines) if line.split()[:1] == ["round"])
    assert lines[head].split() == ["round", "client", "attack", "PSNR", "labels", "status", "gates"]
    victims = [line.split() for line in lines[head + 2 : head + 4]]
    assert all(float(cells[3]) > 20 for cells in victims)  # dB; grey is at about 9
    assert [cells[4:] for cells in victims] == [["100%", "converged", "passed"]] * 2
    (summary,) = [line for line in lines if line.split()[:1] == ["stochastic:bits=4"]]
    assert summary.split()[-1].startswith("leaks")
    assert not [line for line in lines if line.startswith("!")]
    assert set(torch.load(tmp_path / "final_model.pt", weights_only=True)) == {
        f"{layer}.{kind}" for layer in ("conv1", "conv2", "fc") for kind in ("weight", "bias")
    }


def test_an_audit_that_assumes_the_wrong_work_says_so(tmp_path, capsys):
    from rich.console import Console

    from results.app_report import print_audit
    from server.auditing.app_audit import audit

    APP.run(tmp_path, 2, **{"num-server-rounds": 1, "local-epochs": 3})  # with momentum 0.9
    task = import_module("quickstart.task")
    work = LocalWork("delta", batch_size=4, learning_rate=0.1, local_steps=3)
    facts = {"shape": (1, 8, 8), "classes": 10, "work": work}
    attack = "cell:iterations=3,restarts=0"
    found = audit(tmp_path / "observations", task.Net, attacks=[attack], **facts)
    public, _ = task.load_test_images()
    scores = print_audit(
        found.observations, found, lambda _, one: task.load_images(one), public, Console(width=200)
    )
    said = capsys.readouterr().out
    assert (scores["inconsistency"] > 0.05).all()
    for client in (0, 1):
        assert f"! round 1, client {client}: LocalWork predicts another update" in said
    assert "another update was sent" in said


def test_the_same_seed_gives_the_same_bytes(tmp_path):
    for folder in ("one", "two"):
        APP.run(tmp_path / folder, 2, **{"num-server-rounds": 2})
    kept = [sorted((tmp_path / f).rglob("*.safetensors")) for f in ("one", "two")]
    assert [p.read_bytes() for p in kept[0]] == [p.read_bytes() for p in kept[1]]
    assert len(kept[0]) == 2


def test_the_audit_refuses_another_model_and_an_empty_store(tmp_path):
    from fl_sim.storage.files import StoreError
    from server.auditing.app_audit import audit

    APP.run(tmp_path, 2, **{"num-server-rounds": 1})
    facts = {"shape": (1, 8, 8), "classes": 10, "work": LocalWork("delta", batch_size=4)}
    with pytest.raises(StoreError, match="not an observation"):
        audit(tmp_path / "observations", lambda: torch.nn.Linear(64, 10), **facts)
    with pytest.raises(StoreError, match="no observations"):
        audit(tmp_path / "elsewhere", lambda: torch.nn.Linear(64, 10), **facts)
    with pytest.raises(StoreError, match=r"'conv1.weight' where the model has 'weight'"):
        audit(tmp_path / "observations", lambda: torch.nn.BatchNorm1d(3), **facts)
