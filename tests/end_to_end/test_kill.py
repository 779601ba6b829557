"""Runs that are killed, at any moment, and resumed."""

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from tests.killed_runs import KILLS, PHASES, SMALL

ROOT = Path(__file__).parents[2]
pytestmark = [pytest.mark.slow, pytest.mark.timeout(600), pytest.mark.xdist_group("kill")]


def events(root):
    lines = map(json.loads, (root / "log.jsonl").read_text().splitlines())
    return [line for line in lines if line.get("event") in ("trained", "attacked", "scored")]


def done_of(root):
    """How often each trial was trained, and each attack on it carried out and scored."""
    return Counter((line["event"], line["trial"], line.get("attack")) for line in events(root))


@pytest.fixture(scope="module")
def killed(tmp_path_factory):
    root = tmp_path_factory.mktemp("killed")
    command = [sys.executable, "-m", "tests.killed_runs", str(root)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return root


@pytest.mark.parametrize("phase", PHASES)
def test_a_run_killed_at_any_moment_ends_in_the_same_bytes(killed, phase):
    reached = []
    for number in range(KILLS):
        root = killed / f"{phase}-{number}"
        kill = json.loads((root / "kill.json").read_text())
        assert (kill["killed"], kill["resumed"]) == (signal.SIGKILL, 0)
        reached.append(phase_of(set(kill["left"])))
        for name in ("results.csv", "scores.csv", "history.csv"):
            assert (root / name).read_bytes() == (killed / "whole" / name).read_bytes()
        # What was finished is done once; its line of the log is all that a kill can take away.
        assert set(done_of(root).values()) == {1}
        assert done_of(root) <= done_of(killed / "whole")
        assert sum((done_of(killed / "whole") - done_of(root)).values()) <= 1
    assert done_of(killed / "whole").total() == 2 + 2 * 2 + 2 * 2
    assert reached.count(phase) >= KILLS - 2  # the last moments of a phase leave all its files


def phase_of(left):
    """In which phase a run was killed, by the files it left."""
    if len([path for path in left if path.startswith("training/") and "/." not in path]) < 2:
        return "training"
    made = [p for p in left if p.startswith("reconstructions/") and p.endswith(".safetensors")]
    if len([path for path in made if "/." not in path]) < 4:
        return "attacking"
    scored = [p for p in left if p.startswith("scores/") and p.endswith(".parquet")]
    return "scoring" if len(scored) < 4 else "writing"


def session_of(leader):
    """The processes of a session that are alive."""
    alive = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[3]) == leader and fields[0] != "Z":
            alive.append(int(path.parent.name))
    return alive


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc")
def test_workers_end_with_the_process_they_work_for(killed, tmp_path):
    arguments = [*SMALL, "--workers", "2", "--rounds", "100000", "--out", str(tmp_path)]
    command = [sys.executable, "run_simulation.py", *arguments]
    with subprocess.Popen(command, cwd=ROOT, start_new_session=True) as process:
        try:
            wait_for(lambda: list(tmp_path.glob("observations/*/*")), 150)  # workers are at work
            assert len(session_of(process.pid)) >= 3
            process.kill()
            process.wait()
            wait_for(lambda: not session_of(process.pid), 20)
        finally:
            for left in session_of(process.pid):
                os.kill(left, signal.SIGKILL)


def wait_for(condition, seconds):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)
