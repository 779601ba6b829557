"""ACTIVE threat model: what a planted imprint layer reads from updates of CIFAR images."""

import argparse
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from attacker.presets import build_attack
from benchmarks.attack_table import GALLERY, percent, score
from benchmarks.provenance import print_csv
from fl_sim.data.datasets import load_splits
from fl_sim.models import ModelSpec, build_model
from fl_sim.observed.observations import Observation
from fl_sim.plans import Imprint
from fl_sim.quantizers import parse_quantizer
from fl_sim.seeding import Purpose, numpy_rng, torch_rng
from fl_sim.study.settings import DataSettings
from fl_sim.updates.local_update import Layout, LocalWork, Update, flat_model, local_update, one_hot

PLAN = Imprint()
SPEC = ModelSpec(PLAN.model("lenet"), (3, 32, 32), 10)
QUANTIZERS = (
    *("none", "bf16", "uniform:bits=8", "uniform:bits=4", "uniform:bits=2"),
    *("stochastic:bits=8", "stochastic:bits=4", "topk:keep=0.1", "topk:keep=0.01"),
    *("scaled_sign", "sign"),
)


def main() -> None:
    """Print docs/results/attacks/imprint.csv."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data-dir", type=Path, default=Path("../shared/data/cifar10"))
    parser.add_argument("--images", type=int, default=128)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--batches", type=int, nargs="*", default=[8])
    parser.add_argument("--quantizers", nargs="*", default=QUANTIZERS)
    parser.add_argument("--attack", default="active_imprint")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    data = DataSettings(dataset="folder", data_dir=arguments.data_dir, public_fraction=0.5)
    splits = load_splits(data, arguments.seed)
    public = splits.public.pixels()
    order = numpy_rng(arguments.seed, Purpose.VICTIMS).permutation(len(splits.test))
    victims = splits.test.take(order[: arguments.images])
    weights = PLAN.weights(SPEC, initial_weights(arguments.seed), public)
    attack = build_attack(arguments.attack)
    images, labels = victims.pixels(), victims.labels

    def every_row() -> Iterator[dict[str, object]]:
        for quantizer in arguments.quantizers:
            for batch in arguments.batches:
                seen = list(observe(quantizer, batch, weights, images, labels, arguments.seed))
                started = time.process_time()
                made = attack.reconstruct(seen, seed=arguments.seed)
                spent = time.process_time() - started
                scores = score(made, images, labels, public[-GALLERY:])
                yield {
                    "quantizer": quantizer,
                    "batch": batch,
                    "bytes": seen[0].payload.nbytes,
                    "MSE < 1e-4 %": percent(scores.mse < 1e-4),
                    "MSE < 1e-2 %": percent(scores.mse < 1e-2),
                    "median MSE": f"{scores.mse.median():.2g}",
                    "median SSIM": f"{scores.ssim.median():.2f}",
                    "identified %": percent(scores.identified),
                    "labels %": percent(scores.labels_recovered),
                    "stalled": sum(one.status != "converged" for one in made),
                    "batches": len(made),
                    "CPU s": f"{spent:.0f}",
                }

    print_csv(every_row())


def initial_weights(seed: int) -> Tensor:
    """Return the weights ``(size,)`` before anything is planted in them."""
    module = build_model(SPEC, seed)
    return Layout.of(module).flatten({k: p.detach() for k, p in module.named_parameters()})


def observe(
    quantizer: str, batch: int, weights: Tensor, images: Tensor, labels: Tensor, seed: int
) -> Iterator[Observation]:
    """Yield what the server sees of clients that each hold ``batch`` of the images."""
    model, work, parsed = flat_model(SPEC), LocalWork(batch_size=batch), parse_quantizer(quantizer)
    batches = zip(images.split(batch), labels.split(batch), strict=True)
    for partition, (pixels, truth) in enumerate(batches):
        vector = local_update(model, work, weights, pixels, one_hot(truth, SPEC.classes))
        rng = torch_rng(seed, Purpose.QUANTIZER, 1, partition)
        payload = parsed.encode(Update(vector, model.layout), rng)
        yield Observation("table", 1, partition, SPEC, work, weights, payload)


if __name__ == "__main__":
    main()
