"""Time against victims, clients, parameters and workers, beside the floor of the arithmetic.

    python -m benchmarks.scaling --data-dir DIR --write    # then: python -m docs.render

The floor is what the same operations and bytes would take at the rates this machine reaches on one
core, with a large matrix product and a large copy, measured in the same run. Operations are those
that PyTorch counts in what was timed: multiplications and additions of products and convolutions.
Times are CPU seconds, which other work on the machine disturbs least; those of the workers are of
the clock on the wall.
"""

import argparse
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
import torch
from torch.utils.flop_counter import FlopCounterMode

from attacker.attack import Attack
from attacker.presets import build_attack
from benchmarks.attack_trials import SPEC
from benchmarks.provenance import commit
from benchmarks.simulation import MODEL, in_process
from fl_sim.data import load_splits
from fl_sim.engines.tasks import run_tasks
from fl_sim.models import ModelSpec, build_model
from fl_sim.observed.observations import Observation
from fl_sim.quantizers import parse_quantizer
from fl_sim.study.settings import DataSettings, EngineSettings, load_settings
from fl_sim.testing import observe
from fl_sim.updates.local_update import Layout, Update, flat_model, one_hot

TABLE, PLOT = Path("docs/results/performance/scaling.csv"), Path("docs/images/performance.png")
FLOAT = 4  # bytes
HISTORY, EVALUATIONS, MANY_EVALUATIONS = 50, 10, 100


@dataclass(frozen=True)
class Machine:
    """What one core reaches."""

    flops: float  # a second
    bandwidth: float  # bytes a second, read or written

    @classmethod
    def measure(cls) -> "Machine":
        """Time a large product and a large copy."""
        one, other = torch.randn(2, 1024, 1024)
        product = least_seconds(lambda: one @ other)
        source = torch.randn(1 << 25)
        target = torch.empty_like(source)
        copy = least_seconds(lambda: target.copy_(source))
        return cls(2 * 1024**3 / product, 2 * FLOAT * source.numel() / copy)


@dataclass(frozen=True)
class Point:
    """One measurement: how many of what, and what one of them took."""

    count: int
    seconds: float
    flops: float
    bytes: float

    def floor(self, machine: Machine) -> float:
        """Seconds that the arithmetic and the memory alone would take."""
        return max(self.flops / machine.flops, self.bytes / machine.bandwidth)


@dataclass(frozen=True)
class Series:
    """A table and a panel of the plot."""

    title: str
    axis: str
    points: list[Point]


def least_seconds(run: Callable[[], object], least: float = 0.2) -> float:
    """Return the CPU seconds of the fastest of several runs: noise only ever adds."""
    run()
    best, spent = float("inf"), 0.0
    while spent < least:
        started = time.process_time()
        run()
        took = time.process_time() - started
        best, spent = min(best, took), spent + took
    return best


def flops_of(run: Callable[[], object]) -> float:
    """Count the operations of products and convolutions, once."""
    with FlopCounterMode(display=False) as counter:
        run()
    return float(counter.get_total_flops())


def victims(seen: Sequence[Observation]) -> Series:
    """Attack more and more victims together, at equal evaluations."""
    attack = attack_of(EVALUATIONS)
    size, pixels = seen[0].weights.numel(), SPEC.shape[0] * SPEC.shape[1] * SPEC.shape[2]
    # An evaluation reads the update asked for and writes the candidate's; a step reads the history.
    moved = FLOAT * (2 * size + 2 * 2 * HISTORY * pixels)
    flops = flops_of(lambda: attack.reconstruct(seen[:8], seed=0)) / (8 * EVALUATIONS)
    points = []
    for count in (1, 8, 64, 256):
        some = seen[:count]
        took = least_seconds(lambda some=some: attack.reconstruct(some, seed=0))
        points.append(Point(count, took / (count * EVALUATIONS), flops, moved))
    return Series("An evaluation of one victim of DLG", "victims in a batch", points)


def clients() -> Series:
    """Train with more and more clients on the in-process engine."""
    spec = ModelSpec(MODEL, (1, 8, 8), 10)
    flops, size = flops_of(gradient_of(spec)), flat_model(spec).layout.size
    points = []
    for count in (10, 100, 1000):
        settings = load_settings(
            None,
            {"quantizers": "uniform:bits=4", "clients": count, "rounds": 2, "model": MODEL},
        )
        took = least_seconds(lambda settings=settings: in_process(settings))
        each = count * settings.training.rounds
        # The client reads the weights and writes a gradient, the server decodes and adds it up.
        points.append(Point(count, took / each, flops, 6 * FLOAT * size))
    return Series("A client's round, digits, 8k parameters, 4 bits", "clients in a round", points)


