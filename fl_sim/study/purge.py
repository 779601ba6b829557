"""Delete what a run holds of people; tables and figures without private images stay."""

import shutil
from collections.abc import Iterable, Iterator, Sequence
from datetime import date
from pathlib import Path

from fl_sim.storage.files import write_text
from fl_sim.study.runs import RunFolder

_PRIVATE = ("observations", "reconstructions", "gallery.*", "report.html")
_UNFINISHED = (".gallery.*", ".report.html.*")  # of a process that was killed while it wrote


def private_paths(roots: Iterable[Path]) -> list[Path]:
    """Return what a server saw, what attacks made of it, and what shows private images.

    Of links, what they point to is among them; of a folder that is linked from within, what a run
    stores; of one that a run lies in, nothing. Runs below the folders count too.
    """
    own = {root.resolve() for root in roots}
    names = (*_PRIVATE, *_UNFINISHED)
    waiting = [path for root in own for name in names for path in root.rglob(name)]
    found: set[Path] = set()
    while waiting:
        path = waiting.pop()
        if path not in found:
            found.add(path)
            waiting += _linked(path, own)
    return sorted(path for path in found if not found.intersection(path.parents))


def _linked(path: Path, own: Iterable[Path]) -> Iterator[Path]:
    """Yield what a private path and the links below it point to."""
    for link in (path, *path.rglob("*")):
        target = link.resolve()
        leads_up = any(root.is_relative_to(target) for root in own)
        if not link.is_symlink() or not target.exists() or leads_up:
            continue
        if link == path or target.is_file():
            yield target
        else:
            yield from target.rglob("round-*.safetensors")


def purge(paths: Sequence[Path]) -> None:
    """Delete files and folders, and leave the date in the folders of runs that held them."""
    for root in {path.parent for path in paths}:
        if RunFolder(root).settings_file.is_file():
            write_text(RunFolder(root).purged_file, date.today().isoformat())
    for path in paths:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()
