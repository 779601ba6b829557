"""A room imports only from floors below it; this walks every import and says which one climbs."""

import ast
import re
from importlib import import_module
from pathlib import Path

import pytest

from fl_sim import floors

ROOT = Path(__file__).parents[2]
ALLOWED = {
    "fl_sim": {"fl_sim"},
    "clients": {"clients", "fl_sim"},
    "attacker": {"attacker", "fl_sim"},
    "server": {"server", "clients", "attacker", "fl_sim"},
    "results": {"results", "fl_sim"},
}


def climbing_imports(floor: str, source: str) -> list[str]:
    """Return the floors that a module of ``floor`` must not import, but does."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names = [node.module or ""]
        else:
            continue
        roots = {name.split(".")[0] for name in names}
        found += [root for root in roots if root in ALLOWED and root not in ALLOWED[floor]]
        found += [root for root in roots if root in {"run_simulation", "tests", "benchmarks"}]
    return found


@pytest.mark.parametrize("floor", ALLOWED)
def test_no_module_imports_from_a_floor_above(floor):
    modules = sorted((ROOT / floor).rglob("*.py"))
    assert modules, f"floor {floor} is missing"
    climbing = {str(m.relative_to(ROOT)): climbing_imports(floor, m.read_text()) for m in modules}
    assert {name: roots for name, roots in climbing.items() if roots} == {}


def test_a_climbing_import_is_found():
    assert climbing_imports("attacker", "def f():\n    from results.scores.scoring import mse") == [
        "results"
    ]
    assert climbing_imports("fl_sim", "import server.app") == ["server"]
    assert climbing_imports("server", "import attacker.presets, torch") == []


def named_floors(source: str) -> list[str]:
    """Return the strings of a module that name a module of an upper floor."""
    strings = [n.value for n in ast.walk(ast.parse(source)) if isinstance(n, ast.Constant)]
    upper = r"(clients|attacker|server|results)(\.[a-z_]+)+"
    return [text for text in strings if isinstance(text, str) and re.fullmatch(upper, text)]


def test_one_module_of_the_ground_floor_names_modules_of_upper_floors_and_they_exist():
    naming = {m.name for m in (ROOT / "fl_sim").rglob("*.py") if named_floors(m.read_text())}
    assert naming == {"floors.py"}
    names = named_floors((ROOT / "fl_sim" / "floors.py").read_text())
    kept = [*floors.TRAINING_CODE, *floors.ATTACK_CODE, *floors.SCORING_CODE]
    assert names == kept
    for name in names:
        assert import_module(name).__name__ == name


def test_a_string_that_names_a_module_of_an_upper_floor_is_found():
    assert named_floors('A = f"{PREFIX}server.study"') == ["server.study"]
    assert named_floors('"""See server.study."""\nlog = getLogger("fl_sim.server")') == []
