"""How far a run or study is: what is trained, attacked and scored, and what is left to do."""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from fl_sim.observed.reconstructions import reconstruction_key, reconstruction_path
from fl_sim.storage.files import StoreError
from fl_sim.study.runs import RunFolder, attack_key
from fl_sim.study.settings import Settings
from fl_sim.study.study import read_study
from fl_sim.study.trials import attacked_together, trials_of
from results.reading.run_reader import key_of_scores, read_scores, score_path


class Step(NamedTuple):
    """Whether one trial, or one attack on one of its rounds, is done by this very code."""

    point: str
    quantizer: str
    kind: str  # trained, attacked, scored
    done: bool


def progress(root: Path) -> pd.DataFrame:
    """Count what is done and what there is to do, by point and quantizer.

    Returns
    -------
    DataFrame
        One row for each point and quantizer: ``point``, ``quantizer``, and for each of
        ``trained``, ``attacked``, ``scored`` how many are done, and behind ``of_`` of how many.
        Done is what settings and code as they are now would not make again.

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
    for trial in trials_of(settings):
        standing = folder.finished(trial, settings) is not None
        yield Step(point, trial.quantizer, "trained", standing)
        for attack in settings.audit.attacks:
            key = attack_key(trial, settings, attack)
            scored_key = key_of_scores(key, settings.audit.metrics)
            for rounds in attacked_together(trial, settings):
                root = folder.reconstructions
                path = reconstruction_path(root, trial.name, attack, rounds[-1])
                attacked = _attacked(path, key)
                scored = read_scores(score_path(folder, path), scored_key) is not None
                yield Step(point, trial.quantizer, "attacked", standing and attacked)
                yield Step(point, trial.quantizer, "scored", standing and attacked and scored)


def _attacked(path: Path, key: str) -> bool:
    try:
        return path.exists() and reconstruction_key(path) == key
    except StoreError:
        return False
