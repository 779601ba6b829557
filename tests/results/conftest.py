"""Run folders as a study leaves them, made in a second without training or attacking."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from fl_sim.coding.cell import Cell
from fl_sim.data import private_batch
from fl_sim.models import build_model
from fl_sim.observed.candidates import candidate_updates
from fl_sim.observed.evidence import HeldBack, nats
from fl_sim.observed.observations import Observation, save_observations
from fl_sim.observed.reconstructions import Reconstruction, save_reconstructions
from fl_sim.quantizers import parse_quantizer
from fl_sim.seeding import Purpose, torch_rng
from fl_sim.storage.files import write_text
from fl_sim.study.plan import training_jobs
from fl_sim.study.runs import RunFolder
from fl_sim.study.settings import Settings, parse_settings
from fl_sim.study.trials import Trial
from fl_sim.updates.local_update import Layout, Update, flat_model, local_update, one_hot

Guess = Callable[[Tensor, Tensor, str, str], tuple[Tensor, Tensor]]
"""Maps the truth (images, labels), the quantizer and the attack to the guess."""


def small_settings(**changes: object) -> Settings:
    tree: dict[str, object] = {
        "quantizers": ["none", "uniform:bits=4", "sign"],
        "seeds": [0, 1],
        "data": {"clients": 4, "limit": 400},
        "training": {"rounds": 5, "batch_size": 2},
        "audit": {"attacks": ["dlg", "cell"], "observe": ["first", "last"], "victims": 4},
    }
    return parse_settings(tree | changes)


def observe(trial: Trial, server_round: int, partition: int, weights: Tensor) -> Observation:
    """What the server sees of a client at the given weights."""
    images, labels = private_batch(trial.federation, trial.work, partition, server_round)
    model = flat_model(trial.model_spec)
    targets = one_hot(labels, trial.model_spec.classes)
    update = local_update(model, trial.work, weights, images, targets)
    generator = torch_rng(trial.seed, Purpose.QUANTIZER, server_round, partition)
    quantizer = parse_quantizer(trial.quantizer)
    payload = quantizer.encode(Update(update.detach(), model.layout), generator)
    return Observation(
        trial.name, server_round, partition, trial.model_spec, trial.work, weights, payload
    )


def initial_weights(trial: Trial) -> Tensor:
    module = build_model(trial.model_spec, trial.seed)
    return Layout.of(module).flatten(dict(module.named_parameters())).detach()


def write_run(root: Path, settings: Settings, guess: Guess) -> RunFolder:
    """Write history, observations and reconstructions, the latter from the truth by ``guess``."""
    folder = RunFolder(root)
    folder.create(settings)
    lines = ["trial,quantizer,seed,round,accuracy,loss,uplink_bytes,updates,dropped"]
    for training in training_jobs(settings, folder):
        trial = training.trial
        weights = initial_weights(trial)
        seen = {
            r: [observe(trial, r, k, weights) for k in range(settings.data.clients)]
            for r in settings.observed_rounds
        }
        for observations in seen.values():
            save_observations(folder.observations, observations)
        for job in training.attacks():
            made = [_guess_at(trial, one, job.attack, guess) for r in job.rounds for one in seen[r]]
            save_reconstructions(job.target, made, job.key)
        write_text(training.target, json.dumps({"key": training.key, "history": []}))
        lines += [
            _history_line(trial, r, observations) for r in range(settings.training.rounds + 1)
        ]
    folder.history_file.write_text("\n".join(lines) + "\n")
    return folder


def _guess_at(trial: Trial, seen: Observation, attack: str, guess: Guess) -> Reconstruction:
    truth = private_batch(trial.federation, trial.work, seen.partition, seen.round)
    images, labels = guess(*truth, trial.quantizer, attack)
    objective = "squared" if attack == "dlg" else "cell:tv=0.001"
    return Reconstruction(
        trial.name,
        seen.round,
        seen.partition,
        attack,
        images,
        labels,
        loss=0.0,
        status="converged",
        objective=objective,
        evaluations=10,
        evidence=evidence_of(seen, images, labels),
    )


def evidence_of(seen: Observation, images: Tensor, labels: Tensor) -> tuple[float, ...]:
    """Return how well images predict a tenth of a payload, as if it had been held back."""
    targets = one_hot(labels, seen.model.classes)[None]
    model = flat_model(seen.model)
    hidden = HeldBack().elements(seen.payload.layout, seen.cell.sizes)
    with torch.no_grad():
        updates = candidate_updates(model, seen.work, seen.weights, images[None], targets)
    return tuple(nats(Cell.stack([seen.cell]), hidden, updates)[0].tolist())


def _history_line(trial: Trial, server_round: int, seen: list[Observation]) -> str:
    accuracy = 0.1 + 0.1 * server_round + 0.01 * trial.seed - 0.05 * (trial.quantizer == "sign")
    updates = len(seen) if server_round else 0
    sent = updates * seen[0].payload.nbytes
    name = json.dumps(trial.quantizer)
    return f"{trial.name},{name},{trial.seed},{server_round},{accuracy},1.0,{sent},{updates},0"


def graded(images: Tensor, labels: Tensor, quantizer: str, attack: str) -> tuple[Tensor, Tensor]:
    """The truth under `none`, noisy under 4 bits, noise alone under sign; DLG fails on both."""
    noise = torch.rand(images.shape, generator=torch.Generator().manual_seed(0))
    share = {"none": 0.0, "uniform:bits=4": 0.1}.get(quantizer, 1.0)
    if attack == "dlg" and quantizer != "none":
        share = 1.0
    order = torch.arange(len(labels)).flip(0)  # batches come back in any order
    return ((1 - share) * images + share * noise)[order], labels[order]


@pytest.fixture(scope="session")
def graded_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    return write_run(tmp_path_factory.mktemp("runs") / "graded", small_settings(), graded).root


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)
