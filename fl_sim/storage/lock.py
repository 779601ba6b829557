"""One writer at a time: a lock on the folder of a run, which a killed process does not leave."""

import json
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from fl_sim.storage.files import write_text
from fl_sim.study.settings import SettingsError


@contextmanager
def locked(roots: Sequence[Path]) -> Iterator[None]:
    """Be the only writer below the folders, which are made, while the block runs.

    The system releases the lock of a process that ends, however it ends.

    Raises
    ------
    SettingsError
        If another process holds one of them, or one is a file or cannot be written.
    """
    with ExitStack() as held:
        for root in roots:
            held.enter_context(_taken(root))
        yield


def holder(root: Path) -> str:
    """Return who writes below a folder, ``process 12 since 2026-01-31 10:00:00``, or nothing."""
    if not root.is_dir() or not _lock_file(root).exists():
        return ""
    try:
        with FileLock(_lock_file(root), blocking=False):
            return ""
    except Timeout:
        return _holder(root)
    except OSError:  # a disk that is read-only here, or somebody else's folder
        return _holder(root) if _is_locked(_lock_file(root)) else ""


def _is_locked(path: Path) -> bool:
    """Return whether somebody holds a lock file that can be read, but not written."""
    try:
        import fcntl  # noqa: PLC0415 - not on Windows

        with path.open() as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except (ImportError, OSError):
        return False
    return False


def _taken(root: Path) -> FileLock:
    lock = FileLock(_lock_file(root), blocking=False)
    try:
        root.mkdir(parents=True, exist_ok=True)
        lock.acquire()
        facts = {"process": os.getpid(), "since": time.strftime("%F %T")}
        write_text(_holder_file(root), json.dumps(facts))
    except Timeout as error:
        allowed = f"{_holder(root)} is writing there; wait for it, or choose another folder"
        raise SettingsError("out", str(root), allowed) from error
    except OSError as error:
        reason = f"cannot be written ({error.strerror})"
        if root.is_file():
            reason = "is a file; a folder is needed"
        raise SettingsError("out", str(root), reason) from error
    return lock


def _holder(root: Path) -> str:
    try:
        facts = json.loads(_holder_file(root).read_text())
        return f"process {facts['process']} since {facts['since']}"
    except (OSError, ValueError, KeyError):
        return "another process"


def _lock_file(root: Path) -> Path:
    return root / ".lock"


def _holder_file(root: Path) -> Path:
    return root / ".lock.json"
