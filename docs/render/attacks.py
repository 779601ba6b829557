"""Write the presets into docs/attacks.md as they are coded: ``python -m docs.render.attacks``."""

import sys
from collections.abc import Iterator
from pathlib import Path

from attacker.presets import catalogue
from docs.render.settings import replace_section

DOCUMENT = Path(__file__).parent.parent / "attacks.md"


def presets_table() -> str:
    """Return what every attack does, and every value it uses, as Markdown."""
    lines = ["| attack | what it does | every value it uses |", "|---|---|---|"]
    for entry in catalogue():
        members = (f"`{member}`" for member in entry.get("members", ()))
        values = (f"{key}={value}" for key, value in entry["values"].items())
        uses = ", ".join(members) or f"`{' '.join(values)}`"
        lines.append(f"| `{entry['name']}` | {entry['summary']} | {uses} |")
    return "\n".join(lines)


def main(arguments: list[str]) -> Iterator[str]:
    """Update the document, or with ``--check`` only tell whether it is stale."""
    text = DOCUMENT.read_text(encoding="utf-8")
    fresh = replace_section(text, "presets", presets_table())
    if fresh == text:
        return
    if "--check" in arguments:
        yield f"{DOCUMENT.name} is stale: run python -m docs.render.attacks"
    else:
        DOCUMENT.write_text(fresh, encoding="utf-8")


if __name__ == "__main__":
    sys.exit("\n".join(main(sys.argv[1:])) or 0)
