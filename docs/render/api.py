"""The API reference: what each package exports."""

from collections.abc import Iterator
from importlib import import_module

from docs.render.sections import Section
from docs.render.tree import FLOORS


def sections() -> Iterator[Section]:
    """Yield a directive of mkdocstrings for each name that a package exports."""
    for floor in FLOORS:
        names = sorted(import_module(floor).__all__, key=str.lower)
        content = "\n\n".join(f"::: {floor}.{name}" for name in names)
        yield Section(f"docs/reference/api/{floor}.md", "exports", content)
