"""The map of the tree: every package with the first sentence of its docstring."""

import ast
from collections.abc import Iterator
from pathlib import Path

from docs.render.sections import Section

ROOT = Path(__file__).parents[2]
FLOORS = ("results", "server", "clients", "attacker", "fl_sim")
"""Packages from the top floor to the ground floor."""


def sections() -> Iterator[Section]:
    """Yield the map of the tree."""
    yield Section("README.md", "map", map_of(packages()))


def packages(root: Path = ROOT) -> dict[str, str]:
    """Return each floor and the rooms below it, as path below ``root``, with its summary."""
    found = {}
    for floor in FLOORS:
        for init in sorted((root / floor).rglob("__init__.py")):
            found[init.parent.relative_to(root).as_posix()] = summary(init)
    return found


def summary(module: Path) -> str:
    """Return the first line of a module's docstring.

    Raises
    ------
    ValueError
        If the module has no docstring.
    """
    text = ast.get_docstring(ast.parse(module.read_text(encoding="utf-8")))
    if not text:
        raise ValueError(f"{module} has no docstring.")
    return text.splitlines()[0]


def map_of(summaries: dict[str, str]) -> str:
    """Lay the packages out as an indented list, in a block of text."""
    width = max(len(_line(path)) for path in summaries) + 2
    lines = [f"{_line(path):<{width}}{text}" for path, text in summaries.items()]
    return "\n".join(["```text", *lines, "```"])


def _line(path: str) -> str:
    *floors, name = path.split("/")
    return f"{'    ' * len(floors)}{name}/"
