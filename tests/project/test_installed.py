"""What `pip install` of the project gives works anywhere, without the checkout."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCES = ("attacker", "clients", "fl_sim", "results", "server", "studies")
FILES = (
    "LICENSE",
    "README.md",
    "pyproject.toml",
    "requirements.txt",
    "run_simulation.py",
    "setup.py",
)

pytestmark = pytest.mark.slow


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
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps"]
    command += ["--no-build-isolation", "--target", str(target), str(source)]
    subprocess.run(command, check=True)
    shutil.rmtree(source)
    return target


@pytest.mark.parametrize("study", [[], ["--study", "accuracy"]], ids=["default", "by name"])
def test_an_installed_project_runs_its_studies_from_any_folder(installed, study, tmp_path):
    command = [sys.executable, "-m", "run_simulation", *study, "--smoke", "--quantizers", "none"]
    command += ["--dataset", "digits", "--out", "made", "--workers", "1", "--quiet"]
    environment = os.environ | {"PYTHONPATH": str(installed)}
    subprocess.run(command, cwd=tmp_path, env=environment, check=True)
    assert (tmp_path / "made" / "report.html").stat().st_size > 10_000


def test_every_package_and_study_is_installed(installed):
    here = {p.parent.relative_to(ROOT) for name in SOURCES for p in (ROOT / name).rglob("*.py")}
    there = {p.parent.relative_to(installed) for p in installed.rglob("*.py")}
    assert here <= there
    studies = {path.name for path in (ROOT / "studies").glob("*.toml")}
    assert {path.name for path in (installed / "fl_sim" / "studies").glob("*.toml")} == studies
