"""A study on a Ray cluster of two nodes, one of which dies while it trains."""

import logging
import threading
import time
from pathlib import Path

import pytest

from fl_sim.observed.observations import round_path
from fl_sim.study.runs import RunFolder
from fl_sim.study.study import load_study
from server import study as server

ROOT = Path(__file__).parents[2]
STUDY = {
    "quantizers": "sign,uniform:bits=4",
    "clients": "3",
    "rounds": "12",
    "attacks": "analytic",
    "observe": "1,12",
}


def run(root, **engine):
    study = load_study(None, STUDY | engine)
    study.create(root)
    server.train(study, root)
    server.attack(study, root)


def outcome(root):
    """Everything that clients sent, and what attacks made of it, byte for byte; and the history."""
    files = [*sorted(root.rglob("*.safetensors")), root / "history.csv"]
    return {str(path.relative_to(root)): path.read_bytes() for path in files}


@pytest.fixture
def cluster(monkeypatch):
    """Return a head and a worker of one CPU each."""
    from ray.cluster_utils import Cluster

    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    checks = {"initial_delay": 1000, "period": 500, "timeout": 2000}
    config = {f"health_check_{name}_ms": value for name, value in checks.items()}
    head = {"num_cpus": 1, "_system_config": config | {"health_check_failure_threshold": 4}}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    cluster.add_node(num_cpus=1)
    yield cluster
    cluster.shutdown()


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_study_whose_cluster_loses_a_node_ends_with_the_same_results(tmp_path, cluster, caplog):
    run(tmp_path / "local", engine="local", workers="1")
    root = tmp_path / "ray"
    first = round_path(RunFolder(root).observations, "sign_seed-0", 1)
    (worker,) = cluster.worker_nodes

    def kill_in_mid_study():
        while not first.exists():
            time.sleep(0.05)
        cluster.remove_node(worker, allow_graceful=False)

    killer = threading.Thread(target=kill_in_mid_study, daemon=True)
    killer.start()
    with caplog.at_level(logging.WARNING, "fl_sim"):
        run(root, engine="ray", ray_address=cluster.address)
    killer.join(timeout=1)
    assert "a worker was lost" in caplog.text
    assert outcome(root) == outcome(tmp_path / "local")
