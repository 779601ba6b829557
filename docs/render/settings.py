"""The table of settings."""

from collections.abc import Iterator

from docs.render.sections import Section
from fl_sim.study.settings import Settings, option_fields


def sections() -> Iterator[Section]:
    """Yield the table of settings."""
    yield Section("docs/reference/settings.md", "settings", settings_table())


def settings_table() -> str:
    """Return every setting with its default and meaning, as Markdown."""
    defaults = Settings()
    rows = ["| setting | default | meaning |", "|---|---|---|"]
    for name, (section, field) in option_fields().items():
        value = getattr(defaults if section is None else getattr(defaults, section), name)
        shown = ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
        place = f"{section}.{name}" if section else name
        default = f"`{shown}`" if shown and value is not None else "–"
        rows.append(f"| `{place}` | {default} | {field.description} |")
    return "\n".join(rows)
