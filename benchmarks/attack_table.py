"""What attacks recover from quantized updates of CIFAR images: docs/results/attacks/trials.csv."""

import argparse
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from attacker.choice import with_evidence
from attacker.presets import build_attack
from benchmarks.provenance import print_csv
from fl_sim.data.datasets import Images, load_splits
from fl_sim.data.public_images import PublicImages
from fl_sim.models import ModelSpec, build_model
from fl_sim.observed.observations import Observation
from fl_sim.observed.reconstructions import Reconstruction
from fl_sim.quantizers import parse_quantizer
from fl_sim.seeding import Purpose, numpy_rng, torch_rng
from fl_sim.study.settings import DataSettings
from fl_sim.updates.local_update import Layout, LocalWork, Update, flat_model, local_update, one_hot
from results.scores.baselines import mean_colour
from results.scores.scoring import score_batch, score_images

SPEC = ModelSpec("lenet_dlg", (3, 32, 32), 10)
GALLERY = 1000
DLG = "dlg:iterations=600,restarts=1"
COSINE = "inverting_gradients:iterations=1200"
TUNED = "cell:tv=3e-4"
BASELINE = "mean colour"


@dataclass(frozen=True)
class Trial:
    """One quantizer of the table, and the attacks on it."""

    line: int
    quantizer: str
    attacks: tuple[str, ...]
    rounds: int = 1
    work: LocalWork = field(default_factory=LocalWork)


BATCHES = tuple(LocalWork(batch_size=size) for size in (4, 8))
LABELS_ONLY = ("idlg:iterations=1,warmup=0,restarts=0",)
TRIALS = (
    Trial(1, "none", ("dlg", "rgap", "scaled", "synthetic_cell")),
    Trial(3, "sign", (DLG, COSINE, "cell", TUNED, "synthetic", "synthetic_cell", "learned_cell")),
    Trial(3, "scaled_sign", (DLG, COSINE, "cell", TUNED, "synthetic_cell")),
    Trial(3, "uniform:bits=2", (COSINE, "scaled", "cell", "synthetic_cell")),
    Trial(2, "uniform:levels=16", (DLG, "scaled", "synthetic_cell")),
    Trial(2, "stochastic:levels=16", (DLG, "scaled", "synthetic_cell")),
    *(Trial(5, "none", LABELS_ONLY, work=work) for work in BATCHES),
    *(Trial(5, "uniform:bits=4", LABELS_ONLY, work=work) for work in BATCHES),
    *(Trial(5, "sign", LABELS_ONLY, work=work) for work in BATCHES),
    Trial(4, "absmax:bits=2", (DLG, "scaled", "synthetic_cell")),
    Trial(4, "topk:keep=0.1", (DLG, "scaled", "cell", "synthetic_cell")),
    Trial(4, "qsgd:levels=4,norm=l2", (DLG, "scaled", "synthetic_cell")),
    Trial(4, "error_feedback(sign)", (DLG, "cell", "synthetic_cell"), rounds=16),
    Trial(4, "error_feedback(scaled_sign)", (DLG, "averaging"), rounds=16),
    Trial(4, "stochastic:bits=2", (DLG, "averaging"), rounds=16),
    Trial(6, "none", ("scaled:iterations=200,restarts=0",), work=LocalWork("delta", 1, 0.1, 5, 1)),
)


def main() -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("--lines", type=int, nargs="*", default=[1, 2, 3, 4, 5, 6])
    parser.add_argument(
        "--trial", nargs="+", metavar=("QUANTIZER", "ATTACK"), help="these instead of the table's"
    )
    parser.add_argument("--rounds", type=int, default=1, help="of --trial, weights unchanged")
    parser.add_argument("--set", default="main", help="name of these rows in the CSV file")
    arguments = parser.parse_args()
    trials = [trial for trial in TRIALS if trial.line in arguments.lines]
    if arguments.trial:
        quantizer, *attacks = arguments.trial
        trials = [Trial(0, quantizer, tuple(attacks), arguments.rounds)]
    test, public = load(arguments)

    def every_row() -> Iterator[dict[str, object]]:
        for trial in trials:
            first, last = arguments.skip, arguments.skip + arguments.victims
            victims = test.take(np.arange(first * trial.work.images, last * trial.work.images))
            for row in rows(trial, victims.pixels(), victims.labels, public, arguments.seed):
                baseline = ", baseline" if row["attack"] == BASELINE else ""
                yield {"set": arguments.set + baseline} | row

    print_csv(every_row())


