"""Write what documents say of the code from the code: ``python -m docs.render.settings``."""

import re
from pathlib import Path

from fl_sim.storage.files import write_text
from fl_sim.study.settings import Settings, option_fields


def settings_table() -> str:
    """Return the rows of the table of settings, in Markdown."""
    defaults = Settings()
    rows = []
    for name, (section, field) in option_fields().items():
        value = getattr(defaults if section is None else getattr(defaults, section), name)
        shown = ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
        place = f"{section}.{name}" if section else name
        rows.append(f"| `{place}` | `{shown}` | {field.description} |")
    return "\n".join(rows)


def replace_section(text: str, name: str, content: str) -> str:
    """Replace what stands between the markers of a section."""
    begin, end = f"<!-- {name}: begin -->\n", f"<!-- {name}: end -->"
    pattern = re.compile(re.escape(begin) + ".*?" + re.escape(end), re.DOTALL)
    if not pattern.search(text):
        raise ValueError(f"The document has no section {name!r}.")
    return pattern.sub(lambda _: f"{begin}{content}\n{end}", text)


def main() -> None:
    """Write the settings table into the README."""
    readme = Path("README.md")
    write_text(readme, replace_section(readme.read_text(), "settings", settings_table()))


if __name__ == "__main__":
    main()
