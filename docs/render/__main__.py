"""Write every generated part of the documents: ``python -m docs.render [--check]``."""

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

from docs.render import api, attacks, commands, quantizers, results, settings, tables, tree
from docs.render.sections import Section, replace_section

ROOT = Path(__file__).parents[2]
RENDERERS = (
    api.sections,
    attacks.sections,
    commands.sections,
    quantizers.sections,
    results.sections,
    settings.sections,
    tables.sections,
    tree.sections,
)


def sections() -> Iterator[Section]:
    """Yield every generated section of every document."""
    for render in RENDERERS:
        yield from render()


def stale(root: Path = ROOT) -> dict[Path, str]:
    """Return the fresh text of each document below ``root`` that differs from its sources."""
    fresh: dict[Path, str] = {}
    for section in sections():
        path = root / section.page
        text = fresh.get(path) or path.read_text(encoding="utf-8")
        fresh[path] = replace_section(text, section.name, section.content)
    return {path: text for path, text in fresh.items() if text != path.read_text(encoding="utf-8")}


def main(arguments: list[str]) -> int:
    """Write the documents, or with ``--check`` name those that differ; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m docs.render", description=__doc__)
    parser.add_argument("--check", action="store_true", help="Write nothing; fail if stale.")
    check = parser.parse_args(arguments).check
    if other := tables.of_other_commits():
        print(f"other commits than the README's table made: {', '.join(other)}", file=sys.stderr)
    found = stale()
    for path, text in found.items():
        if check:
            print(f"{path.relative_to(ROOT)} is stale: run python -m docs.render", file=sys.stderr)
        else:
            path.write_text(text, encoding="utf-8")
            print(path.relative_to(ROOT))
    return int(check and bool(found))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
