"""Rounds per second of the in-process engine beside a bare PyTorch loop and stock Flower on Ray.

    python -m benchmarks.simulation --data-dir DIR    # 3x32x32 images: against the bare loop
    python -m benchmarks.simulation --ray             # digits: six quantizers, six stock Ray runs

Both sides train the same model on the same private batches and measure test accuracy every round,
and are run in turn, so that a ratio holds where the machine's speed drifts. The bare loop is run as
anyone would write it, and once more with convolutions computed the way our clients compute them.
"""

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
from torch import Tensor

from clients.app import app as client_app
from fl_sim.data import private_batch
from fl_sim.engines.grids import run_apps
from fl_sim.models import build_model
from fl_sim.study.runs import RunFolder
from fl_sim.study.settings import EngineSettings, Settings, load_settings
from fl_sim.study.trials import Trial, trials_of
from fl_sim.updates.local_update import convolutions_for, flat_model
from server.app import build_server_app

MODEL = "lenet_dlg"
QUANTIZERS = "none,uniform:bits=8,uniform:bits=4,stochastic:bits=4,sign,topk:keep=0.1"


def study(quantizers: str, rounds: int, clients: int, data_dir: Path | None = None) -> Settings:
    """Return the setting of the benchmark: the LeNet of the DLG paper, batch 1."""
    data = {} if data_dir is None else {"dataset": "folder", "data_dir": data_dir, "limit": 200}
    return load_settings(
        None,
        {
            "quantizers": quantizers,
            "rounds": rounds,
            "clients": clients,
            "model": MODEL,
            "observe": "last",
            **data,
        },
    )


def bare_loop(settings: Settings) -> None:
    """Train every trial as a plain PyTorch loop would: no Flower, no quantizer, no store."""
    train_bare(settings, lambda _: nullcontext())


def tuned_loop(settings: Settings) -> None:
    """Train as the bare loop, but with the convolutions that our clients choose."""
    train_bare(settings, convolutions_for)


def train_bare(
    settings: Settings, convolutions: Callable[[Tensor], AbstractContextManager[None]]
) -> None:
    for trial in trials_of(settings):
        module = build_model(trial.model_spec, trial.seed)
        optimizer = torch.optim.Adam(module.parameters(), lr=settings.training.server_learning_rate)
        test = trial.federation.splits.test
        for server_round in range(1, settings.training.rounds + 1):
            optimizer.zero_grad()
            for partition in range(settings.data.clients):
                images, labels = private_batch(
                    trial.federation, trial.work, partition, server_round
                )
                with convolutions(images):
                    loss = torch.nn.functional.cross_entropy(module(images), labels)
                    (loss / settings.data.clients).backward()
            optimizer.step()
            with torch.no_grad():
                logits = module(test.pixels())
                torch.nn.functional.cross_entropy(logits, test.labels)
                (logits.argmax(1) == test.labels).float().mean()


def in_process(settings: Settings) -> None:
    """Train every trial on the in-process engine, observations and all."""
    with tempfile.TemporaryDirectory() as folder:
        server_app = build_server_app(settings, RunFolder(Path(folder)), lambda *_: None)
        run_apps(server_app, client_app, settings.data.clients, settings.engine)


def stock_ray(settings: Settings) -> None:
    """Start Flower's simulation once for each trial, as its tutorials do: FedAvg of float32."""
    for trial in trials_of(settings):
        run_apps(
            stock_server(trial, settings),
            stock_client_app,
            settings.data.clients,
            EngineSettings(engine="ray"),
        )