def argument_parser(description: str | None) -> argparse.ArgumentParser:
    """Return a parser of which victims are attacked."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--data-dir", type=Path, default=Path("../shared/data/cifar10"))
    parser.add_argument("--victims", type=int, default=24)
    parser.add_argument("--skip", type=int, default=0, help="victims of the draw to leave out")
    parser.add_argument("--seed", type=int, default=0)
    return parser


def load(arguments: argparse.Namespace) -> tuple[Images, PublicImages]:
    """Return the test images in the order in which victims are drawn, and the public ones."""
    torch.set_num_threads(1)
    data = DataSettings(dataset="folder", data_dir=arguments.data_dir, public_fraction=0.5)
    splits = load_splits(data, arguments.seed)
    order = numpy_rng(arguments.seed, Purpose.VICTIMS).permutation(len(splits.test))
    return splits.test.take(order), PublicImages(splits.public.pixels(), splits.public.labels)


def rows(
    trial: Trial, images: Tensor, labels: Tensor, public: PublicImages, seed: int
) -> Iterator[dict[str, object]]:
    """Yield the table's rows of one trial: medians over the victims, then shares."""
    head: dict[str, object] = {
        "quantizer": trial.quantizer,
        "setting": _setting(trial),
        "images": trial.work.images,
    }
    seen = list(observe(trial, images, labels, seed))
    if trial.work.images == 1:
        constant = score_images(
            mean_colour(images, public.images), images, public.images[-GALLERY:]
        )
        unknown = dict.fromkeys(("labels %", "stalled"), "")
        spent = dict.fromkeys(("evaluations", "CPU s"), "")
        figures = medians(constant) | unknown | {"victims": len(seen) // trial.rounds} | spent
        yield head | {"attack": BASELINE} | figures
    for name in trial.attacks:
        attack = build_attack(name)
        if trial.rounds > 1 and getattr(attack, "grouping", "single") == "single":
            chosen = [o for o in seen if o.round == 1]  # a residual spoils all later rounds
        else:
            chosen = seen
        yield head | attacked(name, chosen, images, labels, public, seed)


def attacked(
    name: str,
    seen: Sequence[Observation],
    images: Tensor,
    labels: Tensor,
    public: PublicImages,
    seed: int,
) -> dict[str, object]:
    """Run an attack and return its figures by column."""
    started = time.process_time()
    made = with_evidence(build_attack(name)).reconstruct(seen, seed=seed, public=public)
    spent = time.process_time() - started
    made.sort(key=lambda one: one.partition)
    scores = score(made, images, labels, public.images[-GALLERY:])
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


def observe(trial: Trial, images: Tensor, labels: Tensor, seed: int) -> Iterator[Observation]:
    """Yield what a server sees of clients that each hold ``trial.work.images`` of the images."""
    module = build_model(SPEC, seed)
    weights = Layout.of(module).flatten({k: p.detach() for k, p in module.named_parameters()})
    model, work, quantizer = flat_model(SPEC), trial.work, parse_quantizer(trial.quantizer)
    batches = zip(images.split(work.images), labels.split(work.images), strict=True)
    for partition, (batch, truth) in enumerate(batches):
        vector = local_update(model, work, weights, batch, one_hot(truth, SPEC.classes))
        residual = None
        for round_ in range(1, trial.rounds + 1):
            rng = torch_rng(seed, Purpose.QUANTIZER, round_, partition)
            payload, residual = quantizer.transmit(Update(vector, model.layout), residual, rng)
            yield Observation("table", round_, partition, SPEC, work, weights, payload)


def score(
    made: Sequence[Reconstruction], images: Tensor, labels: Tensor, gallery: Tensor
) -> pd.DataFrame:
    """Score every reconstruction against its client's images."""
    size = len(made[0].labels)
    truth = zip(made, images.split(size), labels.split(size), strict=True)
    return pd.concat([score_batch(o.images, o.labels, x, y, gallery) for o, x, y in truth])


def medians(scores: pd.DataFrame) -> dict[str, object]:
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


def _setting(trial: Trial) -> str:
    if trial.work.kind == "delta":
        return f"{trial.work.local_steps} local steps"
    return f"{trial.rounds} rounds" if trial.rounds > 1 else ""


if __name__ == "__main__":
    main()
