"""From the folder of a run to its scores, tables, curve and gallery.

In a notebook::

    from pathlib import Path
    from results.run_report import summarise
    summarise(Path("runs/default"))
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from fl_sim.study import Study, read_study
from results.curves import draw_curve
from results.gallery import GalleryRow, draw_gallery
from results.report import write_comparison, write_report
from results.run_reader import RunReader, random_victims
from results.tables import VICTIM, write_csv

GALLERY_VICTIMS = 8


def summarise(root: Path) -> pd.DataFrame:
    """Score a run or study and write its tables, its curve, its gallery and its page.

    ``scores.csv``, ``results.csv``, ``curve.png``, ``gallery.png`` and ``report.html``. A study
    with axes has them, but for scores and gallery, over all its points, and each point has its own.

    Parameters
    ----------
    root : Path
        Folder of a run or study. One that is not finished is summarised as far as it got.

    Returns
    -------
    DataFrame
        `results.tables.results_table`, also in ``results.csv``; one column for each axis comes
        first.

    Raises
    ------
    SettingsError
        If the folder is not that of a run or study.
    """
    study = read_study(root)
    runs = [_summarise_run(folder.root) for folder in study.folders(root)]
    if not study.axes:
        return runs[0].results
    results = _over_points(study, [run.results for run in runs])
    names = [point.name for point in study.points]
    write_csv(root / "results.csv", results)
    write_csv(root / "history.csv", _over_points(study, [run.history for run in runs]))
    labels = np.repeat(names, [len(run.results) for run in runs])
    draw_curve(results.assign(quantizer=labels + " / " + results["quantizer"]), root / "curve.png")
    write_comparison(dict(zip(names, runs, strict=True)), root.resolve().name, root / "report.html")
    return results


def _over_points(study: Study, frames: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """Put the frames of all points below each other, the values of their axes in front."""
    columns = []
    for point, frame in zip(study.points, frames, strict=True):
        values = pd.DataFrame([dict(point.values)] * len(frame), index=frame.index)
        columns.append(pd.concat([values, frame], axis=1))
    return pd.concat(columns, ignore_index=True)


def _summarise_run(root: Path) -> RunReader:
    run = RunReader(root)
    write_csv(root / "scores.csv", run.scores)
    write_csv(root / "results.csv", run.results)
    draw_curve(run.results, root / "curve.png")
    draw_run_gallery(run, root / "gallery.png")
    write_report(run, root / "report.html")
    return run


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
