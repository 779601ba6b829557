"""Studies of a network with BatchNorm in training mode: trained, quantized, observed, attacked."""

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from attacker.matching.problems import Problems
from attacker.presets import build_attack
from clients.app import app
from clients.local_training import compute_reply
from fl_sim import register
from fl_sim.engines.grids import LocalGrid
from fl_sim.models import ModelSpec, build_model
from fl_sim.quantizers import parse_quantizer
from fl_sim.study.plan import training_jobs
from fl_sim.study.runs import RunFolder
from fl_sim.study.settings import SettingsError, parse_settings
from fl_sim.updates.local_update import flat_model
from results.reading.attacked import Attacked, load_round
from results.scores.gates import CONSISTENCY_TOLERANCE, examine
from server.app import check_data
from server.auditing.jobs import run_attack
from server.training import find_nodes, train_trial

RECIPE = {
    "update": "delta",
    "batch_size": 4,
    "local_steps": 2,
    "local_batches": 2,
    "local_learning_rate": 0.1,
    "local_momentum": 0.9,
    "local_weight_decay": 1e-3,
    "local_shuffle": True,
    "normalize_mean": [0.3],
    "normalize_std": [0.4],
    "server_optimizer": "sgd",
    "server_learning_rate": 1.0,
    "server_momentum": 0.0,
    "rounds": 2,
}


@register("model", "tiny_batch_norm")
def tiny_batch_norm(spec, *, width: int = 6):
    """A convolution and a hidden layer, each with BatchNorm."""
    pixels = spec.shape[1] * spec.shape[2] // 4
    return nn.Sequential(
        nn.Conv2d(spec.shape[0], width, 3, stride=2, padding=1),
        nn.BatchNorm2d(width),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(width * pixels, 16),
        nn.BatchNorm1d(16),
        nn.Tanh(),
        nn.Linear(16, spec.classes),
    )


def trained(root, quantizer="uniform:bits=8", start=None, **training):
    tree = {
        "quantizers": [quantizer],
        "model": "tiny_batch_norm",
        "data": {"clients": 3, "limit": 300},
        "training": RECIPE | training,
        "audit": {"attacks": ["cell:restarts=0,iterations=3"], "observe": ["first", "last"]},
    }
    if start is not None:
        tree["initial_weights"] = str(start)
    settings, folder = parse_settings(tree), RunFolder(root)
    folder.create(settings)
    check_data(settings)
    (job,) = training_jobs(settings, folder)
    grid = LocalGrid(app, 3, {})
    history = train_trial(grid, job.trial, settings, folder, find_nodes(grid, 3), lambda: None)
    return job, history


@pytest.mark.parametrize(
    ("quantizer", "quantized"), [("none", False), ("sign", False), ("uniform:bits=8", True)]
)
def test_a_trial_is_trained_quantized_observed_and_derived_again(tmp_path, quantizer, quantized):
    job, history = trained(tmp_path, quantizer, quantize_statistics=quantized)
    assert [row["updates"] for row in history] == [0, 3, 3]
    model, spec = flat_model(job.trial.model_spec), quantizer if quantized else "none"
    first, last = (load_round(job, number) for number in (1, 2))
    assert {one.statistics.payload.spec for one in first} == {spec}
    assert torch.equal(first[0].statistics.sent, model.initial_statistics)
    decode = parse_quantizer(spec).decode
    mean = sum(decode(one.statistics.payload).vector.double() for one in first) / 3
    expected = model.usable_statistics((model.initial_statistics - mean).float())
    torch.testing.assert_close(last[0].statistics.sent, expected)
    sent = sum(one.payload.nbytes + one.statistics.payload.nbytes for one in first)
    assert history[1]["uplink_bytes"] == sent
    for server_round, seen in ((1, first), (2, last)):
        own = compute_reply(job.trial, 0, server_round, seen[0].weights, seen[0].statistics.sent)
        if not quantized:
            assert torch.equal(decode(seen[0].statistics.payload).vector, own.statistics)
        attack = next(one for one in job.attacks() if server_round in one.rounds)
        guesses = [one for one in run_attack(attack) if one.round == server_round]
        truth = Attacked(job.trial, server_round, attack.attack, seen, guesses).truth
        gates = examine(seen, guesses, truth)
        assert (gates["inconsistency"] <= CONSISTENCY_TOLERANCE).all()
        assert gates[["loss_at_truth", "loss_at_guess"]].notna().all(axis=None)


def test_statistics_of_a_file_are_where_training_starts(tmp_path):
    module = build_model(ModelSpec("tiny_batch_norm", (1, 8, 8), 10))
    module(torch.rand(20, 1, 8, 8))  # moves the statistics
    save_file(module.state_dict(), tmp_path / "start.safetensors")
    job, _ = trained(tmp_path, "none", tmp_path / "start.safetensors")
    first, last = (load_round(job, number) for number in (1, 2))
    model, buffers = flat_model(job.trial.model_spec), dict(module.named_buffers())
    assert torch.equal(first[0].statistics.sent, model.statistics.flatten(buffers))
    decode = parse_quantizer("none").decode
    mean = sum(decode(one.statistics.payload).vector for one in first) / 3
    torch.testing.assert_close(last[0].statistics.sent, first[0].statistics.sent - mean)


def test_a_batch_without_a_variance_is_refused(tmp_path):
    with pytest.raises(SettingsError, match="batch_size = 1: 2 or more, as a BatchNorm layer"):
        trained(tmp_path, batch_size=1)


def test_the_statistics_of_a_reply_help_the_attack_and_check_its_guess(tmp_path):
    steps = {"local_momentum": 0, "local_weight_decay": 0, "local_shuffle": False}
    job, _ = trained(tmp_path, "uniform:bits=2", update="gradient", rounds=1, **steps)
    seen = load_round(job, 1)
    truth = Attacked(job.trial, 1, "cell", seen, seen).truth
    problems = Problems.of([[one] for one in seen])
    model, sent = problems.flat_model, problems.sent_statistics
    told = model.shown_statistics(sent, problems.statistics_cell.decoded, 1)
    distance, error = {}, {}
    for weight in (0, 1):
        attack = build_attack(f"cell:iterations=60,restarts=0,statistics={weight}")
        images = torch.stack([one.images for one in attack.reconstruct(seen, seed=0)])
        inputs = job.trial.work.inputs(images)
        shown = [model.batch_statistics(seen[0].weights, one) for one in inputs]
        distance[weight] = (torch.stack(shown) - told).norm() / told.norm()
        pairs = torch.cdist(images.clamp(0, 1).flatten(2), truth.images.flatten(2)).square()
        error[weight] = pairs.amin(dim=1).mean() / 64
    assert distance[1] < 0.1 * distance[0]
    assert error[1] < 0.95 * error[0]  # nothing else tells so coarse a payload apart
