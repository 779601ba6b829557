import math
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from fl_sim.engines.interrupts import WorkerLostError
from fl_sim.engines.tasks import run_tasks
from fl_sim.study.settings import EngineSettings

TASKS = [4, 9, 16]


def process_of(task):
    return os.getpid()


@pytest.mark.parametrize(
    "engine",
    [
        EngineSettings(workers=1),
        EngineSettings(workers=2),
        pytest.param(EngineSettings(engine="ray"), marks=pytest.mark.slow),
    ],
    ids=["one process", "two processes", "ray"],
)
def test_each_task_comes_back_once_with_its_result(engine):
    done = sorted(run_tasks(math.isqrt, TASKS, engine))
    assert done == [(4, 2), (9, 3), (16, 4)]


def test_tasks_on_a_gpu_share_one_process():
    done = list(run_tasks(process_of, TASKS, EngineSettings(workers=2), "cuda"))
    assert {pid for _, pid in done} == {os.getpid()}


def test_no_tasks_start_nothing():
    assert list(run_tasks(math.isqrt, [], EngineSettings(engine="ray"))) == []


@pytest.mark.parametrize("workers", [1, 2])
def test_what_a_task_raises_reaches_the_caller(workers):
    with pytest.raises(ValueError, match="nonnegative"):
        list(run_tasks(math.isqrt, [4, -1, 9], EngineSettings(workers=workers)))


def killed_once(marker):
    if not marker.exists():
        marker.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return marker.name


def always_killed(marker):
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_killed_worker_is_said_and_its_tasks_are_done_by_another(tmp_path, caplog):
    markers = [tmp_path / name for name in "abc"]
    for marker in markers[1:]:
        marker.touch()
    done = list(run_tasks(killed_once, markers, EngineSettings(workers=2)))
    assert sorted(done) == [(marker, marker.name) for marker in markers]
    assert "a worker process was killed, perhaps because memory ran out" in caplog.text


@pytest.mark.parametrize(
    "engine",
    [
        EngineSettings(workers=2),
        pytest.param(EngineSettings(engine="ray"), marks=pytest.mark.slow),
    ],
    ids=["two processes", "ray"],
)
def test_a_task_that_kills_every_worker_ends_in_one_line(tmp_path, engine):
    with pytest.raises(WorkerLostError, match="killed, perhaps because memory ran out"):
        list(run_tasks(always_killed, [tmp_path] * 2, engine))


INTERRUPTED = """
import os, signal
from fl_sim.engines.fork_server import fork_server

signal.signal(signal.SIGINT, lambda *_: None)
context = fork_server(["server.study"])
os.killpg(0, signal.SIGINT)
worker = context.Process(target=abs, args=(0,))
worker.start()
worker.join()
raise SystemExit(worker.exitcode)
"""


def test_an_interrupt_at_the_keyboard_does_not_end_the_fork_server():
    done = subprocess.run(
        [sys.executable, "-c", INTERRUPTED],
        cwd=Path(__file__).parents[3],
        capture_output=True,
        start_new_session=True,
        timeout=200,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, b"")
