"""The example of a usual recipe: BatchNorm, normalised and flipped images, momentum; audited."""

from importlib import import_module
from runpy import run_path

import pytest

from fl_sim.updates.local_work import LocalWork
from tests.examples.apps import ExampleApp

APP = ExampleApp("resnet")


@pytest.fixture(autouse=True)
def importable(monkeypatch):
    monkeypatch.syspath_prepend(str(APP.folder))


def test_the_audit_follows_the_recipe_and_says_what_it_assumed(tmp_path, capsys):
    APP.run(tmp_path, 2, **{"num-server-rounds": 2})
    run_path(str(APP.folder / "audit.py"))["main"](tmp_path, "cell:iterations=60,restarts=0")
    said = " ".join(capsys.readouterr().out.split())
    assert "another update" not in said  # BatchNorm, momentum and all are followed
    assert "round client attack PSNR labels status gates" in said
    told = said[said.index("Assumed:") :]
    assert "1 step over 1 batch of 4 images (step size 0.1, momentum 0.9, weight decay" in told
    assert "normalised by the mean 0.3 and the deviation 0.38" in told
    assert "BatchNorm layers are in training mode; their running statistics are read" in told
    assert "what is sought is the image after that" in told
    assert "More may be possible" not in said


def test_what_the_audit_is_not_told_it_names(tmp_path, capsys):
    from results.app_report import print_audit
    from results.assumptions import lower_bounds
    from server.auditing.app_audit import audit

    APP.run(tmp_path, 2, **{"num-server-rounds": 1, "local-epochs": 2, "batch-size": 2})
    task = import_module("resnet.task")
    plain = LocalWork("delta", 2, 0.1, 4, 2, shuffled=True, augmented=True)  # not normalised
    found = audit(
        tmp_path / "observations",
        task.Net,
        shape=(1, 8, 8),
        classes=10,
        work=plain,
        attacks=["cell:iterations=2,restarts=0,warmup=0"],
    )
    public, _ = task.load_test_images()
    truth = lambda turn, one: task.load_images(one, turn)  # noqa: E731
    print_audit(found.observations, found, truth, public)
    said = " ".join(capsys.readouterr().out.split())
    assert "! round 1, client 0: LocalWork predicts another update" in said
    assert (
        "More may be possible: - Clients shuffle in every epoch; attacks do not know the order"
        in said
    )
    assert len(lower_bounds(found.observations)) == 2
