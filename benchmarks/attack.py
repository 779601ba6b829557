"""Reconstructions per CPU second: batched attacks against the published loop, in turn.

The loop runs in two processes side by side, as its users do on two cores; the batched attacks in
one. CPU time is counted, so that other work on the machine does not.
"""

import argparse
import multiprocessing
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from attacker.presets import build_attack
from benchmarks.attack_trials import SPEC
from fl_sim.data.datasets import load_splits
from fl_sim.engines.process import set_up_process
from fl_sim.models import build_model
from fl_sim.observed.observations import Observation
from fl_sim.quantizers import parse_quantizer
from fl_sim.seeding import Purpose, numpy_rng
from fl_sim.study.settings import DataSettings
from fl_sim.testing import observe

SUCCESS = 1e-3
BATCHED = "scaled:tv=0,box=0,warmup=0,iterations=1500,history=100,target=0.008,restarts=1"
CLOSED_FORM = "rgap"
LOOPS = 2  # processes of the published loop, side by side


Attack = Callable[[Sequence[Observation]], list[Tensor]]


@dataclass
class Side:
    """One contender, and what it has done so far."""

    name: str
    attack: str
    done: int = 0
    successes: int = 0
    seconds: float = 0.0

    def book(self, seconds: float, errors: Sequence[float]) -> None:
        """Add the mean squared errors of some victims and what they took."""
        self.seconds += seconds
        self.done += len(errors)
        self.successes += sum(error < SUCCESS for error in errors)

    @property
    def rate(self) -> float:
        """Successful reconstructions per second of a core."""
        return self.successes / self.seconds


def timed(attack: Attack, seen: Sequence[Observation], images: Tensor) -> tuple[float, list[float]]:
    """Return CPU seconds of an attack and the mean squared error of each picture."""
    torch.set_num_threads(1)
    started = time.process_time()
    found = attack(seen)
    seconds = time.process_time() - started
    pairs = zip(found, images, strict=True)
    return seconds, [float((one.clamp(0, 1) - truth).square().mean()) for one, truth in pairs]


def published(seen: Sequence[Observation]) -> list[Tensor]:
    """Attack one picture after the other."""
    return [published_loop(observation) for observation in seen]


def published_loop(observation: Observation) -> Tensor:
    """Run the loop of Deep Leakage from Gradients as released; return the picture ``(C, H, W)``."""
    model = build_model(SPEC)
    parameters = list(model.parameters())
    sizes = [p.numel() for p in parameters]
    with torch.no_grad():
        for p, w in zip(parameters, observation.weights.split(sizes), strict=True):
            p.copy_(w.view_as(p))
    received = parse_quantizer("none").decode(observation.payload).vector
    target = [g.view_as(p) for g, p in zip(received.split(sizes), parameters, strict=True)]
    torch.manual_seed(observation.partition)
    image = torch.randn(1, *SPEC.shape, requires_grad=True)
    label = torch.randn(1, SPEC.classes, requires_grad=True)
    optimizer = torch.optim.LBFGS([image, label])

    def closure() -> Tensor:
        optimizer.zero_grad()
        log_probabilities = functional.log_softmax(model(image), dim=-1)
        loss = (-label.softmax(dim=-1) * log_probabilities).sum(dim=-1).mean()
        slopes = torch.autograd.grad(loss, parameters, create_graph=True)
        gaps = [((s - t) ** 2).sum() for s, t in zip(slopes, target, strict=True)]
        difference = torch.stack(gaps).sum()
        difference.backward()
        return difference

    for _ in range(300):
        optimizer.step(closure)
    return image.detach()[0]


def batched(name: str) -> Attack:
    attack = build_attack(name)
    return lambda seen: [one.images[0] for one in attack.reconstruct(seen, seed=0)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data-dir", type=Path, default=Path("../shared/data/cifar10"))
    parser.add_argument("--victims", type=int, default=64, help="in one batch")
    parser.add_argument("--published", type=int, default=4, help="victims of a loop in a turn")
    parser.add_argument("--turns", type=int, default=2)
    arguments = parser.parse_args()
    set_up_process()
    data = DataSettings(dataset="folder", data_dir=arguments.data_dir)
    test = load_splits(data, 0).test
    order = numpy_rng(0, Purpose.VICTIMS).permutation(len(test))[:256]
    images, labels = test.pixels(order), test.labels[order]
    seen = observe(images, labels, spec=SPEC)
    scaling(seen)
    loop = Side("published loop", "300 x L-BFGS.step")
    ours = [Side("batched L-BFGS", BATCHED), Side("recursive closed form", CLOSED_FORM)]
    with ProcessPoolExecutor(LOOPS, multiprocessing.get_context("spawn")) as pool:
        for turn in range(arguments.turns):
            shares = [
                slice(first, first + arguments.published)
                for first in range(
                    turn * LOOPS * arguments.published,
                    (turn + 1) * LOOPS * arguments.published,
                    arguments.published,
                )
            ]
            futures = [pool.submit(timed, published, seen[s], images[s]) for s in shares]
            for future in futures:
                loop.book(*future.result())
            rows = slice(turn * arguments.victims, (turn + 1) * arguments.victims)
            for side in ours:
                side.book(*timed(batched(side.attack), seen[rows], images[rows]))
    print(
        "| side | attack | victims | MSE < 1e-3 | CPU s a victim | successes a CPU s "
        f"| to one loop | to {LOOPS} side by side |"
    )
    print("|---|---|---|---|---|---|---|---|")
    for side in (loop, *ours):
        ratio = side.rate / loop.rate if loop.successes else float("nan")
        print(
            f"| {side.name} | `{side.attack}` | {side.done} | {side.successes / side.done:.0%} "
            f"| {side.seconds / side.done:.2f} | {side.rate:.3f} "
            f"| {ratio:.1f} | {ratio / LOOPS:.1f} |"
        )


def scaling(seen: Sequence[Observation]) -> None:
    """Print the cost of a victim as their number grows, at equal evaluations."""
    attack = batched("idlg:iterations=30,warmup=0,restarts=0,patience=30")
    attack(seen[:8])
    print("| victims | CPU ms a victim and evaluation |\n|---|---|")
    for count in (1, 8, 64, 256):
        started = time.process_time()
        attack(seen[:count])
        print(f"| {count} | {(time.process_time() - started) / count / 30 * 1e3:.2f} |")
    print(flush=True)


if __name__ == "__main__":
    main()
