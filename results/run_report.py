"""From the folder of a run to its scores, tables, curve and gallery.

In a notebook::

    from pathlib import Path
    from results.run_report import summarise
    summarise(Path("runs/default"))
"""

from pathlib import Path

import pandas as pd
import torch

from results.curves import draw_curve
from results.gallery import GalleryRow, draw_gallery
from results.report import write_report
from results.run_reader import RunReader, random_victims
from results.tables import VICTIM, write_csv

GALLERY_VICTIMS = 8


def summarise(root: Path) -> pd.DataFrame:
    """Score a run and write its tables, its curve, its gallery and its page.

    ``scores.csv``, ``results.csv``, ``curve.png``, ``gallery.png`` and ``report.html``.

    Parameters
    ----------
    root : Path
        Folder of a run. One that is not finished is summarised as far as it got.

    Returns
    -------
    DataFrame
        `results.tables.results_table`, also in ``results.csv``.

    Raises
    ------
    SettingsError
        If the folder is not that of a run.
    """
    run = RunReader(root)
    write_csv(root / "scores.csv", run.scores)
    write_csv(root / "results.csv", run.results)
    draw_curve(run.results, root / "curve.png")
    draw_run_gallery(run, root / "gallery.png")
    write_report(run, root / "report.html")
    return run.results


def draw_run_gallery(run: RunReader, path: Path) -> None:
    """Draw the strongest reconstructions of the same random victims; nothing without any."""
    victims = random_victims(run.scores, GALLERY_VICTIMS).sort_index()
    if victims.empty:
        return
    strongest = run.scores[run.scores["strongest"]]
    rows = []
    for _, result in run.results.iterrows():
        mine = strongest[strongest["quantizer"] == result["quantizer"]]
        seen = victims.merge(mine, on=VICTIM)
        if len(seen) == len(victims):
            pictures = torch.stack([run.guess(row) for _, row in seen.iterrows()])
            name, verdict = result["quantizer"], result["verdict"]
            rows.append(GalleryRow(name, verdict, pictures, seen["mse"].tolist()))
    truth = torch.stack([run.victim(row) for _, row in victims.iterrows()])
    captions = [
        f"round {row.round}, client {row.partition}\nseed {row.seed}, image {row.image}"
        for row in victims.itertuples()
    ]
    draw_gallery(truth, captions, rows, path)
