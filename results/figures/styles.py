"""How families and verdicts look in figures and on pages: in colour, in grey, to everyone."""

from typing import Any, NamedTuple

import pandas as pd

_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#332288")
"""Of Okabe and Ito, safe for colour-blind readers, and an indigo; yellow is too pale on paper."""

_MARKERS = {
    "o": "circle",
    "s": "square",
    "^": "triangle-up",
    "D": "diamond",
    "v": "triangle-down",
    "P": "cross",
    "X": "x",
    "p": "pentagon",
}
"""Markers of Matplotlib, and what Plotly calls them."""

_DASHES: dict[Any, str] = {
    "-": "solid",
    (0, (4, 1.5)): "dash",
    (0, (1, 1)): "dot",
    (0, (5, 1.5, 1, 1.5)): "dashdot",
    (0, (8, 2)): "longdash",
}

FILLS = {
    "leaks": "full",
    "partly leaks": "left",
    "bounded": "bottom",
    "nothing found": "none",
    "not established": "none",
}
"""How much of a marker is filled, by verdict; what is not established has a star as well."""

VERDICT_COLOURS = {
    "leaks": "#D55E00",
    "partly leaks": "#E69F00",
    "bounded": "#009E73",
    "nothing found": "#0072B2",
    "not established": "#666666",
}
"""Colours of verdicts, in the gallery."""


class Style(NamedTuple):
    """How one family looks; ``symbol`` and ``dash`` are Plotly's words for the same."""

    colour: str
    marker: str
    symbol: str
    dashes: Any
    dash: str


ALONE = Style("#333333", "o", "circle", "-", "solid")
"""Of a quantizer without a family."""


def family_styles(points: pd.DataFrame) -> dict[str, Style]:
    """Return the style of each family, in order of appearance; others look like `ALONE`.

    Parameters
    ----------
    points : DataFrame
        Of `results.scores.families.with_families`.
    """
    families = dict.fromkeys(points.loc[points["value"].notna(), "family"])
    return {str(name): nth_style(number) for number, name in enumerate(families)}


def nth_style(number: int) -> Style:
    """Return the style of the line with this number."""
    marker, symbol = _nth(_MARKERS, number)
    dashes, dash = _nth(_DASHES, number)
    return Style(_COLOURS[number % len(_COLOURS)], marker, symbol, dashes, dash)


def _nth(names: dict[Any, str], number: int) -> tuple[Any, str]:
    return list(names.items())[number % len(names)]