def gradient_of(spec: ModelSpec) -> Callable[[], torch.Tensor]:
    """Return a function that computes a client's gradient of one image."""
    model = flat_model(spec)
    weights = Layout.of(module := build_model(spec)).flatten(dict(module.named_parameters()))
    image = torch.rand(1, *spec.shape)
    target = one_hot(torch.tensor([0]), spec.classes)
    return lambda: model.eager_gradient(weights.detach(), image, target)


def parameters() -> Series:
    """Compute, encode to 4 bits and decode an update of larger and larger models."""
    quantizer, generator = parse_quantizer("uniform:bits=4"), torch.Generator()
    points = []
    for name in ("lenet_dlg", "convnet", "resnet18"):
        spec = ModelSpec(name, (3, 32, 32), 10)
        gradient, layout = gradient_of(spec), flat_model(spec).layout

        def exchange(
            gradient: Callable[[], torch.Tensor] = gradient, layout: Layout = layout
        ) -> None:
            payload = quantizer.encode(Update(gradient(), layout), generator)
            quantizer.decode(payload)

        took = least_seconds(exchange)
        # Weights read, gradient written; read twice to encode; codes written, read; update written.
        moved = FLOAT * layout.size * (5 + 2 / 8)
        points.append(Point(layout.size, took, flops_of(gradient), moved))
    return Series("A client's update of a 3x32x32 image, 4 bits", "parameters", points)


def attack_of(evaluations: int) -> Attack:
    """Return an attack that stops after so many evaluations, not before."""
    return build_attack(
        f"idlg:iterations={evaluations},warmup=0,restarts=0,patience={evaluations},history={HISTORY}"
    )


def attack_some(seen: Sequence[Observation]) -> None:
    """Attack one batch, as a task of a worker."""
    attack_of(MANY_EVALUATIONS).reconstruct(seen, seed=0)


def workers(seen: Sequence[Observation]) -> Series:
    """Attack sixteen batches of 16 with one worker and with two, by the clock on the wall."""
    tasks = [seen[first : first + 16] for first in range(0, 256, 16)]
    flops = flops_of(lambda: attack_some(tasks[0])) * len(tasks)
    points = []
    for count in (1, 2):
        started = time.perf_counter()
        for _ in run_tasks(attack_some, tasks, EngineSettings(workers=count)):
            pass
        points.append(Point(count, time.perf_counter() - started, flops / count, 0.0))
    return Series("256 victims in 16 batches, wall", "workers", points)


def table(series: Series, machine: Machine) -> pd.DataFrame:
    """Return one series, one row a point."""
    rows = []
    for point in series.points:
        floor = point.floor(machine)
        rows.append(
            {
                "against": series.axis,
                "count": point.count,
                "ms": f"{point.seconds * 1e3:.3g}",
                "million operations": f"{point.flops / 1e6:.3g}",
                "kB": f"{point.bytes / 1e3:.0f}",
                "floor, ms": f"{floor * 1e3:.2g}",
                "times the floor": f"{point.seconds / floor:.0f}",
                "commit": commit(),
            }
        )
    return pd.DataFrame(rows)


def draw(every: Sequence[Series], machine: Machine, path: Path) -> None:
    """Draw one panel a series: what was measured above its floor."""
    figure, panels = plt.subplots(1, len(every), figsize=(12, 3.2), layout="constrained")
    for axes, series in zip(panels, every, strict=True):
        counts = [point.count for point in series.points]
        measured = [point.seconds * 1e3 for point in series.points]
        floors = [point.floor(machine) * 1e3 for point in series.points]
        axes.loglog(counts, measured, "o-", color="#0b6e99", label="measured")
        axes.loglog(counts, floors, "s--", color="#8a8a8a", label="floor")
        axes.set_xticks(counts, [f"{count:,}" for count in counts], minor=False)
        axes.set_xticks([], minor=True)
        axes.set_title(series.title, fontsize=8)
        axes.set(xlabel=series.axis)
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel("ms")
    panels[0].legend(frameon=False, fontsize=8)
    figure.savefig(path, dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-dir", type=Path, default=Path("../shared/data/cifar10"))
    parser.add_argument("--write", action="store_true", help=f"write {TABLE} and {PLOT}")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    machine = Machine.measure()
    test = load_splits(DataSettings(dataset="folder", data_dir=arguments.data_dir), 0).test
    rows = slice(0, 256)
    seen = observe(test.pixels(rows), test.labels[rows], spec=SPEC)
    every = []
    for make in (partial(victims, seen), clients, parameters, partial(workers, seen)):
        every.append(make())
        print(table(every[-1], machine).to_string(index=False), end="\n\n", flush=True)
    print(
        f"One core: {machine.flops / 1e9:.0f} billion operations and "
        f"{machine.bandwidth / 1e9:.1f} GB a second."
    )
    if arguments.write:
        pd.concat([table(series, machine) for series in every]).to_csv(TABLE, index=False)
        draw(every, machine, PLOT)


if __name__ == "__main__":
    main()
