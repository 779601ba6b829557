"""The API reference: what each package exports."""

from collections.abc import Iterator
from importlib import import_module

from docs.render.sections import Section
from docs.render.tree import FLOORS


def sections() -> Iterator[Section]:
    """Yield directives of mkdocstrings for the names that packages export."""
    for floor in FLOORS:
        yield Section(f"docs/reference/api/{floor}.md", "exports", _directives(floor))
    yield Section("docs/reference/api/fl_sim.md", "checks", _directives("fl_sim.testing"))


def _directives(package: str) -> str:
    names = sorted(import_module(package).__all__, key=str.lower)
    return "\n\n".join(f"::: {package}.{name}" for name in names)
