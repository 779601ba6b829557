"""The server app: `Malicious` is the line that was added; the app's clients are as they were."""

from pathlib import Path

import torch
from flwr.app import ArrayRecord, ConfigRecord, Context
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg

from planted.task import Net, load_public_images
from server import Malicious

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Train with planted weights, and keep what clients send."""
    torch.manual_seed(0)
    arrays = ArrayRecord(Net().state_dict())
    strategy = Malicious(
        FedAvg(fraction_evaluate=0.0),
        plan=str(context.run_config["plan"]),
        model=Net,
        public=load_public_images()[0],
        store=Path(str(context.run_config["out"])) / "observations",
    )
    strategy.start(
        grid=grid,
        initial_arrays=arrays,
        train_config=ConfigRecord({"lr": float(context.run_config["learning-rate"])}),
        num_rounds=int(context.run_config["num-server-rounds"]),
    )
