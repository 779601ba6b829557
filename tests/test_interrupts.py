"""A study that is interrupted in any phase ends at once, says so, and goes on to the same bytes."""

import hashlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from tests.commands import command

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("interrupts")]

ROOT = Path(__file__).parent.parent
SMALL = [
    *("--rounds", "20", "--clients", "4", "--limit", "200", "--victims", "4", "--observe", "1"),
    *("--quantizers", "none,sign,uniform:bits=4", "--workers", "2"),
    *("--attacks", "dlg:iterations=40,restarts=0,cell:iterations=40,restarts=0"),
]
BEGUN = {"training": '"training"', "attacking": '"attacked"', "scoring": '"scored"'}
"""An event of the log by which a phase has begun."""

TABLES = ("results.csv", "scores.csv", "history.csv")


def start(out: Path) -> subprocess.Popen:
    script = [sys.executable, ROOT / "run_simulation.py", *SMALL, "--out", out]
    return subprocess.Popen(
        script, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )


def wait_for(event: str, out: Path, running: subprocess.Popen) -> list[psutil.Process]:
    """Wait until the log holds an event; return the processes that the command has started."""
    log, started = out / "log.jsonl", []
    while not (log.exists() and event in log.read_text()):
        assert running.poll() is None, "it ended before it could be interrupted"
        started = psutil.Process(running.pid).children(recursive=True)
        time.sleep(0.01)
    return started


def digests(out: Path) -> list[str]:
    return [hashlib.sha256((out / name).read_bytes()).hexdigest() for name in TABLES]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    out = tmp_path_factory.mktemp("whole") / "run"
    assert command(*SMALL, "--out", out, "--quiet") == 0
    return digests(out)


@pytest.mark.parametrize(
    ("phase", "request_", "status", "word"),
    [
        ("training", signal.SIGINT, 130, "interrupted"),
        ("attacking", signal.SIGINT, 130, "interrupted"),
        ("attacking", signal.SIGTERM, 143, "terminated"),
        ("scoring", signal.SIGTERM, 143, "terminated"),
    ],
)
def test_an_interrupted_study_ends_and_goes_on(phase, request_, status, word, whole, tmp_path):
    out = tmp_path / "run"
    running = start(out)
    started = wait_for(BEGUN[phase], out, running)
    os.kill(running.pid, request_)
    _, said = running.communicate(timeout=60)
    assert running.returncode == status
    assert [line for line in said.splitlines() if "same command goes on" in line] == [
        f"{word}; what was finished stays, the same command goes on"
    ]
    assert "Traceback" not in said
    _, alive = psutil.wait_procs(started, timeout=10)
    assert alive == []
    assert command(*SMALL, "--out", out, "--quiet") == 0
    assert digests(out) == whole
