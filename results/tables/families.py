"""The families of a run as a table: what each reaches at equal privacy and at equal accuracy."""

from pathlib import Path

import pandas as pd
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from results.scores.equal_points import EQUAL_ACCURACY, EQUAL_PRIVACY
from results.tables.numbers import number, setting_value

NOTE = (
    f"Equal privacy: median MSE of {EQUAL_PRIVACY:g} or more. Equal accuracy: at most "
    f"{100 * EQUAL_ACCURACY:g} points below none. Straight lines between the parameters; 95% "
    "intervals over seeds and victims. A dash: not reached. A star: some points of the family are "
    "not established: such points count as not private."
)
"""How to read the table."""


_MOST_ROWS = 16  # in a terminal


def family_table(families: pd.DataFrame) -> pd.DataFrame:
    """Return the families as text.

    Parameters
    ----------
    families : DataFrame
        Of `results.scores.equal_points.equal_points`; columns before ``family`` are axes of a
        study and come first.
    """

    def column(name: str, pattern: str, scale: float = 1) -> list[str]:
        ends = [scale * families[name + end] for end in ("", "_low", "_high")]
        texts = ([number(value, pattern) for value in values] for values in ends)
        return [
            middle if {middle, low, high} == {"–"} else f"{middle} [{low}, {high}]"
            for middle, low, high in zip(*texts, strict=True)
        ]

    stars = ["" if sure else "*" for sure in families["established"]]
    return pd.DataFrame(
        {
            **{name: families[name].map(setting_value) for name in _axes(families)},
            "family": families["family"].astype("str") + stars,
            "test % at equal privacy": column("accuracy_at_equal_privacy", "{:.1f}", 100),
            "MSE at equal accuracy": column("mse_at_equal_accuracy", "{:.1e}"),
            "bytes at equal both": column("bytes_at_equal_both", "{:,.0f}"),
        }
    )


def print_families(path: Path, console: Console) -> None:
    """Print the families of a ``families.csv``, if they are few enough to compare at a glance."""
    families = pd.read_csv(path)
    if 2 <= len(families) <= _MOST_ROWS:
        console.print(terminal_families(families))


def terminal_families(families: pd.DataFrame) -> Table:
    """Return `family_table` for a terminal, with `NOTE` below it."""
    table = Table(
        caption=NOTE,
        caption_justify="left",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        pad_edge=False,
    )
    shown = family_table(families)
    for heading in shown.columns:
        table.add_column(heading, overflow="fold")
    for row in shown.itertuples(index=False):
        table.add_row(*map(Text, row))
    return table


def _axes(families: pd.DataFrame) -> list[str]:
    return list(families.columns[: families.columns.get_loc("family")])
