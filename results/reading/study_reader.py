"""The tables and figures of a run, or of all points of a study."""

import io
from collections.abc import Callable
from functools import cached_property
from pathlib import Path

import pandas as pd
import torch
from matplotlib.figure import Figure
from PIL import Image

from fl_sim.study.study import read_study
from results.figures.curves import curve_figure
from results.figures.gallery import GalleryRow, gallery_figure
from results.figures.panels import render
from results.reading.run_reader import RunReader
from results.scores.rows import VICTIM, random_batches
from results.tables.verdicts import server_plans, starred

GALLERY_VICTIMS, GALLERY_MOST = 8, 64
"""Images that a gallery shows: so many, or one whole batch if that has more, up to a limit."""


def load_run(root: str | Path) -> "StudyReader":
    """Read the folder of a run or a study, finished or not.

    Raises
    ------
    SettingsError
        If the folder is not that of a run or study.

    Examples
    --------
    >>> from results import load_run
    >>> run = load_run("runs/default")  # doctest: +SKIP
    >>> run.results  # run.scores, run.history, run.curve(), run.gallery()  # doctest: +SKIP
    """
    return StudyReader(Path(root))


class StudyReader:
    """What a run or a study wrote so far; it need not be finished.

    Parameters
    ----------
    root : Path
        Folder of the run or study.
    keep : bool
        As for `RunReader`.

    Attributes
    ----------
    runs : dict[str, RunReader]
        The run of each point by the point's name, such as ``alpha=0.1,local_steps=5``; a run
        without axes is the only one, named ``""``.

    Raises
    ------
    SettingsError
        If the folder is not that of a run or study.
    """

    def __init__(self, root: Path, *, keep: bool = False) -> None:
        self.root = root
        self.study = read_study(root)
        folders = zip(self.study.points, self.study.folders(root), strict=True)
        self.runs = {point.name: RunReader(folder.root, keep=keep) for point, folder in folders}

    @cached_property
    def results(self) -> pd.DataFrame:
        """One row per quantizer and point: columns of the axes, then `RunReader.results`."""
        return self._over_points(lambda run: run.results)

    @cached_property
    def results_by_round(self) -> pd.DataFrame:
        """One row per quantizer, point and observed round, whose number follows the axes."""
        results = self._over_points(lambda run: run.results_by_round)
        if "round" in results:
            results.insert(len(self.study.axes), "round", results.pop("round"))
        return results

    @cached_property
    def families(self) -> pd.DataFrame:
        """One row per family and point: columns of the axes, then `RunReader.families`."""
        return self._over_points(lambda run: run.families)

    @cached_property
    def scores(self) -> pd.DataFrame:
        """One row per attack and victim: columns of the axes, then `RunReader.scores`."""
        return self._over_points(lambda run: run.scores)

    @cached_property
    def history(self) -> pd.DataFrame:
        """One row per trial and round: columns of the axes, then accuracy, loss and bytes."""
        return self._over_points(lambda run: run.history)

    def curve(self) -> Image.Image:
        """Return `results.figures.curves.curve_figure` as an image for a notebook."""
        return _picture(curve_figure(self.results))

    def gallery(self, point: str = "") -> Image.Image:
        """Return the gallery of one point as an image for a notebook; see `run_gallery`.

        Parameters
        ----------
        point : str
            Name of the point, a key of `runs`; not needed without axes.

        Raises
        ------
        KeyError
            If the study has no such point.
        ValueError
            If nothing has been attacked.
        """
        figure = run_gallery(self.runs[point])
        if figure is None:
            raise ValueError(f"{self.root}: nothing has been attacked.")
        return _picture(figure)

    def _over_points(self, table: Callable[[RunReader], pd.DataFrame]) -> pd.DataFrame:
        """Concatenate the tables of all points, with one column for each axis in front."""
        frames = []
        for point, run in zip(self.study.points, self.runs.values(), strict=True):
            frame = table(run).drop(columns=list(point.values), errors="ignore")
            values = pd.DataFrame([dict(point.values)] * len(frame), index=frame.index)
            frames.append(pd.concat([values, frame], axis=1))
        return pd.concat(frames, ignore_index=True)


def run_gallery(run: RunReader) -> Figure | None:
    """Draw the strongest reconstructions of whole batches; None if nothing was attacked.

    Batches are drawn by seed. Each image stands above the reconstructions that are assigned to it.
    """
    batches = random_batches(run.scores, GALLERY_VICTIMS)
    victims = batches[:GALLERY_MOST]
    if victims.empty:
        return None
    note = server_plans(run.results)
    if len(victims) < len(batches):
        note = f"The first {len(victims)} of {len(batches)} images of a batch. {note}"
    strongest = run.scores[run.scores["strongest"]]
    rows = []
    for _, result in run.results.iterrows():
        mine = strongest[strongest["quantizer"] == result["quantizer"]]
        seen = victims.merge(mine, on=VICTIM)
        if len(seen) == len(victims):
            pictures = torch.stack([run.guess(row) for _, row in seen.iterrows()])
            name, verdict = result["quantizer"], result["verdict"]
            errors = seen["mse"].tolist()
            rows.append(GalleryRow(name, verdict, starred(result), pictures, errors))
    truth = torch.stack([run.victim(row) for _, row in victims.iterrows()])
    captions = [
        f"round {row.round}, client {row.partition}\nseed {row.seed}, image {row.image}"
        for row in victims.itertuples()
    ]
    return gallery_figure(truth, captions, rows, note)


def _picture(figure: Figure) -> Image.Image:
    return Image.open(io.BytesIO(render(figure, "png")))
