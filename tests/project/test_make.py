"""What `make` installs: a study needs no test tools, and versions are those of constraints.txt."""

import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
PIN = re.compile(r"([A-Za-z0-9._-]+)==([0-9][A-Za-z0-9.]*)")


@pytest.fixture
def recipe(tmp_path):
    """Return what `make TARGET` would do in a clean clone."""
    for name in ("Makefile", "pyproject.toml", "requirements.txt", "constraints.txt"):
        shutil.copy(ROOT / name, tmp_path)

    def of(target):
        command = ["make", "--dry-run", target]
        return subprocess.run(
            command, cwd=tmp_path, check=True, capture_output=True, text=True
        ).stdout

    return of


def test_running_a_study_installs_no_development_tools(recipe):
    assert "requirements.txt" in recipe("run")
    assert "dev" not in recipe("run")


@pytest.mark.parametrize("target", ["test", "test-portable", "lint", "format", "docs", "results"])
def test_testing_installs_the_runtime_and_the_development_tools(recipe, target):
    assert "--requirement requirements.txt" in recipe(target)
    assert '--editable ".[dev]"' in recipe(target)


def test_everything_is_installed_at_an_exact_version(recipe):
    installs = [line for line in recipe("test").splitlines() if "pip install" in line]
    assert installs
    assert [line for line in installs if "--constraint constraints.txt" not in line] == []


def pinned():
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = [PIN.fullmatch(line) for line in lines if not line.startswith("#")]
    assert None not in pins
    return {canonicalize_name(pin[1]): pin[2] for pin in pins}


def required():
    runtime = (ROOT / "requirements.txt").read_text().splitlines()
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    extras = project["project"]["optional-dependencies"]
    own = f"{project['project']['name']}["
    development = [one for one in extras["dev"] if not one.startswith(own)]
    assert len(extras["dev"]) == len(development) + 1
    build = project["build-system"]["requires"]
    lines = [*runtime, *development, *extras["docs"], *build]
    return [Requirement(line) for line in lines if not line.startswith("#")]


def test_the_constraints_allow_what_is_required():
    pins = pinned()
    wrong = [str(one) for one in required() if pins.get(canonicalize_name(one.name)) is None]
    assert wrong == []
    wrong = [
        str(one) for one in required() if pins[canonicalize_name(one.name)] not in one.specifier
    ]
    assert wrong == []


def test_the_constraints_name_nothing_of_one_processor_alone():
    assert [name for name in pinned() if re.match("nvidia-|cuda-|triton", name)] == []
