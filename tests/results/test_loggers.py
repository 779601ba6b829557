import sqlite3

import pandas as pd
import pytest

from results.loggers import log_run


@pytest.fixture
def run(tmp_path):
    """Two trials of two rounds, as a run leaves them."""
    rows = [
        {
            "trial": f"{quantizer}_seed-0",
            "quantizer": quantizer,
            "seed": 0,
            "round": r,
            "accuracy": None if r == 1 else 0.1 * r,  # the model was not tested in round 1
            "loss": 2.0 - r,
            "uplink_bytes": 100 * r,
            "updates": 3,
            "dropped": 0,
        }
        for quantizer in ("none", "sign")
        for r in range(3)
    ]
    pd.DataFrame(rows).to_csv(tmp_path / "history.csv", index=False)
    results = {"quantizer": ["none", "sign"], "psnr_median": [90.0, 21.5], "ssim_median": [1, None]}
    pd.DataFrame(results).to_csv(tmp_path / "results.csv", index=False)
    return tmp_path


def test_tensorboard_reads_rounds_and_final_scores(run):
    pytest.importorskip("tensorboard", reason="an extra")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    folder = log_run(run, "tensorboard")
    events = EventAccumulator(str(folder / "sign_seed-0"))
    events.Reload()
    assert [(e.step, e.value) for e in events.Scalars("loss")] == [(0, 2.0), (1, 1.0), (2, 0.0)]
    assert [e.value for e in events.Scalars("uplink_bytes")] == [0, 100, 200]
    assert [e.step for e in events.Scalars("accuracy")] == [0, 2]
    assert [(e.step, e.value) for e in events.Scalars("final/psnr_median")] == [(2, 21.5)]
    assert "final/ssim_median" not in events.Tags()["scalars"]


def test_mlflow_reads_them_too(run):
    pytest.importorskip("sqlalchemy", reason="mlflow, an extra, needs it")
    pytest.importorskip("mlflow", reason="an extra")
    folder = log_run(run, "mlflow")
    with sqlite3.connect(folder / "mlflow.db") as store:
        final = store.execute("SELECT value FROM metrics WHERE key = 'final/psnr_median'")
        assert sorted(row[0] for row in final) == [21.5, 90.0]
        assert store.execute("SELECT count(*) FROM metrics WHERE key = 'loss'").fetchone() == (6,)
