"""Scores and histories of a small study, made by hand."""

import numpy as np
import pandas as pd

from fl_sim.observed.evidence import BLOCKS
from results.scores.rows import BLOCKS_COLUMN, compare_attacks
from results.tables.summary import results_table


def score_rows(quantizer: str, attack: str, errors: list[float], evidence: float) -> pd.DataFrame:
    """Batches of one image; a victim below 0.01 is recovered, the others settled but hidden."""
    mse = np.array(errors)
    return pd.DataFrame(
        {
            "quantizer": quantizer,
            "seed": 0,
            "round": 1,
            "partition": range(len(mse)),
            "cohort": range(len(mse)),
            "attack": attack,
            "image": 0,
            "mse": mse,
            "psnr": -10 * np.log10(mse),
            "ssim": 1 - mse,
            "correlation": 1 - mse,
            "identified": mse < 0.02,
            "labels_recovered": 1.0,
            "recovered": mse < 0.01,
            "failed": False,
            "masked": False,
            "unexplained": False,
            "inconsistency": 0.0,
            "evidence": evidence,
            "evidence_at_truth": 0.0,
            "evidence_at_grey": 1.0,
            BLOCKS_COLUMN: [[evidence] * BLOCKS for _ in errors],
            "mse_best_known": mse,
            "update_rmse": 0.0 if quantizer == "none" else 0.01,
            "identified_chance": 0.0069,
            "label_chance": 0.1,
        }
    )


def study(*frames: pd.DataFrame) -> pd.DataFrame:
    return compare_attacks(pd.concat(frames, ignore_index=True))


def history(**accuracies: list[float]) -> pd.DataFrame:
    """Two rounds; the first is a little better than the last, which is the one that counts."""
    rows = [
        (
            name,
            seed,
            server_round,
            accuracy * (0.1, 1.05, 1)[server_round],
            4000 * server_round,
            server_round,
        )
        for name, of_seeds in accuracies.items()
        for seed, accuracy in enumerate(of_seeds)
        for server_round in (0, 1, 2)
    ]
    columns = ["quantizer", "seed", "round", "accuracy", "uplink_bytes", "updates"]
    return pd.DataFrame(rows, columns=columns)


BASELINES = pd.DataFrame({"baseline": ["mid_grey", "mean_public", "nearest_public"]}).assign(
    mse=[0.2, 0.1, 0.01]
)


def table(scores: pd.DataFrame, trained: pd.DataFrame, *quantizers: str) -> pd.DataFrame:
    return results_table(
        quantizers or tuple(scores["quantizer"].unique()),
        history=trained,
        scores=scores,
        baselines=BASELINES,
        entropy_coded={"none": 3600.0},
        parameters=1000,
    )


NONE = score_rows("none", "dlg", [1e-6] * 11, 0.0)

SIGN = score_rows("sign", "dlg", [0.02 * k for k in range(5, 16)], 0.1)
