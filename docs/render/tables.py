"""Tables of measurements: CSV files below ``docs/results`` into the pages that discuss them."""

import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
from tabulate import tabulate

from docs.render.sections import Section

RESULTS = Path(__file__).parents[1] / "results"
MADE_BY = ("commit", "code", "command")
"""Columns that say where a row comes from."""

CODE = ("quantizer", "attack", "spec")
"""Columns whose text is shown as code."""


def sections() -> Iterator[Section]:
    """Yield the tables of ``docs/results/index.toml`` that a page shows."""
    for facts in index():
        if "page" in facts:
            yield Section(facts["page"], facts["name"], table(facts))


def index() -> list[dict[str, Any]]:
    """Return what ``index.toml`` says of each table.

    ``name``, ``csv`` (path below ``docs/results``), the ``command`` that made it, its ``commit``
    unless the file has a column for it, ``where`` (which rows, as values of columns), and for
    tables that a page shows ``page`` and ``columns``.
    """
    found: list[dict[str, Any]] = tomllib.loads((RESULTS / "index.toml").read_text())["table"]
    return found


def table(facts: dict[str, Any]) -> str:
    """Return a table and where it comes from, as Markdown."""
    frame = read(RESULTS / facts["csv"])
    chosen = facts.get("where", {})
    frame = rows(frame, chosen)
    commits, made_by = commits_of(facts), _command(facts, frame)
    frame = frame.drop(columns=list(MADE_BY), errors="ignore")
    frame = _merge_intervals(frame)
    shown = frame[facts.get("columns", [name for name in frame if name not in chosen])]
    cells = [[_cell(name, value) for name, value in row.items()] for _, row in shown.iterrows()]
    lines = tabulate(cells, headers=list(shown), tablefmt="pipe", disable_numparse=True)
    up = "../" * (facts["page"].count("/") - 1)
    source = f"[{Path(facts['csv']).name}]({up}results/{facts['csv']})"
    other = "" if commits == reference() else f" (the README's table: {', '.join(reference())})"
    return f"{lines}\n\n*{source}: `{made_by}` at commit {', '.join(commits)}{other}.*"


def commits_of(facts: dict[str, Any]) -> list[str]:
    """Return the commits that made a table; they are those of its rows, or its own."""
    if "commit" in facts:
        return [facts["commit"]]
    frame = read(RESULTS / facts["csv"])
    frame = rows(frame, facts.get("where", {}))
    return sorted({one for named in frame["commit"] for one in named.split(", ")})


def rows(frame: pd.DataFrame, where: dict[str, Any]) -> pd.DataFrame:
    """Return the rows that have one of the wanted values in each of some columns."""
    for column, wanted in where.items():
        frame = frame[frame[column].isin(wanted if isinstance(wanted, list) else [wanted])]
    return frame


def reference() -> list[str]:
    """Return the commits of the README's table, with which those of all others are compared."""
    return next(commits_of(facts) for facts in index() if facts["name"] == "default")


def of_other_commits() -> list[str]:
    """Return the names of tables on pages that another commit made than the README's table."""
    shown = [facts for facts in index() if "page" in facts]
    return [facts["name"] for facts in shown if commits_of(facts) != reference()]


def _command(facts: dict[str, Any], frame: pd.DataFrame) -> str:
    """Return the command that the rows name; else that of the index."""
    named = set(frame["command"]) if "command" in frame else {facts["command"]}
    return "; ".join(sorted(named))


def read(path: Path) -> pd.DataFrame:
    """Read a CSV file as text, cell by cell."""
    return pd.read_csv(path, dtype=str, keep_default_na=False)


def _merge_intervals(frame: pd.DataFrame) -> pd.DataFrame:
    """Put ``x_low`` and ``x_high`` behind ``x``: ``0.18 [0.12, 0.25]``."""
    merged = frame.copy()
    for name in [str(column) for column in frame if f"{column}_low" in frame]:
        bounds = " [" + frame[f"{name}_low"] + ", " + frame[f"{name}_high"] + "]"
        merged[name] += bounds.where(frame[f"{name}_low"] != "", "")
        merged = merged.drop(columns=[f"{name}_low", f"{name}_high"])
    return merged


def _cell(column: str, value: str) -> str:
    if column in CODE and re.match(r"\w", value):
        return f"`{value}`"
    return f"{int(value):,}" if re.fullmatch(r"\d{4,}", value) else value
