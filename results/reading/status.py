"""Progress of a run or study: what is trained, attacked and scored, and what is left."""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from fl_sim.study.plan import training_jobs
from fl_sim.study.runs import RunFolder
from fl_sim.study.settings import Settings
from fl_sim.study.study import read_study
from results.reading.attack_scores import scoring_job


class Step(NamedTuple):
    """One unit of work, and whether it was done by the current code."""

    point: str
    quantizer: str
    kind: str  # trained, attacked, scored
    done: bool


def progress(root: Path) -> pd.DataFrame:
    """Count what is done and what is left, by point and quantizer.

    Returns
    -------
    DataFrame
        One row for each point and quantizer: ``point``, ``quantizer``, and for each of
        ``trained``, ``attacked``, ``scored`` the number done, and with ``of_`` before it the total.
        Done means: a new run with the current settings and code would not repeat it.

    Raises
    ------
    SettingsError
        If the folder is not that of a run or study.
    """
    study = read_study(root)
    steps = pd.DataFrame(
        [
            step
            for point, folder in zip(study.points, study.folders(root), strict=True)
            for step in _steps(point.name, folder, folder.settings())
        ]
    )
    keys = ["point", "quantizer"]
    done = steps.pivot_table("done", keys, "kind", "sum", sort=False)
    every = steps.pivot_table("done", keys, "kind", "count", sort=False)
    kinds = ["trained", "attacked", "scored"]
    return done[kinds].astype(int).join(every[kinds].add_prefix("of_")).reset_index()


def _steps(point: str, folder: RunFolder, settings: Settings) -> Iterator[Step]:
    for training in training_jobs(settings, folder):
        quantizer, trained = training.trial.quantizer, training.stands()
        yield Step(point, quantizer, "trained", trained)
        for attack in training.attacks():
            attacked = trained and attack.stands()
            yield Step(point, quantizer, "attacked", attacked)
            yield Step(point, quantizer, "scored", attacked and scoring_job(attack).stands())
