"""Write the tables, the curve, the gallery and the page of a run or study."""

from pathlib import Path

import pandas as pd

from results.card import write_card
from results.figures.by_setting import draw_by_setting
from results.figures.curves import draw_curve
from results.figures.panels import save_figure
from results.page.report import write_comparison, write_report
from results.reading.run_reader import RunReader
from results.reading.study_reader import StudyReader, run_gallery
from results.tables.csv_text import write_csv


def summarise(root: Path) -> pd.DataFrame:
    """Score a run or study and write its tables, its curve, its gallery and its page.

    The files are ``scores.csv``, ``results.csv``, ``families.csv``, ``curve.png``,
    ``curve_by_round.png`` (if several rounds were observed), ``gallery.png``, ``report.html`` and
    ``card.json``. A study with axes has them for each point, but for the card, and over all points
    the tables, the curve (a panel for each point), ``psnr_by_SETTING.png`` for each axis, the page
    and the card.

    Parameters
    ----------
    root : Path
        Folder of a run or study; it need not be finished.

    Returns
    -------
    DataFrame
        `results.tables.summary.results_table`, also in ``results.csv``; one column for each axis
        comes first.

    Raises
    ------
    SettingsError
        If the folder is not that of a run or study.
    """
    study = StudyReader(root, keep=True)
    for run in study.runs.values():
        _summarise_run(run)
    if study.study.axes:
        write_csv(root / "results.csv", study.results)
        write_csv(root / "families.csv", study.families)
        write_csv(root / "history.csv", study.history)
        draw_curve(study.results, root / "curve.png")
        for setting in study.study.axes:
            draw_by_setting(study.results_by_round, setting, root / f"psnr_by_{setting}.png")
        write_comparison(study.runs, root.resolve().name, root / "report.html")
    write_card(study, root / "card.json")
    return study.results


def _summarise_run(run: RunReader) -> None:
    root = run.folder.root
    write_csv(root / "scores.csv", run.scores)
    write_csv(root / "results.csv", run.results)
    write_csv(root / "families.csv", run.families)
    draw_curve(run.results, root / "curve.png")
    if run.scores["round"].nunique() > 1:
        draw_curve(run.results_by_round, root / "curve_by_round.png")
    gallery = run_gallery(run)
    if gallery is not None:
        save_figure(gallery, root / "gallery.png")
    write_report(run, root / "report.html")
