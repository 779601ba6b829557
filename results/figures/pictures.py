"""Victims and their reconstructions as compact PNG data for the report."""

import base64
import io
from typing import Any

import pandas as pd
from PIL import Image
from torch import Tensor

from results.figures.gallery import picture
from results.reading.run_reader import RunReader
from results.scores.rows import VICTIM

BUDGET = 4_000_000
"""Characters of image data in one page; it limits the number of random victims."""

_SCORES = ["mse", "psnr", "ssim", "correlation"]


def png(image: Tensor) -> str:
    """Return an image ``(C, H, W)`` as base64 of a PNG; empty if it is not finite."""
    if not bool(image.isfinite().all()):
        return ""
    stream = io.BytesIO()
    Image.fromarray(picture(image)).save(stream, format="PNG", optimize=True)
    return base64.b64encode(stream.getvalue()).decode()


def affordable_victims(run: RunReader, budget: int) -> int:
    """Return how many victims of each quantizer fit the budget, if all images are of one size."""
    if run.scores.empty:
        return 0
    size = len(png(run.victim(run.scores.iloc[0]))) * 1.2 + 200
    attacks = run.scores.groupby("quantizer")["attack"].nunique().sum()
    return max(4, int(budget / size / (attacks + 1)))


def victim_cards(
    run: RunReader, victims: pd.DataFrame, classes: tuple[str, ...]
) -> dict[str, list[dict[str, Any]]]:
    """Return one card per quantizer and victim: the private image and each reconstruction.

    Parameters
    ----------
    run : RunReader
        The run.
    victims : DataFrame
        Victims to show, with the columns `results.scores.rows.VICTIM`, in random order.
    classes : tuple of str
        Names of the labels.
    """
    truth = {tuple(row[VICTIM]): png(run.victim(row)) for _, row in victims.iterrows()}
    shown = victims.assign(order=range(len(victims))).merge(run.scores, on=VICTIM)
    cards: dict[str, list[dict[str, Any]]] = {}
    for (quantizer, order), rows in shown.groupby(["quantizer", "order"], sort=False):
        first = rows.iloc[0]
        label = classes[first["true_label"]]
        card = {
            "order": int(str(order)),
            "round": int(first["round"]),
            "title": f"seed {first['seed']}, round {first['round']}, client {first['partition']}, "
            f"image {first['image']}",
            "label": label,
            "truth": truth[tuple(first[VICTIM])],
            "guesses": [_guess(run, row, classes) for _, row in rows.iterrows()],
        }
        cards.setdefault(str(quantizer), []).append(card)
    return cards


def batch_strips(run: RunReader, victims: pd.DataFrame) -> dict[str, list[dict[str, Any]]]:
    """Return for each quantizer whole batches with their strongest reconstructions, image by image.

    Parameters
    ----------
    run : RunReader
        The run.
    victims : DataFrame
        Images of whole batches: `results.scores.rows.random_batches`.

    Returns
    -------
    dict
        Empty if batches have one image.
    """
    if not victims["image"].any():
        return {}
    truth = {tuple(row[VICTIM]): png(run.victim(row)) for _, row in victims.iterrows()}
    strongest = run.scores[run.scores["strongest"]].merge(victims, on=VICTIM).sort_values(VICTIM)
    return {
        str(quantizer): [
            {
                "title": f"client {row['partition']}, image {row['image']}",
                "truth": truth[tuple(row[VICTIM])],
                "png": png(run.guess(row)),
                "mse": float(row["mse"]),
            }
            for _, row in rows.iterrows()
        ]
        for quantizer, rows in strongest.groupby("quantizer", sort=False)
    }


def _guess(run: RunReader, row: "pd.Series", classes: tuple[str, ...]) -> dict[str, Any]:
    return {
        "attack": row["attack"],
        "png": png(run.guess(row)),
        "label": classes[row["label"]],
        "strongest": bool(row["strongest"]),
        "status": row["status"],
        "short": bool(row["masked"] or row["unexplained"] or row["failed"]),
        **{name: float(row[name]) for name in _SCORES},
    }
