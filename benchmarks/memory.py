"""Memory of whole runs, all processes together: what is bounded, and what stays flat.

    python -m benchmarks.memory --data-dir DIR --write    # then: python -m docs.render

Memory is the proportional set size of the process and all its children: a page that several
processes share counts once. Each run has a process of its own.
"""

import argparse
import multiprocessing
import tempfile
import threading
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
import psutil
import torch

from benchmarks.provenance import commit
from benchmarks.simulation import bare_loop
from clients.app import app as client_app
from fl_sim.engines.grids import run_apps
from fl_sim.study.runs import RunFolder
from fl_sim.study.settings import Settings, load_settings
from server.app import build_server_app

MB = 1e6
TABLES, PLOT = Path("docs/results/performance"), Path("docs/images/memory.png")


def memory() -> float:
    """Return the megabytes of this process and all below it."""
    me = psutil.Process()
    total = 0
    for process in (me, *me.children(recursive=True)):
        try:
            total += process.memory_full_info().pss
        except psutil.Error:  # it has just ended
            continue
    return total / MB


@dataclass
class Use:
    """Megabytes before the first round, at the end of each round, and at most."""

    before: float = 0.0
    rounds: list[float] = field(default_factory=list)
    peak: float = 0.0

    def note(self) -> float:
        """Measure now."""
        now = memory()
        self.peak = max(self.peak, now)
        return now


def watched(run: Callable[[Settings, Callable[..., None]], None], settings: Settings) -> Use:
    """Run in this process, measuring after every round and every quarter of a second."""
    torch.set_num_threads(1)
    use = Use()
    use.before = use.note()
    over = threading.Event()

    def watch() -> None:
        while not over.wait(0.25):
            use.note()

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        run(settings, lambda *_: use.rounds.append(use.note()))
    finally:
        over.set()
        watcher.join()
    return use


def simulate(settings: Settings, on_round: Callable[..., None]) -> None:
    """Train on the engine of the settings."""
    with tempfile.TemporaryDirectory() as folder:
        server_app = build_server_app(settings, RunFolder(Path(folder)), on_round)
        run_apps(server_app, client_app, settings.data.clients, settings.engine)


def bare(settings: Settings, on_round: Callable[..., None]) -> None:
    """Train in a plain loop."""
    del on_round
    bare_loop(settings)


def alone(run: Callable[[Settings, Callable[..., None]], None], **overrides: object) -> Use:
    """Measure a run in a fresh process."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(watched, run, load_settings(None, overrides)).result()


def many_partitions() -> pd.DataFrame:
    """Measure in-process runs with more and more partitions."""
    rows = []
    for clients in (100, 1000):
        use = alone(
            simulate,
            quantizers="uniform:bits=4",
            clients=clients,
            fraction_train=100 / clients,
            rounds=20,
            observe="first,last",
        )
        rows.append(
            {
                "partitions": clients,
                "sampled a round": 100,
                "rounds": 20,
                "MB before": round(use.before),
                "MB at the end": round(use.rounds[-1]),
                "MB at most": round(use.peak),
                "commit": commit(),
            }
        )
    return pd.DataFrame(rows)


def large_model(data_dir: Path) -> pd.DataFrame:
    """Measure three rounds of ResNet-18, with Flower and without."""
    setting = {
        "dataset": "folder",
        "data_dir": data_dir,
        "limit": 200,
        "model": "resnet18",
        "quantizers": "uniform:bits=4",
        "rounds": 3,
        "clients": 10,
    }
    uses = {"bare loop": alone(bare, **setting), "in-process": alone(simulate, **setting)}
    rows = [
        {
            "run": name,
            "MB before": round(use.before),
            "MB at most": round(use.peak),
            "commit": commit(),
        }
        for name, use in uses.items()
    ]
    return pd.DataFrame(rows)


def over_rounds() -> str:
    """Plot the memory of 50 rounds on Ray and say how it grows after the fifth."""
    use = alone(
        simulate,
        quantizers="uniform:bits=4",
        clients=200,
        fraction_train=0.1,
        rounds=50,
        engine="ray",
        observe="first,last",
    )
    late = use.rounds[5:]
    figure, axes = plt.subplots(figsize=(6, 2.6), layout="constrained")
    axes.plot(range(1, len(use.rounds) + 1), use.rounds, color="#0b6e99")
    axes.set(xlabel="round", ylabel="memory of all processes, MB", ylim=(0, 1.1 * max(use.rounds)))
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(PLOT, dpi=150)
    slope = float(torch.tensor(late).diff().mean())
    return (
        f"From round 6 to round {len(use.rounds)}: {min(late):.0f} to {max(late):.0f} MB, "
        f"{slope:+.1f} MB a round on average; {use.peak:.0f} MB at most."
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-dir", type=Path, default=Path("../shared/data/cifar10"))
    parser.add_argument("--write", action="store_true", help=f"write {TABLES}")
    arguments = parser.parse_args()
    measured = {"partitions": many_partitions(), "resnet": large_model(arguments.data_dir)}
    for name, frame in measured.items():
        print(frame.to_string(index=False), end="\n\n", flush=True)
        if arguments.write:
            frame.to_csv(TABLES / f"{name}.csv", index=False)
    print(over_rounds())


if __name__ == "__main__":
    main()
