"""Rounds per second of the in-process engine beside a bare PyTorch loop and stock Flower on Ray.

    python -m benchmarks.simulation            # against the bare loop
    python -m benchmarks.simulation --ray      # six quantizers against six stock Ray simulations

Both sides train the same model on the same private batches and measure test accuracy every round,
and are run in turn, so that a ratio holds where the machine's speed drifts.
"""

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg

from clients.app import app as client_app
from fl_sim.data import private_batch
from fl_sim.engines import run_apps
from fl_sim.models import build_model
from fl_sim.runs import RunFolder
from fl_sim.settings import EngineSettings, Settings, load_settings
from fl_sim.trials import Trial, trials_of
from server.app import build_server_app

MODEL = "lenet_dlg"
QUANTIZERS = "none,uniform:bits=8,uniform:bits=4,stochastic:bits=4,sign,topk:keep=0.1"


def study(quantizers: str, rounds: int, clients: int) -> Settings:
    """Return the setting of the benchmark: digits on the LeNet of the DLG paper, batch 1."""
    return load_settings(
        None,
        {
            "quantizers": quantizers,
            "rounds": rounds,
            "clients": clients,
            "model": MODEL,
            "observe": "last",
        },
    )


def bare_loop(settings: Settings) -> None:
    """Train every trial as a plain PyTorch loop would: no Flower, no quantizer, no store."""
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


def seconds(run: Callable[[Settings], None], settings: Settings) -> float:
    """Return the wall time of one run."""
    start = time.perf_counter()
    run(settings)
    return time.perf_counter() - start


def compare(
    name: str,
    ours: Callable[[Settings], None],
    reference: Callable[[Settings], None],
    settings: Settings,
    repeats: int,
) -> None:
    """Run both sides in turn and print the median of the pairwise ratios."""
    pairs = []
    for _ in range(repeats):
        pairs.append((seconds(ours, settings), seconds(reference, settings)))
        print(f"  in-process {pairs[-1][0]:.2f} s, {name} {pairs[-1][1]:.2f} s", file=sys.stderr)
    rounds = settings.training.rounds * len(settings.quantizers)
    ratio = statistics.median(mine / other for mine, other in pairs)
    fastest = min(mine for mine, _ in pairs)
    print(f"in-process / {name}: {ratio:.2f} in time ({1 / ratio:.1f}x faster); ", end="")
    print(f"{rounds / fastest:.0f} rounds a second at best, {settings.data.clients} clients")


def main() -> None:
    """Print the ratios."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--ray", action="store_true", help="compare with stock Ray simulations")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--clients", type=int, default=10)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    quantizers = QUANTIZERS if arguments.ray else "none"
    settings = study(quantizers, arguments.rounds, arguments.clients)
    in_process(study("none", 1, arguments.clients))  # loads the data and warms torch up
    if arguments.ray:
        compare("six stock Ray runs", in_process, stock_ray, settings, arguments.repeats)
    else:
        compare("bare loop", in_process, bare_loop, settings, arguments.repeats)


if __name__ == "__main__":
    main()