def stock_server(trial: Trial, settings: Settings) -> ServerApp:
    """Return a server app around Flower's own FedAvg."""
    app = ServerApp()

    @app.main()
    def main(grid: Grid, context: Context) -> None:
        del context
        module = build_model(trial.model_spec, trial.seed)
        test = trial.federation.splits.test

        def measure(_: int, arrays: ArrayRecord) -> MetricRecord:
            module.load_state_dict(arrays.to_torch_state_dict())
            with torch.no_grad():
                correct = (module(test.pixels()).argmax(1) == test.labels).float().mean()
            return MetricRecord({"accuracy": float(correct)})

        strategy = FedAvg(fraction_evaluate=0.0)
        strategy.start(
            grid,
            ArrayRecord(module.state_dict()),
            num_rounds=settings.training.rounds,
            evaluate_fn=measure,
        )

    return app


stock_client_app = ClientApp()


@stock_client_app.train()
def train(message: Message, context: Context) -> Message:
    """Take one SGD step on one image and send the weights back, as Flower's quick-start does."""
    torch.set_num_threads(1)
    trial = trials_of(study("none", 1, int(context.node_config["num-partitions"])))[0]
    module = build_model(trial.model_spec)
    module.load_state_dict(message.content.array_records["arrays"].to_torch_state_dict())
    server_round = int(message.content.config_records["config"]["server-round"])
    partition = int(context.node_config["partition-id"])
    images, labels = private_batch(trial.federation, trial.work, partition, server_round)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    torch.nn.functional.cross_entropy(module(images), labels).backward()
    optimizer.step()
    content = {
        "arrays": ArrayRecord(module.state_dict()),
        "metrics": MetricRecord({"num-examples": 1}),
    }
    return Message(RecordDict(content), reply_to=message)


@dataclass(frozen=True)
class Cost:
    """Seconds of one run, of the clock on the wall and of this process."""

    wall: float
    cpu: float

    @classmethod
    def of(cls, run: Callable[[Settings], None], settings: Settings) -> "Cost":
        """Run once and measure."""
        wall, cpu = time.perf_counter(), time.process_time()
        run(settings)
        return cls(time.perf_counter() - wall, time.process_time() - cpu)


def compare(
    name: str,
    reference: Callable[[Settings], None],
    settings: Settings,
    repeats: int,
    measure: str,
) -> None:
    """Run both sides in turn and print the median of the pairwise ratios."""
    pairs = []
    for _ in range(repeats):
        both = Cost.of(in_process, settings), Cost.of(reference, settings)
        print(f"  in-process {both[0]}, {name} {both[1]}", file=sys.stderr)
        pairs.append(tuple(getattr(cost, measure) for cost in both))
    rounds = settings.training.rounds * len(settings.quantizers)
    ratio = statistics.median(mine / other for mine, other in pairs)
    mine, other = (statistics.median(side) * 1e3 / rounds for side in zip(*pairs, strict=True))
    print(
        f"| in-process / {name} | {settings.data.clients} | {mine:.1f} | {other:.1f} "
        f"| {ratio:.2f} | {1 / ratio:.1f} |",
        flush=True,
    )


def main() -> None:
    """Print the ratios."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--ray", action="store_true", help="compare with stock Ray simulations")
    parser.add_argument("--data-dir", type=Path, help="folder of images; digits if absent")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--clients", type=int, default=10)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    data = arguments.data_dir
    quantizers = QUANTIZERS if arguments.ray else "none"
    settings = study(quantizers, arguments.rounds, arguments.clients, data)
    in_process(study("none", 1, arguments.clients, data))  # loads the data and warms torch up
    size = flat_model(trials_of(settings)[0].model_spec).layout.size
    measure = "wall" if arguments.ray else "cpu"  # the work of Ray is done in other processes
    print(f"{size} parameters, {measure} time, one torch thread\n")
    print("| sides | clients | ms a round | ms a round | ratio | times faster |")
    print("|---|---|---|---|---|---|")
    if arguments.ray:
        compare("six stock Ray runs", stock_ray, settings, arguments.repeats, measure)
        return
    compare("bare loop", bare_loop, settings, arguments.repeats, measure)
    compare("bare loop, same convolutions", tuned_loop, settings, arguments.repeats, measure)


if __name__ == "__main__":
    main()
