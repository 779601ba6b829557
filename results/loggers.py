"""Log the numbers of a run to TensorBoard or MLflow."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pandas as pd

Log = Callable[[Mapping[str, float], int], None]
"""Log values by name for a round."""

OpenTrial = Callable[[str], AbstractContextManager[Log]]
"""Open the log of a trial, by its name."""

_ROUND = ("accuracy", "loss", "uplink_bytes")


def log_run(root: Path, tool: str) -> Path:
    """Write the numbers of a run for a tool below its folder; return the folder.

    Each trial gets its accuracy, loss and bytes by round, and at its last round the columns of
    ``results.csv`` of its quantizer as ``final/...``.

    Parameters
    ----------
    root : Path
        Folder of a run with ``history.csv`` and ``results.csv``.
    tool : str
        A key of `LOGGERS`.

    Raises
    ------
    ModuleNotFoundError
        If the tool is not installed.
    """
    folder = root / tool
    open_trial = LOGGERS[tool](folder)
    history = pd.read_csv(root / "history.csv")
    final = pd.read_csv(root / "results.csv").set_index("quantizer").select_dtypes("number")
    for (trial, quantizer), rows in history.groupby(["trial", "quantizer"], sort=False):
        with open_trial(str(trial)) as log:
            for row in rows.to_dict("records"):
                measured = {name: float(row[name]) for name in _ROUND if pd.notna(row[name])}
                log(measured, int(row["round"]))
            scores = final.loc[[str(quantizer)]].iloc[0].dropna().to_dict()
            log({f"final/{name}": float(value) for name, value in scores.items()}, len(rows) - 1)
    return folder


def _tensorboard(folder: Path) -> OpenTrial:
    from torch.utils.tensorboard import SummaryWriter  # noqa: PLC0415 - an extra

    @contextmanager
    def open_trial(trial: str) -> Iterator[Log]:
        with SummaryWriter(folder / trial) as writer:

            def log(values: Mapping[str, float], server_round: int) -> None:
                for name, value in values.items():
                    writer.add_scalar(name, value, server_round)

            yield log

    return open_trial


def _mlflow(folder: Path) -> OpenTrial:
    import mlflow  # noqa: PLC0415 - an extra

    folder.mkdir(exist_ok=True)
    mlflow.set_tracking_uri(f"sqlite:///{folder.resolve() / 'mlflow.db'}")

    @contextmanager
    def open_trial(trial: str) -> Iterator[Log]:
        with mlflow.start_run(run_name=trial):

            def log(values: Mapping[str, float], server_round: int) -> None:
                mlflow.log_metrics(dict(values), server_round)

            yield log

    return open_trial


LOGGERS: Mapping[str, Callable[[Path], OpenTrial]] = {
    "tensorboard": _tensorboard,
    "mlflow": _mlflow,
}
