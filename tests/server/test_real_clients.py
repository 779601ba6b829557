"""Studies whose clients train as people do, from training to gates."""

from math import isfinite

import pytest

from clients.app import app
from fl_sim.engines.grids import LocalGrid
from fl_sim.study.plan import training_jobs
from fl_sim.study.runs import RunFolder
from fl_sim.study.settings import SettingsError, parse_settings
from results.reading.attacked import Attacked, load_round
from results.scores.gates import CONSISTENCY_TOLERANCE, examine
from server.app import check_data
from server.auditing.jobs import run_attack
from server.training import find_nodes, train_trial

RECIPE = {
    "update": "delta",
    "batch_size": 2,
    "local_steps": 4,
    "local_batches": 2,
    "local_learning_rate": 0.3,
    "local_momentum": 0.9,
    "local_weight_decay": 1e-2,
    "local_schedule": "cosine",
    "local_decay": 0.5,
    "local_shuffle": True,
    "normalize_mean": [0.3],
    "normalize_std": [0.4],
    "server_optimizer": "sgd",
    "server_learning_rate": 1.0,
    "server_momentum": 0.0,
    "rounds": 3,
}


def trained(root, **changes):
    tree = {
        "quantizers": ["uniform:bits=8"],
        "model": "mlp:width=16",
        "data": {"clients": 2, "limit": 300},
        "training": RECIPE,
        "audit": {"attacks": ["cell:restarts=0,iterations=3"], "observe": ["first", "last"]},
    }
    settings, folder = parse_settings(tree | changes), RunFolder(root)
    folder.create(settings)
    check_data(settings)
    (job,) = training_jobs(settings, folder)
    grid = LocalGrid(app, 2, {})
    history = train_trial(grid, job.trial, settings, folder, find_nodes(grid, 2), lambda: None)
    return job, history


def examined(job, server_round):
    attack = next(one for one in job.attacks() if server_round in one.rounds)
    seen = load_round(job, server_round)
    guesses = [one for one in run_attack(attack) if one.round == server_round]
    attacked = Attacked(job.trial, server_round, attack.attack, seen, guesses)
    return seen, examine(seen, guesses, attacked.truth)


@pytest.fixture
def job_and_history(tmp_path):
    return trained(tmp_path)


def test_updates_are_derived_again_from_the_truth_its_order_included(job_and_history):
    job, history = job_and_history
    assert [row["updates"] for row in history] == [0, 2, 2, 2]
    assert history[-1]["loss"] < history[0]["loss"]
    for server_round, rate in ((1, 0.3), (3, 0.075)):
        seen, frame = examined(job, server_round)
        assert {one.work.learning_rate for one in seen} == {rate}
        assert (frame["inconsistency"] <= CONSISTENCY_TOLERANCE).all()
        assert (frame["evidence_at_truth"] < frame["evidence_at_grey"]).all()


def test_the_model_is_tested_at_its_interval_and_at_both_ends(tmp_path):
    recipe = RECIPE | {"rounds": 5}
    _, always = trained(tmp_path / "always", training=recipe)
    _, seldom = trained(tmp_path / "seldom", training=recipe | {"evaluate_every": 2})
    tested = [row for row in seldom if isfinite(row["accuracy"]) and isfinite(row["loss"])]
    assert tested == [always[number] for number in (0, 2, 4, 5)]
    columns = ("round", "uplink_bytes", "updates", "dropped")
    assert [[row[name] for name in columns] for row in seldom] == [
        [row[name] for name in columns] for row in always
    ]


def test_means_of_another_number_of_channels_are_refused(tmp_path):
    recipe = RECIPE | {"normalize_mean": [0.3, 0.3], "normalize_std": [0.4, 0.4]}
    with pytest.raises(SettingsError, match=r"normalize_mean = '0.3,0.3': 1 number, or 1"):
        trained(tmp_path, training=recipe)
