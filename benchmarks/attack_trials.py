"""Attacks on quantized updates of a few images: what a client sends, and scores of each attack."""

import argparse
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import lru_cache
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from attacker.attack import Attack
from attacker.choice import with_evidence
from attacker.presets import build_attack
from fl_sim.data.datasets import Images, Splits, load_splits
from fl_sim.data.public_images import PublicImages
from fl_sim.models import ModelSpec, build_model
from fl_sim.observed.observations import Observation
from fl_sim.observed.reconstructions import Reconstruction
from fl_sim.seeding import Purpose, numpy_rng
from fl_sim.storage.fingerprint import code_version, fingerprint
from fl_sim.study.settings import DataSettings
from fl_sim.testing import observe
from fl_sim.updates.local_update import Layout, LocalWork
from results.scores.gates import Truth
from results.scores.scoring import score_batches
from results.scores.victims import score_victims

SPEC = ModelSpec("lenet_dlg", (3, 32, 32), 10)
GALLERY = 1000
TRAINING = 1000
"""Steps of Adam on 32 images each, after which weights count as trained."""


@dataclass(frozen=True)
class Trial:
    """One quantizer in one setting, and the attacks on it.

    Attributes
    ----------
    quantizer : str
        Spec.
    attacks : tuple of str
        Specs.
    work : LocalWork
        What a client computes.
    rounds : int
        Payloads of the same update that a client sends.
    trained : bool
        Whether the weights were trained before, for `TRAINING` steps.
    shuffled : bool
        Whether each client's payload is that of the next: a control, in which nothing can be found.
    """

    quantizer: str
    attacks: tuple[str, ...]
    work: LocalWork = field(default_factory=LocalWork)
    rounds: int = 1
    trained: bool = False
    shuffled: bool = False

    @property
    def setting(self) -> str:
        """Where the trial departs from one image a client at the first weights."""
        named = {
            f"batch {self.work.batch_size}": self.work.batch_size > 1,
            f"{self.work.local_steps} local steps": self.work.kind == "delta",
            f"{self.rounds} rounds": self.rounds > 1,
            "trained weights": self.trained,
            "control: shuffled": self.shuffled,
        }
        return ", ".join(name for name, holds in named.items() if holds)


@dataclass(frozen=True)
class Victims:
    """Which images of the test set the clients hold: those after ``skip`` of a random order."""

    data_dir: Path
    count: int
    skip: int
    seed: int

    def batches(self, work: LocalWork) -> Truth:
        """Return the images and labels of each client, stacked."""
        size, test = work.images, self._splits.test
        order = numpy_rng(self.seed, Purpose.VICTIMS).permutation(len(test))
        chosen = test.take(order[self.skip : self.skip + self.count * size])
        if len(chosen) < self.count * size:
            raise ValueError(f"{len(test)} test images are too few for these victims")
        images, labels = chosen.pixels(), chosen.labels
        return Truth(images.unflatten(0, (-1, size)), labels.unflatten(0, (-1, size)))

    @property
    def public(self) -> PublicImages:
        """Images that anyone has, none of them a victim."""
        splits = self._splits
        return PublicImages(splits.public.pixels(), splits.public.labels)

    @property
    def training_images(self) -> Images:
        """Images that networks are trained on, none of them a victim."""
        return self._splits.train

    def weights(self, trained: bool) -> Tensor:
        """Return the weights ``(size,)`` that clients were given."""
        module = build_model(SPEC, self.seed)
        if trained:
            _train(module, self._splits.train, self.seed)
        return Layout.of(module).flatten({k: p.detach() for k, p in module.named_parameters()})

    @property
    def digest(self) -> str:
        """Digits that stand for all images, wherever they lie."""
        return self._splits.digest

    @property
    def _splits(self) -> Splits:
        data = DataSettings(dataset="folder", data_dir=self.data_dir, public_fraction=0.5)
        return load_splits(data, self.seed)


@dataclass(frozen=True)
class Job:
    """One attack on the victims of one trial, scored in a process of its own."""

    trial: Trial
    attack: str
    victims: Victims

    @property
    def key(self) -> str:
        """Digits that stand for the job and for the code that does it."""
        victims = asdict(self.victims) | {"data_dir": self.victims.digest}
        trial = asdict(replace(self.trial, attacks=(self.attack,)))
        return fingerprint({"trial": trial, "victims": victims, "code": code()})


@lru_cache
def code() -> str:
    """Return the fingerprint of the code that a table of attacks depends on."""
    return code_version((__name__,))


