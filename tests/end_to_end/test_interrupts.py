"""A study that is interrupted in any phase ends at once, says so, and goes on to the same bytes."""

import hashlib
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from tests.commands import command

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

ROOT = Path(__file__).parents[2]
SMALL = [
    *("--rounds", "10", "--clients", "4", "--limit", "200", "--victims", "4", "--observe", "1"),
    *("--quantizers", "none,sign,uniform:bits=4", "--workers", "2"),
    *("--attacks", "dlg:iterations=40,restarts=0,cell:iterations=40,restarts=0"),
]
BEGUN = {"training": '"training"', "attacking": '"attacked"', "scoring": '"scored"'}
"""An event of the log by which a phase has begun."""

ENDS = {signal.SIGINT: (130, "interrupted"), signal.SIGTERM: (143, "terminated")}

TABLES = ("results.csv", "scores.csv", "history.csv")


def start(out: Path, engine: str) -> subprocess.Popen:
    arguments = [*SMALL, "--engine", engine, "--out", out]
    script = [sys.executable, ROOT / "run_simulation.py", *arguments]
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
    return out


LEFT = {
    "training": None,
    "attacking": ("reconstructions", "scores", "log.jsonl", *TABLES),
    "scoring": ("scores", "log.jsonl", *TABLES),
}
"""What is left to make when a phase begins; everything if None."""

# One process each for those of an engine: they share the study that was not interrupted.
LOCAL, RAY = (pytest.mark.xdist_group(f"interrupts-{engine}") for engine in ("local", "ray"))


@pytest.mark.parametrize(
    ("engine", "phase", "request_"),
    [
        pytest.param("local", "training", signal.SIGINT, marks=LOCAL),
        pytest.param("local", "attacking", signal.SIGINT, marks=LOCAL),
        pytest.param("local", "attacking", signal.SIGTERM, marks=LOCAL),
        pytest.param("local", "scoring", signal.SIGTERM, marks=LOCAL),
        pytest.param("ray", "training", signal.SIGTERM, marks=RAY),
        pytest.param("ray", "attacking", signal.SIGINT, marks=RAY),
    ],
)
def test_an_interrupted_study_ends_and_goes_on(engine, phase, request_, whole, tmp_path):
    status, word = ENDS[request_]
    out = tmp_path / "run"
    if (left := LEFT[phase]) is not None:
        shutil.copytree(whole, out, ignore=shutil.ignore_patterns(*left))
    running = start(out, engine)
    started = wait_for(BEGUN[phase], out, running)
    os.kill(running.pid, request_)
    _, said = running.communicate(timeout=60)
    assert running.returncode == status
    assert [line for line in said.splitlines() if "run the same command" in line] == [
        f"{word}; finished work is kept; run the same command to continue"
    ]
    assert "Traceback" not in said
    assert "ERROR" not in said
    _, alive = psutil.wait_procs(started, timeout=10)
    assert alive == []
    assert command(*SMALL, "--out", out, "--quiet") == 0
    assert digests(out) == digests(whole)


STUCK = """
import os, signal, threading, time
from fl_sim.engines.interrupts import interruptible

with interruptible():
    threading.Thread(target=time.sleep, args=(600,)).start()
    os.kill(os.getpid(), signal.SIGTERM)
"""


@pytest.fixture
def unread():
    """Return a pipe that nobody reads."""
    reader, writer = os.pipe()
    os.close(reader)
    yield writer
    os.close(writer)


def test_a_command_ends_though_nobody_reads_why(unread):
    script = [sys.executable, "-c", STUCK]
    done = subprocess.run(script, cwd=ROOT, stdout=unread, stderr=unread, timeout=120, check=False)
    assert done.returncode == 143


def test_a_command_whose_output_nobody_reads_is_silent(unread):
    script = [sys.executable, ROOT / "run_simulation.py", "--version"]
    buffered = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    done = subprocess.run(
        script, stdout=unread, stderr=subprocess.PIPE, env=buffered, timeout=120, check=False
    )
    assert (done.returncode, done.stderr) == (1, b"")
