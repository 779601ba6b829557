"""The same apps in this process, under ``flwr run .`` and on a SuperLink: the same bytes.

Where the system allows it everything runs in a network namespace with loopback only.
"""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.examples.apps import ExampleApp
from tests.offline import PREFIX, can_isolate

ROOT = Path(__file__).parents[2]
QUICKSTART = ROOT / "examples" / "quickstart"
MALICIOUS = ROOT / "examples" / "malicious"
DEPLOY = ROOT / "examples" / "deployment" / "deploy.sh"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.xdist_group("real-engines"),
]

# A planted study: what a malicious server sends must not depend on the engine either.
STUDY = 'server="imprint:bins=16" quantizers="stochastic:bits=4" clients="2" '
STUDY += 'num-server-rounds="{}" batch-size="2"'
IN_PROCESS = ["--quantizers", "stochastic:bits=4", "--clients", "2", "--rounds", "2"]
IN_PROCESS += ["--server", "imprint:bins=16", "--batch-size", "2", "--attacks", "analytic"]


@pytest.fixture(scope="module")
def shell(tmp_path_factory):
    """Run a command offline with a Flower home of its own; end what it leaves running."""
    home = tmp_path_factory.mktemp("flwr")
    prefix = PREFIX if can_isolate() else []
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "FLWR_HOME": str(home),
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
        "FLWR_LOCAL_SUPERLINK_HTTP_API_PORT": "39491",
        "FLWR_LOCAL_CONTROL_API_PORT": "39493",
    }

    def call(*command, cwd=ROOT):
        done = subprocess.run(
            [*prefix, *map(str, command)],
            cwd=cwd,
            env=environment,
            capture_output=True,
            text=True,
            timeout=600,
            check=False,
        )
        assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
        end_processes_of(home)  # the SuperLink that `flwr run` leaves behind
        return done.stdout

    yield call
    end_processes_of(home)


def end_processes_of(home):
    """End every process of ours whose Flower home this is."""
    mark = f"FLWR_HOME={home}\0".encode()
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if mark in (entry / "environ").read_bytes():
                os.kill(int(entry.name), signal.SIGTERM)
        except OSError:
            continue


def contents(folder, pattern):
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob(pattern))}


@pytest.fixture(scope="module")
def in_process(tmp_path_factory, shell):
    """The study and the examples in one process each: what others are compared with."""
    folder = tmp_path_factory.mktemp("in-process")
    shell(sys.executable, ROOT / "run_simulation.py", *IN_PROCESS, "--out", folder / "study")
    for app in (QUICKSTART, MALICIOUS):
        sys.path.insert(0, str(app))
        try:
            ExampleApp(app.name).run(folder / app.name, 2, **{"num-server-rounds": 2})
        finally:
            sys.path.remove(str(app))
    return folder


def check_quickstart(in_process, out):
    expected = in_process / "quickstart"
    observed = contents(expected / "observations", "*.safetensors")
    assert len(observed) == 2
    assert contents(out / "observations", "*.safetensors") == observed
    weights = [torch.load(f / "final_model.pt", weights_only=True) for f in (expected, out)]
    for name, tensor in weights[0].items():
        assert torch.equal(weights[1][name], tensor)


def test_flwr_run_from_a_clone_gives_the_bytes_of_the_simulation(in_process, shell, tmp_path):
    config = f'{STUDY.format(2)} out="{tmp_path}"'
    output = shell(
        "flwr", "run", ".", "--stream", "--run-config", config,
        "--federation-config", "num-supernodes=2",
    )  # fmt: skip
    assert str(tmp_path) in output
    expected = in_process / "study"
    observed = contents(expected / "observations", "*.safetensors")
    assert len(observed) == 2  # payloads and weights of both rounds
    assert contents(tmp_path / "observations", "*.safetensors") == observed
    assert contents(tmp_path, "history.csv") == contents(expected, "history.csv")


def test_flwr_run_of_the_example_gives_the_same_bytes(in_process, shell, tmp_path):
    config = f'num-server-rounds=2 out="{tmp_path}"'
    shell(
        "flwr", "run", ".", "--stream", "--run-config", config,
        "--federation-config", "num-supernodes=2", cwd=QUICKSTART,
    )  # fmt: skip
    check_quickstart(in_process, tmp_path)


def test_flwr_run_of_the_app_with_a_malicious_server_gives_the_same_bytes(
    in_process, shell, tmp_path
):
    shell(
        "flwr", "run", ".", "--stream", "--run-config", f'num-server-rounds=2 out="{tmp_path}"',
        "--federation-config", "num-supernodes=2", cwd=MALICIOUS,
    )  # fmt: skip
    observed = contents(in_process / "malicious" / "observations", "*.safetensors")
    assert len(observed) == 2
    assert contents(tmp_path / "observations", "*.safetensors") == observed


def test_a_superlink_and_two_supernodes_give_the_same_bytes(in_process, shell, tmp_path):
    config = f'num-server-rounds=2 out="{tmp_path}"'
    shell(DEPLOY, QUICKSTART, "--run-config", config)
    check_quickstart(in_process, tmp_path)


def test_so_they_do_with_tls_and_authenticated_supernodes(in_process, shell, tmp_path):
    shell(DEPLOY, "--tls", ".", "--run-config", f'{STUDY.format(1)} out="{tmp_path}"')
    (path,) = tmp_path.rglob("*.safetensors")
    assert path.read_bytes() == (in_process / "study" / path.relative_to(tmp_path)).read_bytes()


def test_a_secure_sum_has_the_same_bytes_on_every_engine(shell, tmp_path):
    given = {"quantizers": "stochastic:bits=4", "clients": 8, "rounds": 1}
    given |= {"aggregation": "secagg+", "model": "mlp:width=4"}
    options = [word for name, value in given.items() for word in (f"--{name}", value)]
    for engine in ("local", "ray"):
        rest = ("--attacks", "dlg:iterations=1", "--engine", engine, "--out", tmp_path / engine)
        shell(sys.executable, ROOT / "run_simulation.py", *options, *rest)
    given["num-server-rounds"] = given.pop("rounds")
    config = " ".join(f'{name}="{value}"' for name, value in given.items())
    shell(
        "flwr", "run", ".", "--stream", "--run-config", f'{config} out="{tmp_path / "flwr"}"',
        "--federation-config", "num-supernodes=8",
    )  # fmt: skip
    expected = contents(tmp_path / "local" / "observations", "*.safetensors")
    assert len(expected) == 1
    for engine in ("ray", "flwr"):
        assert contents(tmp_path / engine / "observations", "*.safetensors") == expected