def score_job(job: Job) -> pd.DataFrame:
    """Run an attack and score it as a run does: one row per private image; ``CPU s`` is of all."""
    torch.set_num_threads(1)
    trial, victims = job.trial, job.victims
    truth, public = victims.batches(trial.work), victims.public
    seen = observe_trial(trial, truth, victims.weights(trial.trained))
    attack = with_evidence(build_attack(job.attack), job.attack)
    started = time.process_time()
    made = attack.reconstruct(usable(attack, seen), seed=victims.seed, public=public)
    spent = time.process_time() - started
    made = one_a_client(made)
    last = {one.partition: one for one in seen if one.round == made[0].round}
    paired = [last[one.partition] for one in made]
    scores = score_victims(paired, made, truth, public.images[-GALLERY:])
    if trial.shuffled:
        scores["inconsistency"] = 0.0  # that payloads are not those of the truth is the control
    return scores.assign(quantizer=trial.quantizer, seed=victims.seed, **{"CPU s": spent})


def usable(attack: Attack, seen: Sequence[Observation]) -> list[Observation]:
    """Return what an attack is run on: the first round, unless it combines rounds."""
    combines = any(getattr(one, "grouping", "single") != "single" for one in members(attack))
    return [one for one in seen if combines or one.round == 1]


def members(attack: Attack) -> tuple[Attack, ...]:
    """Return the attacks of a suite, or an attack by itself."""
    return getattr(attack, "members", (attack,))


def one_a_client(made: Sequence[Reconstruction]) -> list[Reconstruction]:
    """Return the guess at each client, in their order; of several rounds, that of the last."""
    by_client = {one.partition: one for one in sorted(made, key=lambda one: one.round)}
    return [by_client[partition] for partition in sorted(by_client)]


def observe_trial(trial: Trial, truth: Truth, weights: Tensor) -> list[Observation]:
    """Return what a server sees of clients that each hold one of the batches."""
    sent = (part.roll(-int(trial.shuffled), 0).flatten(0, 1) for part in truth)
    return observe(
        *sent, trial.quantizer, trial.work, spec=SPEC, weights=weights, rounds=trial.rounds
    )


def _train(module: torch.nn.Module, images: Images, seed: int) -> None:
    optimizer = torch.optim.Adam(module.parameters(), lr=0.003)
    rng = np.random.default_rng(seed)
    for _ in range(TRAINING):
        chosen = images.take(rng.integers(len(images), size=32))
        optimizer.zero_grad()
        cross_entropy(module(chosen.pixels()), chosen.labels).backward()  # type: ignore[no-untyped-call]
        optimizer.step()


def argument_parser(description: str | None) -> argparse.ArgumentParser:
    """Return a parser of which victims are attacked."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--data-dir", type=Path, default=Path("../shared/data/cifar10"))
    parser.add_argument("--victims", type=int, default=24)
    parser.add_argument("--skip", type=int, default=0, help="test images of the draw to leave out")
    parser.add_argument("--seed", type=int, default=0)
    return parser


def victims_of(arguments: argparse.Namespace) -> Victims:
    """Return the victims that the options of `argument_parser` name."""
    return Victims(arguments.data_dir, arguments.victims, arguments.skip, arguments.seed)


def attacked(
    name: str, seen: Sequence[Observation], truth: Truth, public: PublicImages, seed: int
) -> dict[str, object]:
    """Run an attack and return its figures by column."""
    started = time.process_time()
    made = with_evidence(build_attack(name)).reconstruct(seen, seed=seed, public=public)
    spent = time.process_time() - started
    made = one_a_client(made)
    scores = score(made, truth, public.images[-GALLERY:])
    stalled = sum(one.status != "converged" for one in made)
    evaluations = sum(one.evaluations for one in made) / len(made)
    return {
        "attack": name,
        **medians(scores),
        "labels %": percent(scores.labels_recovered),
        "stalled": stalled,
        "victims": len(made),
        "evaluations": f"{evaluations:.0f}",
        "CPU s": f"{spent:.0f}",
    }


def score(made: Sequence[Reconstruction], truth: Truth, gallery: Tensor) -> pd.DataFrame:
    """Score every reconstruction against its client's images."""
    images, labels = ([getattr(one, name) for one in made] for name in ("images", "labels"))
    return score_batches(torch.stack(images), torch.stack(labels), *truth, gallery)


def medians(scores: pd.DataFrame) -> dict[str, object]:
    """Return medians over private images, then shares, as text by column."""
    middle = scores[["mse", "psnr", "correlation", "ssim"]].median()
    return {
        "MSE": f"{middle['mse']:.2g}",
        "PSNR dB": f"{middle['psnr']:.1f}",
        "correlation": f"{middle['correlation']:.2f}",
        "SSIM": f"{middle['ssim']:.2f}",
        "MSE < 1e-3 %": percent(scores.mse < 1e-3),
        "identified %": percent(scores.identified),
    }


def percent(shares: "pd.Series") -> str:
    """Return the mean of shares in percent."""
    return f"{100 * shares.mean():.0f}"
