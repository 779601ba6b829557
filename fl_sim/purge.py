"""Delete what a run holds of people; tables and figures without private images stay."""

import shutil
from collections.abc import Sequence
from pathlib import Path

_PRIVATE = ("observations", "reconstructions", "gallery.*", "report.html")


def private_paths(root: Path) -> list[Path]:
    """Return what a server saw, what attacks made of it, and what shows private images.

    Those of the points of a study, which are runs of their own below it, are among them.
    """
    found = {path for name in _PRIVATE for path in root.rglob(name)}
    return sorted(path for path in found if not found.intersection(path.parents))


def purge(paths: Sequence[Path]) -> None:
    """Delete files and folders."""
    for path in paths:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()
