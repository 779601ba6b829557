"""What `pip install` of the project gives works anywhere, without the checkout."""

import ast
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
QUICKSTART = ROOT / "examples" / "quickstart"
FLOORS = ("attacker", "clients", "fl_sim", "results", "server")
SOURCES = (*FLOORS, "studies")
FILES = (
    "LICENSE",
    "README.md",
    "pyproject.toml",
    "requirements.txt",
    "run_simulation.py",
    "setup.py",
)

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("installed")]


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """Install the sources, without their dependencies, into a fresh folder."""
    root = tmp_path_factory.mktemp("installed")
    source, target = root / "source", root / "target"
    source.mkdir()
    for name in SOURCES:
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in FILES:
        shutil.copy(ROOT / name, source)
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index"]
    command += ["--no-build-isolation", "--target", str(target), str(source)]
    subprocess.run(command, check=True)
    shutil.rmtree(source)
    return target


def python(installed, *command, cwd):
    """Run Python with what was installed, and return what it printed."""
    environment = os.environ | {"PYTHONPATH": str(installed), "COLUMNS": "200"}
    process = [sys.executable, *map(str, command)]
    run = subprocess.run(
        process, cwd=cwd, env=environment, check=True, stdout=subprocess.PIPE, text=True
    )
    return run.stdout


@pytest.mark.parametrize("study", [[], ["--study", "accuracy"]], ids=["default", "by name"])
def test_an_installed_project_runs_its_studies_from_any_folder(installed, study, tmp_path):
    command = ["-m", "run_simulation", *study, "--smoke", "--quantizers", "none"]
    command += ["--dataset", "digits", "--out", "made", "--workers", "1", "--quiet"]
    python(installed, *command, cwd=tmp_path)
    assert (tmp_path / "made" / "report.html").stat().st_size > 10_000


def test_every_package_and_study_is_installed(installed):
    here = {p.parent.relative_to(ROOT) for name in SOURCES for p in (ROOT / name).rglob("*.py")}
    there = {p.parent.relative_to(installed) for p in installed.rglob("*.py")}
    assert here <= there
    studies = {path.name for path in (ROOT / "studies").rglob("*.toml")}
    assert {path.name for path in (installed / "fl_sim" / "studies").rglob("*.toml")} == studies


def test_the_copy_has_every_file_and_imports_nothing_by_the_names_of_the_floors(installed):
    copy = installed / "fl_quantization_privacy"
    originals = [path for floor in FLOORS for path in (installed / floor).rglob("*")]
    files = {p.relative_to(installed) for p in originals if p.is_file() and p.suffix != ".pyc"}
    assert {Path("server/__init__.pyi"), Path("results/page/templates/report.css")} <= files
    assert {name for name in files if not (copy / name).is_file()} == set()
    named = {
        (path.name, name)
        for path in copy.rglob("*.py")
        for name in absolute_imports(path.read_text())
    }
    assert {(path, name) for path, name in named if name.partition(".")[0] in FLOORS} == set()


def absolute_imports(source):
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield node.module


@pytest.fixture
def app(tmp_path):
    """The quick-start in modules whose names hide three of our floors."""
    names = {
        "server.py": "quickstart/server_app.py",
        "clients/__init__.py": "quickstart/client_app.py",
        "results/__init__.py": "audit.py",
        "task.py": "quickstart/task.py",
    }
    ours = re.compile(r"^from (fl_sim|clients|results|server) import", re.MULTILINE)
    for name, source in names.items():
        text = (QUICKSTART / source).read_text().replace("quickstart.task", "task")
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(ours.sub(r"from fl_quantization_privacy.\1 import", text))
    return tmp_path


AUDIT = """
import json, sys
from pathlib import Path
from flwr.app import Context, RecordDict
from clients import app as client_app
from results import main
from server import app as server_app
from fl_quantization_privacy.fl_sim.engines.grids import LocalGrid

config = {"out": "runs", "num-server-rounds": 1, "learning-rate": 0.1}
config |= {"local-epochs": 1, "batch-size": 4}
server_app(LocalGrid(client_app, 2, config), Context(1, 1, {}, RecordDict(), config))
main(Path("runs"))
files = {name: getattr(module, "__file__", None) for name, module in sys.modules.items()}
print(json.dumps(files))
"""


def test_an_app_with_modules_of_the_same_names_is_audited_through_the_copy(installed, app):
    (app / "run.py").write_text(AUDIT)
    *lines, modules = python(installed, "run.py", cwd=app).splitlines()
    head = next(n for n, line in enumerate(lines) if line.split()[:1] == ["round"])
    victims = [line.split() for line in lines[head + 2 : head + 4]]
    assert [cells[:3] for cells in victims] == [["1", client, "cell"] for client in "01"]
    assert all(float(cells[3]) > 20 for cells in victims)  # dB; grey is at about 9
    assert [cells[4:] for cells in victims] == [["100%", "converged", "passed"]] * 2
    (summary,) = [line for line in lines if line.split()[:1] == ["stochastic:bits=4"]]
    assert summary.split()[-1].startswith("leaks")
    files = {name: Path(file) for name, file in json.loads(modules).items() if file}
    of_floors = {name: files[name].parent for name in files if name.partition(".")[0] in FLOORS}
    assert of_floors == {"server": app, "clients": app / "clients", "results": app / "results"}
    copied = [path for name, path in files.items() if name.startswith("fl_quantization_privacy")]
    assert len(copied) > 50
    assert all(path.is_relative_to(installed) for path in copied)
    floors = [ROOT / floor for floor in FLOORS]
    assert not [p for p in files.values() if any(p.is_relative_to(floor) for floor in floors)]


STUDY = """
from pathlib import Path
from fl_quantization_privacy.fl_sim.study.study import load_study
from fl_quantization_privacy.results.run_report import summarise
from fl_quantization_privacy.server import study as server

if __name__ == "__main__":
    overrides = {"rounds": "1", "quantizers": "none,sign", "workers": "2", "clients": "2"}
    study = load_study(None, overrides | {"model": "mlp", "attacks": "analytic"})
    root = Path("made")
    (folder,) = study.create(root)
    server.train(study, root)
    server.attack(study, root)
    assert not server.unfinished_trainings(study.points[0].settings, folder)
    table = summarise(root).set_index("quantizer")
    print(table.loc["none", "mse_median"])
"""


def test_a_study_runs_over_processes_through_the_copy(installed, app):
    (app / "study.py").write_text(STUDY)
    error = float(python(installed, "study.py", cwd=app).split()[-1])
    assert error < 1e-3
    assert (app / "made" / "report.html").stat().st_size > 10_000
