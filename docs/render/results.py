"""The table of the default study as a terminal shows it, and the meaning of the verdicts."""

import io
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
from rich.console import Console

from docs.render.sections import Section
from results.tables.terminal import print_results
from results.tables.verdicts import STAR, VERDICTS

DEFAULT_STUDY = Path(__file__).parents[1] / "results" / "default.csv"
WIDTH = 80


def sections() -> Iterator[Section]:
    """Yield the default study's table and the list of verdicts."""
    yield Section("README.md", "default study", default_table())
    for page in ("README.md", "docs/explanation/threat-model.md"):
        yield Section(page, "verdicts", verdicts_list())


def default_table() -> str:
    """Return what ``make run`` prints, of the kept ``results.csv``."""
    words = {"doubt": "str", "control": "str"}
    results = pd.read_csv(DEFAULT_STUDY, dtype=words).fillna(dict.fromkeys(words, ""))
    shown = io.StringIO()
    print_results(results, Console(file=shown, width=WIDTH))
    lines = [line.rstrip() for line in shown.getvalue().splitlines()]
    return "\n".join(["```text", *(lines if lines[0] else lines[1:]), "```"])


def verdicts_list() -> str:
    """Return the verdicts and the star with their meanings, as Markdown."""
    meanings = {f"`{word}`": text for word, text in VERDICTS.items()} | {"A star": STAR}
    return "\n".join(f"- {word}: {text}." for word, text in meanings.items())
