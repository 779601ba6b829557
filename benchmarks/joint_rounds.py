"""What several rounds of the same private images tell, while training moves the weights (CIFAR)."""

import argparse
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from attacker.presets import build_attack
from benchmarks.attack_table import COLUMNS, GALLERY, SPEC, medians, score
from fl_sim.data.datasets import load_splits
from fl_sim.models import build_model
from fl_sim.observations import Observation
from fl_sim.public_images import PublicImages
from fl_sim.quantizers import parse_quantizer
from fl_sim.seeding import Purpose, numpy_rng, torch_rng
from fl_sim.settings import DataSettings, TrainingSettings
from fl_sim.updates import Layout, LocalWork, Update, flat_model, local_update, one_hot
from server.strategy import server_optimizer

ATTACKS = ("cell", "joint", "synthetic_cell", "synthetic_joint")


def main() -> None:
    """Print the table of the section on joint rounds in docs/attacks.md."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data-dir", type=Path, default=Path("../shared/data/cifar10"))
    parser.add_argument("--victims", type=int, default=24)
    parser.add_argument("--skip", type=int, default=0, help="victims of the draw to leave out")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quantizers", nargs="*", default=["sign", "uniform:bits=2"])
    parser.add_argument("--observe", type=int, nargs="*", default=[1, 10, 20, 30])
    parser.add_argument("--attacks", nargs="*", default=ATTACKS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    data = DataSettings(dataset="folder", data_dir=arguments.data_dir, public_fraction=0.5)
    splits = load_splits(data, arguments.seed)
    public = PublicImages(splits.public.pixels(), splits.public.labels)
    order = numpy_rng(arguments.seed, Purpose.VICTIMS).permutation(len(splits.test))
    victims = splits.test.take(order[arguments.skip : arguments.skip + arguments.victims])
    images, labels = victims.pixels(), victims.labels
    print(f"`python -m benchmarks.joint_rounds {' '.join(sys.argv[1:])}`".replace(" `", "`") + "\n")
    print(" | ".join(["| quantizer | rounds", *COLUMNS, ""]).strip())
    print("|" + "---|" * (len(COLUMNS) + 2), flush=True)
    for quantizer in arguments.quantizers:
        seen = list(observe(quantizer, arguments.observe, images, labels, arguments.seed))
        for name in arguments.attacks:
            attack = build_attack(name)
            joint = getattr(attack, "rounds", "single") == "joint"
            first = [o for o in seen if o.round == arguments.observe[0]]
            started = time.process_time()
            made = attack.reconstruct(seen if joint else first, seed=arguments.seed, public=public)
            spent = time.process_time() - started
            made.sort(key=lambda one: one.partition)
            scores = score(made, images, labels, public.images[-GALLERY:])
            stalled = sum(one.status != "converged" for one in made)
            evaluations = sum(one.evaluations for one in made) / len(made)
            rounds = arguments.observe if joint else arguments.observe[:1]
            row = [
                *(f"`{quantizer}`", ", ".join(map(str, rounds)), f"`{name}`", *medians(scores)),
                *(f"{scores.labels_recovered.mean():.0%}", f"{stalled}/{len(made)}"),
                *(f"{evaluations:.0f}", f"{spent:.0f}"),
            ]
            print("| " + " | ".join(row) + " |", flush=True)


def observe(
    quantizer: str, rounds: list[int], images: Tensor, labels: Tensor, seed: int
) -> Iterator[Observation]:
    """Yield what a server sees at ``rounds`` of clients that train on one image each."""
    module = build_model(SPEC, seed)
    weights = Layout.of(module).flatten({k: p.detach() for k, p in module.named_parameters()})
    optimizer = server_optimizer(weights, TrainingSettings())
    model, work, parsed = flat_model(SPEC), LocalWork(fixed_batch=True), parse_quantizer(quantizer)
    targets = one_hot(labels, SPEC.classes)
    for round_ in range(1, max(rounds) + 1):
        sent, total = weights.clone(), torch.zeros_like(weights)
        for partition in range(len(images)):
            mine = slice(partition, partition + 1)
            vector = local_update(model, work, sent, images[mine], targets[mine], eager=True)
            rng = torch_rng(seed, Purpose.QUANTIZER, round_, partition)
            payload = parsed.encode(Update(vector, model.layout), rng)
            total += parsed.decode(payload).vector
            if round_ in rounds:
                yield Observation("table", round_, partition, SPEC, work, sent, payload)
        weights.grad = total / len(images)
        optimizer.step()


if __name__ == "__main__":
    main()
