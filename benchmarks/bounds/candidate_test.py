"""Is this image in the batch? True positive rates and the epsilon they prove, per quantizer.

    python -m benchmarks.bounds.candidate_test --workers 2 [--data-dir FOLDER] [--out FILE.csv]

Clients send one update at the initial weights. Each private image is ranked among 1,000 public ones
by `results.scores.candidate_test`. Rows that are in the file already are not made again.
"""

import argparse
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from benchmarks.provenance import commit
from fl_sim.data.datasets import Images, load_splits
from fl_sim.engines.tasks import run_tasks
from fl_sim.models import ModelSpec, build_model
from fl_sim.quantizers import parse_quantizer
from fl_sim.quantizers.catalogue import EXAMPLES
from fl_sim.seeding import Purpose, torch_rng
from fl_sim.study.settings import DataSettings, EngineSettings
from fl_sim.updates.local_update import FlatModel, Layout, Update, flat_model, one_hot
from results.scores.batch_scorers import batch_scorer, decoded
from results.scores.candidate_test import RATES, answer, likelihood_scores, ranks
from results.tables.csv_text import write_csv

OTHERS = 1000
DELTA = 1e-5
LADDER = tuple(
    spec
    for noise in ("0.3", "0.5", "1", "2", "5")
    for spec in (f"clip:norm=1+gaussian:sigma={noise}", f"noisy_sign:clip=1,noise={noise}")
)
SPECS = (*EXAMPLES, *LADDER)
_CHUNK = 64


@dataclass(frozen=True)
class Job:
    """One row: a quantizer on batches of a size, of which so many payloads are averaged."""

    quantizer: str
    batch: int
    victims: int
    data: DataSettings
    rounds: int = 1

    @property
    def model(self) -> ModelSpec:
        """The model, at its initial weights of seed 0."""
        splits = load_splits(self.data, 0)
        name = "lenet" if self.data.dataset == "digits" else "lenet_dlg"
        return ModelSpec(name, splits.shape, len(splits.classes))


def main() -> None:
    arguments = parser().parse_args()
    data = data_settings(arguments.data_dir)
    made: list[Mapping[str, object]] = []
    if arguments.out.exists():
        made = pd.read_csv(arguments.out).to_dict("records")
    known = {(row["quantizer"], row["batch"], row["rounds"]) for row in made}
    asked = product(arguments.rounds, arguments.batches, map(_canonical, arguments.quantizers))
    jobs = [
        Job(spec, batch, arguments.victims, data, rounds)
        for rounds, batch, spec in asked
        if (spec, batch, rounds) not in known
    ]
    order = {spec: number for number, spec in enumerate(SPECS)}
    for _, row in run_tasks(measure, jobs, EngineSettings(workers=arguments.workers)):
        made.append(row | {"commit": commit()})
        frame = pd.DataFrame(made)
        place = frame["quantizer"].map(order).fillna(len(order))
        frame = frame.assign(place=place).sort_values(["rounds", "batch", "place"], kind="stable")
        write_csv(arguments.out, frame.drop(columns="place"))


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    made = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    made.add_argument("--quantizers", nargs="*", default=SPECS)
    made.add_argument("--batches", type=int, nargs="*", default=[1, 8, 32])
    made.add_argument("--rounds", type=int, nargs="*", default=[1], help="payloads averaged")
    made.add_argument("--victims", type=int, default=60)
    made.add_argument("--data-dir", type=Path, help="folder of CIFAR images; digits without it")
    made.add_argument("--out", type=Path, default=Path("docs/results/candidate_test.csv"))
    made.add_argument("--workers", type=int, default=1, help="0: one per core")
    return made


def data_settings(folder: Path | None) -> DataSettings:
    """Return data of which at least 1,000 images are public."""
    if folder is None:
        return DataSettings(public_fraction=0.7)
    return DataSettings(dataset="folder", data_dir=folder, public_fraction=0.5)


def _canonical(spec: str) -> str:
    return parse_quantizer(spec).spec


def measure(job: Job) -> dict[str, object]:
    """Return the row of a quantizer and a batch size."""
    ranked = np.array(list(victim_ranks(job)))
    quantizer = parse_quantizer(job.quantizer)
    size = flat_model(job.model).layout.size
    guarantee = quantizer.guarantee(size)
    row: dict[str, object] = {"quantizer": job.quantizer, "batch": job.batch, "rounds": job.rounds}
    proven = []
    for rate in RATES:
        found = answer(ranked, OTHERS, rate, DELTA)
        name = f"TPR % at FPR {100 * rate:g} %"
        row |= {
            name: round(100 * found.found, 1),
            f"{name}_low": round(100 * found.low, 1),
            f"{name}_high": round(100 * found.high, 1),
        }
        proven.append(found.epsilon_low)
    epsilon = None if guarantee is None else f"{guarantee.epsilon(job.rounds, DELTA):.4g}"
    row |= {"epsilon proven": round(max(proven), 2), "epsilon": epsilon or "none"}
    return row | {"victims": len(ranked)}


def victim_ranks(job: Job) -> Iterator[int]:
    """Yield the rank of one private image of each batch among the public images."""
    torch.set_num_threads(1)
    model, weights, known, others, clients = gradients_of(job.data, job.model)
    generator = torch_rng(0, Purpose.VICTIMS, job.batch)
    quantizer = parse_quantizer(job.quantizer)
    scorer = None
    if job.batch > 1:
        rehearsed = torch_rng(0, Purpose.CONTROL, job.batch)
        given = model.layout, job.batch, known, others, rehearsed
        scorer = batch_scorer(job.quantizer, *given, rounds=job.rounds)
    for victim in range(job.victims):
        rows = torch.randperm(len(clients), generator=generator)[: job.batch]
        own = gradients(model, weights, clients.take(rows.numpy()))
        update = Update(own.mean(dim=0), model.layout)
        rng = torch_rng(0, Purpose.QUANTIZER, job.batch, victim)
        if scorer is None:
            cells = [quantizer.cell(quantizer.encode(update, rng)) for _ in range(job.rounds)]
            private = likelihood_scores(cells, own[:1])
            public = torch.cat([likelihood_scores(cells, one) for one in others.split(_CHUNK)])
        else:
            received = decoded(quantizer, update, job.rounds, rng)
            private, public = scorer.scores(received, own[0])
        yield int(ranks(private.view(1), public.view(1, -1))[0])


@lru_cache(maxsize=1)
def gradients_of(
    data: DataSettings, spec: ModelSpec
) -> tuple[FlatModel, Tensor, Tensor, Tensor, Images]:
    """Return model, weights, gradients of known and of other images, and the clients' images."""
    splits, model = load_splits(data, 0), flat_model(spec)
    module = build_model(spec, 0)
    weights = Layout.of(module).flatten({k: p.detach() for k, p in module.named_parameters()})
    known = splits.test.take(np.arange(min(len(splits.test), OTHERS)))
    others = splits.public.take(np.arange(OTHERS))
    sent = [gradients(model, weights, images) for images in (known, others)]
    return model, weights, sent[0], sent[1], splits.train


def gradients(model: FlatModel, weights: Tensor, images: Images) -> Tensor:
    """Return the gradient of each image alone, ``(n, size)``."""
    pixels, targets = images.pixels(), one_hot(images.labels, model.spec.classes)
    chunks = zip(pixels.split(_CHUNK), targets.split(_CHUNK), strict=True)
    with torch.no_grad():
        return torch.cat([model.gradients(weights, x[:, None], y[:, None]) for x, y in chunks])


if __name__ == "__main__":
    main()
