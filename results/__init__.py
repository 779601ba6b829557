"""What a run leaves behind, measured and shown.

In a notebook::

    from results import load_run
    run = load_run("runs/default")
    run.results

and ``run.curve()``, ``run.gallery()``, ``run.scores``, ``run.history``.
"""

from pathlib import Path

from results.reading.study_reader import StudyReader

__all__ = ["load_run"]


def load_run(root: str | Path) -> StudyReader:
    """Read the folder of a run or a study, finished or not.

    Raises
    ------
    SettingsError
        If the folder is not that of a run or study.
    """
    return StudyReader(Path(root))
