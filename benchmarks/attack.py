"""Reconstructions per CPU second: batched attacks against the published loop, side by side."""

import argparse
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from attacker.presets import build_attack
from benchmarks.attack_table import SPEC, Trial, observe
from fl_sim.data.datasets import load_splits
from fl_sim.models import build_model
from fl_sim.observations import Observation
from fl_sim.quantizers import parse_quantizer
from fl_sim.seeding import Purpose, numpy_rng
from fl_sim.settings import DataSettings

SUCCESS = 1e-3
BATCHED = "scaled:tv=0,box=0,warmup=0,iterations=1500,history=100,target=0.001,restarts=1"
CLOSED_FORM = "rgap"


@dataclass
class Side:
    """One contender, and what it has done so far."""

    name: str
    attack: Callable[[Sequence[Observation]], list[Tensor]]
    victims: int
    done: int = 0
    successes: int = 0
    seconds: float = 0.0
    cursor: int = field(default=0)

    def turn(self, seen: Sequence[Observation], images: Tensor) -> None:
        """Attack the next victims and book time and successes."""
        chosen = [(self.cursor + i) % len(seen) for i in range(self.victims)]
        self.cursor += self.victims
        started = time.process_time()
        found = self.attack([seen[i] for i in chosen])
        self.seconds += time.process_time() - started
        self.done += len(chosen)
        for index, guess in zip(chosen, found, strict=True):
            error = (guess.clamp(0, 1) - images[index]).square().mean()
            self.successes += bool(error < SUCCESS)

    @property
    def rate(self) -> float:
        """Successful reconstructions per CPU second."""
        return self.successes / self.seconds


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


def batched(name: str) -> Callable[[Sequence[Observation]], list[Tensor]]:
    attack = build_attack(name)
    return lambda seen: [one.images[0] for one in attack.reconstruct(seen, seed=0)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data-dir", type=Path, default=Path("../shared/data/cifar10"))
    parser.add_argument("--victims", type=int, default=64, help="in one batch")
    parser.add_argument("--published", type=int, default=3, help="victims of the loop in a turn")
    parser.add_argument("--turns", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    data = DataSettings(dataset="folder", data_dir=arguments.data_dir)
    test = load_splits(data, 0).test
    order = numpy_rng(0, Purpose.VICTIMS).permutation(len(test))[:256]
    images, labels = test.pixels(order), test.labels[order]
    seen = list(observe(Trial(0, "none", ()), images, labels, 0))
    scaling(seen)
    sides = [
        Side("published loop", published, arguments.published),
        Side("batched L-BFGS", batched(BATCHED), arguments.victims),
        Side("recursive closed form", batched(CLOSED_FORM), arguments.victims),
    ]
    for _ in range(arguments.turns):
        for side in sides:
            side.turn(seen, images)
    print("| side | attack | victims | MSE < 1e-3 | CPU s a victim | successes a CPU s | ratio |")
    print("|---|---|---|---|---|---|---|")
    for side, name in zip(sides, ("300 x L-BFGS.step", BATCHED, CLOSED_FORM), strict=True):
        ratio = side.rate / sides[0].rate if sides[0].successes else float("nan")
        print(
            f"| {side.name} | `{name}` | {side.done} | {side.successes / side.done:.0%} "
            f"| {side.seconds / side.done:.2f} | {side.rate:.3f} | {ratio:.1f} |"
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
