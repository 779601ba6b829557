"""Write what the verdicts mean into the README: ``python -m docs.render.results``."""

from pathlib import Path

from docs.render.settings import replace_section
from fl_sim.storage.files import write_text
from results.tables import STAR, VERDICTS


def verdicts_list() -> str:
    """Return the verdicts and the star with their meanings, in Markdown."""
    meanings = {f"`{word}`": text for word, text in VERDICTS.items()} | {"A star": STAR}
    return "\n".join(f"- {word}: {text}." for word, text in meanings.items())


def main() -> None:
    """Write the list of verdicts into the README."""
    readme = Path("README.md")
    write_text(readme, replace_section(readme.read_text(), "verdicts", verdicts_list()))


if __name__ == "__main__":
    main()
