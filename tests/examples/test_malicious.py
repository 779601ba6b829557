"""The example app with a malicious server, run in this process, and audited."""

from dataclasses import replace
from importlib import import_module
from itertools import pairwise
from runpy import run_path

import pytest
from flwr.app import ArrayRecord, ConfigRecord
from flwr.serverapp.strategy import FedAvg
from torch import nn

from attacker import build_attack
from fl_sim import LocalWork
from fl_sim.engines.grids import LocalGrid
from fl_sim.models import ModelSpec, spec_of_app
from fl_sim.observed.observations import load_observations
from fl_sim.storage.files import StoreError, read_facts
from results.scores.scoring import score_batch
from server import Malicious
from tests.examples.apps import ExampleApp

APP = ExampleApp("malicious")


@pytest.fixture(autouse=True)
def importable(monkeypatch):
    monkeypatch.syspath_prepend(str(APP.folder))


def test_the_audit_reads_what_the_server_planted_and_says_so(tmp_path, capsys):
    APP.run(tmp_path, 2, **{"num-server-rounds": 1})
    run_path(str(APP.folder / "audit.py"))["main"](tmp_path)
    said = capsys.readouterr().out
    assert "Server plan: traps:share=0.1 (malicious: sets trap weights)" in " ".join(said.split())
    (summary,) = [line for line in said.splitlines() if line.split()[:1] == ["uniform:bits=8"]]
    assert "leaks" in summary


def test_the_same_seed_gives_the_same_bytes(tmp_path):
    for folder in ("one", "two"):
        APP.run(tmp_path / folder, 2)
    kept = [sorted((tmp_path / f).rglob("*.safetensors")) for f in ("one", "two")]
    assert [p.read_bytes() for p in kept[0]] == [p.read_bytes() for p in kept[1]]
    assert len(kept[0]) == 2


def malicious(**more):
    task = import_module("planted.task")
    facts = {"plan": "traps", "model": task.Net, "public": task.load_public_images()[0]}
    return Malicious(FedAvg(fraction_evaluate=0.0), **(facts | more))


def test_a_plan_or_model_that_does_not_fit_is_refused_in_one_line(tmp_path):
    with pytest.raises(
        ValueError, match=r"^plan = 'traps': the plan needs a model whose first[^\n]*$"
    ):
        malicious(model=lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), store=tmp_path)
    with pytest.raises(
        ValueError, match=r"^plan = 'imprint:bins=8': the plan needs a model behind an"
    ):
        malicious(plan="imprint:bins=8", store=tmp_path)
    with pytest.raises(ValueError, match=r"^no server 'trap'; [^\n]*did you mean 'traps'"):
        malicious(plan="trap", store=tmp_path)
    with pytest.raises(ValueError, match=r"^Quantizer 'sgn': no quantizer 'sgn'; [^\n]*$"):
        malicious(quantizer="sgn", store=tmp_path)
    with pytest.raises(ValueError, match="^every = 0"):
        malicious(every=0, store=tmp_path)


def test_the_plan_is_suited_to_the_quantizer_that_clients_are_known_to_use(tmp_path):
    spec = ModelSpec("cnn", (1, 8, 8), 10)
    facts = {"plan": "thresholds", "model": spec, "store": tmp_path}
    assert malicious(**facts).plan.spec == "thresholds"
    planted = malicious(**facts, quantizer="uniform:bits=4").plan
    assert planted.spec == "thresholds:reads=values,levels=10"


def test_training_goes_on_as_if_a_planted_round_had_not_been(tmp_path):
    arrays = ArrayRecord(import_module("planted.task").Net().state_dict())
    trained = []
    result = malicious(every=2, store=tmp_path).start(
        LocalGrid(APP.component("clientapp"), 2, APP.config),
        arrays,
        num_rounds=3,
        train_config=ConfigRecord({"lr": 0.1}),
        evaluate_fn=lambda _, now: trained.append(now["hidden.weight"].numpy()),
    )
    same = [bool((one == other).all()) for one, other in pairwise(trained)]
    assert same == [True, False, True]
    assert (result.arrays["hidden.weight"].numpy() == trained[2]).all()
    plans = [read_facts(path)["server"] for path in sorted(tmp_path.rglob("*.safetensors"))]
    assert plans == ["traps", "curious", "traps"]


def test_an_audit_by_other_inputs_than_the_server_planted_for_is_refused(tmp_path):
    """What was planted for pixels reads nothing of clients who normalise them."""
    task = import_module("planted.task")
    malicious(store=tmp_path).start(
        LocalGrid(APP.component("clientapp"), 2, APP.config),
        ArrayRecord(task.Net().state_dict()),
        num_rounds=1,
        train_config=ConfigRecord({"lr": 0.1}),
    )
    (path,) = tmp_path.rglob("*.safetensors")
    spec, work = spec_of_app(task.Net, (1, 8, 8), 10), LocalWork("delta", 8, learning_rate=0.1)
    assert load_observations(path, spec, work)
    with pytest.raises(StoreError, match=r"the server planted for pixels .* tell Malicious their"):
        load_observations(path, spec, replace(work, mean=(0.5,), std=(0.5,)))


def test_clients_that_are_sent_different_weights_are_stored_with_theirs(tmp_path):
    task = import_module("planted.task")
    result = malicious(plan="inconsistent(traps:share=0.1)", store=tmp_path).start(
        LocalGrid(APP.component("clientapp"), 2, APP.config),
        ArrayRecord(task.Net().state_dict()),
        num_rounds=1,
        train_config=ConfigRecord({"lr": 0.1}),
    )
    assert set(result.arrays) == {"hidden.weight", "hidden.bias", "head.weight", "head.bias"}
    (path,) = tmp_path.rglob("*.safetensors")
    work = LocalWork("delta", batch_size=8, learning_rate=0.1)
    seen = load_observations(path, spec_of_app(task.Net, (1, 8, 8), 10), work)
    silent, target = sorted(seen, key=lambda one: one.weights.unique().numel())  # FedAvg draws whom
    assert silent.weights.unique().tolist() == [-1]  # of the only layer that it trained
    assert [name for name, _ in silent.payload.layout.segments] == ["head.bias"]
    found = build_attack("active_traps").reconstruct([target], seed=0)
    images, labels = task.load_images(target.partition)
    assert (score_batch(found[0].images, found[0].labels, images, labels).mse < 1e-2).sum() >= 5
