"""ACTIVE threat model: what a server that plants weights reads from updates of CIFAR images."""

import argparse
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from attacker.presets import build_attack
from benchmarks.attack_trials import GALLERY, Victims, percent, score
from benchmarks.provenance import print_csv
from fl_sim.models import ModelSpec, build_model
from fl_sim.plans import parse_plan
from fl_sim.testing import observe
from fl_sim.updates.local_update import Layout, LocalWork

QUANTIZERS = (
    *("none", "bf16", "uniform:bits=8", "uniform:bits=4", "uniform:bits=2"),
    *("stochastic:bits=8", "stochastic:bits=4", "topk:keep=0.1", "topk:keep=0.01"),
    *("scaled_sign", "sign"),
)


def main() -> None:
    """Print docs/results/attacks/imprint.csv, or what another plan reads."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data-dir", type=Path, default=Path("../shared/data/cifar10"))
    parser.add_argument("--images", type=int, default=128)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--batches", type=int, nargs="*", default=[8])
    parser.add_argument("--quantizers", nargs="*", default=QUANTIZERS)
    parser.add_argument("--plan", default="imprint")
    parser.add_argument("--model", default="lenet")
    parser.add_argument("--attack", help="the plan's own, if absent")
    arguments = parser.parse_args()
    plan = parse_plan(arguments.plan)
    spec = ModelSpec(plan.model(arguments.model), (3, 32, 32), 10)
    plan.check(spec)
    torch.set_num_threads(1)
    public = Victims(arguments.data_dir, 0, 0, arguments.seed).public.images
    weights = plan.weights(spec, initial_weights(spec, arguments.seed), public)
    attack = build_attack(arguments.attack or plan.reader)

    def every_row() -> Iterator[dict[str, object]]:
        for quantizer in arguments.quantizers:
            for batch in arguments.batches:
                work, facts = LocalWork(batch_size=batch), {"weights": weights, "server": plan.spec}
                clients = Victims(arguments.data_dir, arguments.images // batch, 0, arguments.seed)
                truth = clients.batches(work)
                images, labels = (part.flatten(0, 1) for part in truth)
                seen = observe(images, labels, quantizer, work, spec=spec, **facts)
                started = time.process_time()
                made = attack.reconstruct(seen, seed=arguments.seed)
                spent = time.process_time() - started
                scores = score(made, truth, public[-GALLERY:])
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


def initial_weights(spec: ModelSpec, seed: int) -> Tensor:
    """Return the weights ``(size,)`` before anything is planted in them."""
    module = build_model(spec, seed)
    return Layout.of(module).flatten({k: p.detach() for k, p in module.named_parameters()})


if __name__ == "__main__":
    main()
