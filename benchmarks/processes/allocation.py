"""What it saves to keep the memory that tensors free: CPU time of a convolutional network.

Each side is a process of its own, one after the other, several times. ``set_up_process`` makes the
kept side; the other has only its number of threads set.
"""

import argparse
import resource
import subprocess
import sys
from statistics import median

import torch

from benchmarks.provenance import print_csv
from fl_sim.engines.process import set_up_process
from fl_sim.models import ModelSpec, build_model

SIDES = ("given back", "kept")
MODEL = "convnet:layers=2,norm=batch,activation=relu"


def main() -> None:
    """Print docs/results/performance/allocation.csv."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--images", type=int, default=256)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--side", choices=SIDES, help="run this side alone, and print its seconds")
    arguments = parser.parse_args()
    if arguments.side:
        print(*measure(arguments.side, arguments.images))
        return
    words = [
        sys.executable,
        "-m",
        "benchmarks.processes.allocation",
        "--images",
        str(arguments.images),
    ]
    taken: dict[str, list[tuple[float, float]]] = {side: [] for side in SIDES}
    for _ in range(arguments.turns):
        for side in SIDES:
            done = subprocess.run([*words, "--side", side], stdout=subprocess.PIPE, check=True)
            user, system = map(float, done.stdout.split())
            taken[side].append((user, system))
    whole = {side: median(map(sum, own)) for side, own in taken.items()}
    print_csv(
        {
            "freed memory is": side,
            "images": arguments.images,
            "CPU s": round(whole[side], 2),
            "of them system": round(median(system for _, system in own), 2),
            "times as fast": round(whole[SIDES[0]] / whole[side], 2),
        }
        for side, own in taken.items()
    )


def measure(side: str, images: int) -> tuple[float, float]:
    """Return user and system seconds of six gradients of a network of convolutions."""
    if side == "kept":
        set_up_process()
    torch.set_num_threads(1)
    model = build_model(ModelSpec(MODEL, (3, 32, 32), 10))
    batch = torch.rand(images, 3, 32, 32)

    def gradients(count: int) -> resource.struct_rusage:
        for _ in range(count):
            model.zero_grad()
            model(batch).logsumexp(dim=1).sum().backward()
        return resource.getrusage(resource.RUSAGE_SELF)

    before, after = gradients(2), gradients(6)
    return after.ru_utime - before.ru_utime, after.ru_stime - before.ru_stime


if __name__ == "__main__":
    main()
