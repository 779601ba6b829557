"""Where a result comes from: settings, code, machine and duration, in ``provenance.json``."""

import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from fl_sim.storage.files import write_text
from fl_sim.study.runs import RunFolder
from fl_sim.study.settings import settings_tree

PACKAGES = ("torch", "numpy", "flwr", "flwr-datasets", "ray", "scipy", "scikit-image", "pandas")


class Session:
    """One call of the command line that works on runs; each leaves its trace in their folders.

    Parameters
    ----------
    folders : sequence of RunFolder
        The runs, whose settings are written already.
    """

    def __init__(self, folders: Sequence[RunFolder]) -> None:
        self.folders = folders
        self.facts: dict[str, Any] = {
            "started": datetime.now(UTC).isoformat(timespec="seconds"),
            "git": _git(),
            "python": platform.python_version(),
            "packages": {package: version(package) for package in PACKAGES},
            "machine": _machine(),
            "seconds": {},
        }
        self._before = [read_sessions(folder) for folder in folders]

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Measure a phase, e.g. ``training``, over all runs, and write its duration."""
        began = time.monotonic()
        yield
        self.facts["seconds"][name] = round(time.monotonic() - began, 1)
        for folder, before in zip(self.folders, self._before, strict=True):
            settings = folder.settings()
            tree = {
                "seeds": settings.seeds,
                "settings": settings_tree(settings),
                "sessions": [*before, self.facts],
            }
            write_text(folder.provenance_file, json.dumps(tree, indent=1))


def read_sessions(folder: RunFolder) -> list[dict[str, Any]]:
    """Return what all sessions left in a folder, the oldest first."""
    try:
        sessions: list[dict[str, Any]] = json.loads(folder.provenance_file.read_text())["sessions"]
    except (OSError, ValueError, KeyError):
        return []
    return sessions


def describe(session: dict[str, Any]) -> str:
    """Say in one sentence what a session was."""
    machine, git = session["machine"], session["git"]
    code = "code outside git" if git is None else f"commit {git['commit'][:12]}"
    changed = " with local changes" if git and git["dirty"] else ""
    phases = ", ".join(f"{name} {seconds:,.0f} s" for name, seconds in session["seconds"].items())
    gpus = ", ".join(machine["gpus"]) or "no GPU"
    return (
        f"{session['started']}: {code}{changed}; {phases}; {machine['cpu']}, {machine['cores']} "
        f"cores, {machine['memory_gib']} GiB, {gpus}; Python {session['python']}, "
        + ", ".join(map(" ".join, session["packages"].items()))
    )


def _git() -> dict[str, Any] | None:
    """Return commit of this code and whether it was changed since; None outside a checkout."""
    root = Path(__file__).parents[__name__.count(".")]
    if not (root / ".git").exists():
        return None
    try:
        commit, changes = (
            subprocess.run(
                ["git", "-C", str(root), *words], capture_output=True, text=True, check=True
            ).stdout.strip()
            for words in (["rev-parse", "HEAD"], ["status", "--porcelain", "--untracked-files=no"])
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return {"commit": commit, "dirty": bool(changes)}


def _machine() -> dict[str, Any]:
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    memory = 0
    if sys.platform != "win32":
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "memory_gib": round(memory / 2**30, 1),
        "gpus": [torch.cuda.get_device_name(number) for number in range(count)],
        "system": f"{platform.system()} {platform.release()}",
    }


def _cpu() -> str:
    facts = Path("/proc/cpuinfo")
    if facts.exists():
        for line in facts.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
