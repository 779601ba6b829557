"""Kill a study at random moments and resume it: a program of its own, for `test_kill.py`.

``python -m tests.killed_runs FOLDER`` runs the study once, then in forks of this process, which has
imported all they need: once to count the function calls of each phase, then killed by SIGKILL at a
call drawn by seed in each fifth of each phase, each time in a new folder; then resumed there.
"""

import json
import os
import random
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import run_simulation
from results import run_report
from server import study

KILLS = 5  # in each phase
PHASES = {
    "training": study.train.__code__,
    "attacking": study.attack.__code__,
    "scoring": run_report.summarise.__code__,
    "writing": run_report.write_csv.__code__,
}
SMALL = [
    *("--rounds", "3", "--clients", "2", "--limit", "100", "--victims", "1", "--observe", "1,3"),
    *("--quantizers", "none,sign", "--workers", "1", "--quiet"),
    *("--attacks", "dlg:iterations=3,restarts=0,cell:iterations=3,restarts=0"),
]


def run(out: Path) -> None:
    sys.argv = ["run_simulation.py", *SMALL, "--out", str(out)]
    run_simulation.main()


def in_fork(work: Callable[[], None]) -> int:
    """Run in a child and return how it ended, as `os.waitpid` says."""
    child = os.fork()
    if child == 0:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        work()
        os._exit(0)
    return os.waitpid(child, 0)[1]


def at_each_call(act: Callable[[FrameType], None]) -> None:
    """Call ``act`` wherever this process, in any thread, calls or leaves a function."""

    def profile(frame: FrameType, event: str, arg: Any) -> None:
        act(frame)

    threading.setprofile(profile)
    sys.setprofile(profile)


def count(out: Path) -> None:
    """Run, and write at which call each phase began."""
    calls, begins = 0, {}
    names = {code: phase for phase, code in PHASES.items()}

    def act(frame: FrameType) -> None:
        nonlocal calls
        calls += 1
        if frame.f_code in names:
            begins.setdefault(names[frame.f_code], calls)

    at_each_call(act)
    run(out)
    sys.setprofile(None)
    (out / "calls.json").write_text(json.dumps(begins | {"end": calls}))


def killed(out: Path, moment: int) -> None:
    calls = 0

    def act(frame: FrameType) -> None:
        nonlocal calls
        calls += 1
        if calls == moment:
            os.kill(os.getpid(), signal.SIGKILL)

    at_each_call(act)
    run(out)


def main(root: Path) -> None:
    run(root / "whole")
    assert in_fork(lambda: count(root / "counted")) == 0
    calls = list(json.loads((root / "counted" / "calls.json").read_text()).values())
    rng = random.Random(0)
    for phase, first, last in zip(PHASES, calls, calls[1:], strict=False):
        for number in range(KILLS):
            out = root / f"{phase}-{number}"
            moment = int(first + (number + rng.random()) / KILLS * (last - first))
            ended = in_fork(lambda out=out, moment=moment: killed(out, moment))
            left = sorted(str(path.relative_to(out)) for path in out.rglob("*"))
            resumed = in_fork(lambda out=out: run(out))
            facts = {"killed": os.WTERMSIG(ended), "left": left, "resumed": resumed}
            (out / "kill.json").write_text(json.dumps(facts))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
