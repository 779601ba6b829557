"""The table of presets, as they are coded."""

from collections.abc import Iterator

from attacker.presets import preset_entries
from docs.render.sections import Section


def sections() -> Iterator[Section]:
    """Yield the table of presets."""
    yield Section("docs/attacks.md", "presets", presets_table())


def presets_table() -> str:
    """Return what every attack does, and every value it uses, as Markdown."""
    lines = ["| attack | what it does | every value it uses |", "|---|---|---|"]
    for entry in preset_entries():
        members = (f"`{member}`" for member in entry.get("members", ()))
        values = (f"{key}={value}" for key, value in entry["values"].items())
        uses = ", ".join(members) or f"`{' '.join(values)}`"
        lines.append(f"| `{entry['name']}` | {entry['summary']} | {uses} |")
    return "\n".join(lines)
