"""What apps and notebooks import: the names in each floor's stub, loaded when first used."""

import ast
import doctest
import inspect
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

from fl_sim import testing

ROOT = Path(__file__).parents[2]
FLOORS = ("attacker", "clients", "fl_sim", "results", "server")


def stub(floor):
    nodes = ast.parse((ROOT / floor / "__init__.pyi").read_text()).body
    return [alias.asname for node in nodes for alias in node.names]


NAMES = [f"{floor}.{name}" for floor in FLOORS for name in stub(floor)]
NAMES += [f"fl_sim.testing.{name}" for name in testing.__all__ if name != "ContractError"]


def load(name):
    floor, _, attribute = name.rpartition(".")
    return getattr(import_module(floor), attribute)


@pytest.mark.parametrize("floor", FLOORS)
def test_a_floor_exports_what_its_stub_says(floor):
    assert sorted(import_module(floor).__all__) == sorted(stub(floor))


@pytest.mark.parametrize("name", NAMES)
def test_what_is_exported_is_documented_with_an_example_that_runs(name):
    text = inspect.getdoc(load(name))
    assert "Examples\n--------\n" in text
    example = doctest.DocTestParser().get_doctest(text, {}, name, None, None)
    module, _, attribute = name.rpartition(".")
    assert f"from {module} import {attribute}\n" in [one.source for one in example.examples]
    assert doctest.DocTestRunner().run(example).failed == 0


@pytest.mark.parametrize("floor", FLOORS)
def test_a_floor_is_light_to_import(floor):
    code = f"import sys, {floor}; print({{'torch', 'flwr', 'pandas'}} & sys.modules.keys())"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True, text=True
    )
    assert done.stdout.strip() == "set()"


OLD_PATHS = {
    "clients.mods.Quantize": "clients.Quantize",
    "server.curious.HonestButCurious": "server.HonestButCurious",
    "server.app_audit.audit": "server.audit",
    "server.sampling.SampleBySeed": "server.SampleBySeed",
    "results.app_report.print_audit": "results.print_audit",
    "fl_sim.updates.LocalWork": "fl_sim.LocalWork",
}


@pytest.mark.parametrize("old", OLD_PATHS)
def test_where_apps_of_the_first_release_import_from_still_works(old):
    assert load(old) is load(OLD_PATHS[old])
