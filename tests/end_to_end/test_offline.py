"""Nothing leaves the machine: a study runs where there is no network but loopback."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.offline import PREFIX, can_isolate

ROOT = Path(__file__).parents[2]
CONNECT = "import socket; socket.create_connection(('192.0.2.1', 80), timeout=5)"


def isolated(*command):
    environment = {name: value for name, value in os.environ.items() if "TELEMETRY" not in name}
    return subprocess.run(
        [*PREFIX, sys.executable, *map(str, command)],
        env=environment | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.slow
@pytest.mark.skipif(not can_isolate(), reason="needs unshare -rn and ip")
def test_the_default_study_runs_without_a_network(tmp_path):
    assert "unreachable" in isolated("-c", CONNECT).stderr
    done = isolated(ROOT / "run_simulation.py", "--smoke", "--workers", "1", "--out", tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    assert (tmp_path / "results.csv").exists()
    assert (tmp_path / "report.html").exists()


@pytest.mark.parametrize(
    "module", ["clients.app", "server.strategies.curious", "fl_sim.engines.grids"]
)
def test_telemetry_is_off_before_flower_and_ray_are_imported(module):
    names = ("FLWR_TELEMETRY_ENABLED", "FLWR_DISABLE_UPDATE_CHECK", "RAY_USAGE_STATS_ENABLED")
    script = (
        "import sys\n"
        "class Watch:\n"
        "    def find_spec(self, name, *_):\n"
        "        if name in ('flwr', 'ray'):\n"
        f"            import os; print([os.environ.get(n) for n in {names}])\n"
        "sys.meta_path.insert(0, Watch())\n"
        f"import {module}\n"
    )
    environment = {k: v for k, v in os.environ.items() if k not in names}
    done = subprocess.run(
        [sys.executable, "-c", script],
        env=environment | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert set(done.stdout.splitlines()) == {"['0', '1', '0']"}
