"""Compare two cards: whether they may be compared, and which figures differ."""

from dataclasses import dataclass
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

AGREES, DIFFERS, NOT_COMPARABLE = 0, 1, 3
"""Exit status of a comparison; 2 is for bad input."""

_LISTED = ("quantizers",)  # more rows in one card leave the others comparable

Value = dict[str, float | None] | str | None


@dataclass(frozen=True)
class Difference:
    """One figure of one row in two cards.

    Attributes
    ----------
    row : str
        Values of the axes, and the quantizer.
    figure : str
        A key of ``figures``, ``verdict``, or ``row`` where only one card has the row.
    one, other : dict, str or None
        Value with interval; the verdict; None where it is missing.
    differs : bool
        Whether the intervals are apart; without intervals, whether the values are not equal.
    """

    row: str
    figure: str
    one: Value
    other: Value
    differs: bool


@dataclass(frozen=True)
class Comparison:
    """What two cards have in common and in what they differ.

    Attributes
    ----------
    settings : dict
        Settings and images that differ, by dotted name: both values. With any, the figures answer
        different questions.
    versions : dict
        Commit and packages that differ: both versions.
    differences : list of Difference
        All figures of all rows, in the order of the first card.
    """

    settings: dict[str, tuple[Any, Any]]
    versions: dict[str, tuple[Any, Any]]
    differences: list[Difference]

    @property
    def status(self) -> int:
        """`NOT_COMPARABLE`, `DIFFERS` or `AGREES`."""
        if self.settings:
            return NOT_COMPARABLE
        return DIFFERS if any(one.differs for one in self.differences) else AGREES


def compare_cards(one: dict[str, Any], other: dict[str, Any]) -> Comparison:
    """Compare two cards of `results.card.read_card`.

    Two figures differ if their 95 % intervals are apart. A figure without an interval differs if it
    is another number.

    Examples
    --------
    >>> from results.card_comparison import compare_cards
    >>> figures = {"mse_median": {"value": 0.02, "low": 0.01, "high": 0.03}}
    >>> row = {"quantizer": "sign", "verdict": "leaks", "figures": figures}
    >>> card = {"settings": {}, "images": [], "commit": "", "versions": {}, "axes": []}
    >>> compare_cards(card | {"rows": [row]}, card | {"rows": [row]}).status
    0
    """
    varied = {*_LISTED, *(set(one["axes"]) & set(other["axes"]))}
    known = [
        _leaves(card["settings"]) | _leaves({"images": card["images"]}) for card in (one, other)
    ]
    settings = {n: v for n, v in _unequal(*known).items() if n.rpartition(".")[2] not in varied}
    made_by = [{"commit": card["commit"], **card["versions"]} for card in (one, other)]
    rows = [{_name(row, card["axes"]): row for row in card["rows"]} for card in (one, other)]
    names = list(dict.fromkeys([*rows[0], *rows[1]]))
    found = [each for name in names for each in _row(name, rows[0].get(name), rows[1].get(name))]
    return Comparison(settings, _unequal(*made_by), found)


def print_comparison(made: Comparison, names: tuple[str, str], console: Console) -> None:
    """Print what differs between two cards, and whether they may be compared at all."""
    if made.settings:
        console.print(_table("not comparable: settings or images differ", made.settings, names))
    if made.versions:
        console.print(_table("made by other versions", made.versions, names))
    apart = [one for one in made.differences if one.differs]
    if apart:
        table = Table(title="figures that differ", box=box.SIMPLE_HEAD, title_justify="left")
        for heading in ("row", "figure", *names):
            table.add_column(heading, overflow="fold")
        for one in apart:
            table.add_row(*map(Text, (one.row, one.figure, _text(one.one), _text(one.other))))
        console.print(table)
    same = len(made.differences) - len(apart)
    console.print(Text(f"{len(apart)} figures differ, {same} agree within their intervals."))


def _row(name: str, one: dict[str, Any] | None, other: dict[str, Any] | None) -> list[Difference]:
    if one is None or other is None:
        there = ["missing" if row is None else str(row["verdict"]) for row in (one, other)]
        return [Difference(name, "row", there[0], there[1], differs=True)]
    verdicts = (_verdict(one), _verdict(other))
    found = [Difference(name, "verdict", *verdicts, differs=verdicts[0] != verdicts[1])]
    for figure in one["figures"]:
        values = one["figures"][figure], other["figures"].get(figure)
        found.append(Difference(name, figure, *values, differs=_apart(*values)))
    return found


def _verdict(row: dict[str, Any]) -> str:
    return str(row["verdict"]) + "*" * (not row.get("established", True))


def _apart(one: dict[str, float | None], other: dict[str, float | None] | None) -> bool:
    if other is None:
        return True
    bounds = one["low"], one["high"], other["low"], other["high"]
    if any(bound is None for bound in bounds):
        return one["value"] != other["value"]
    return one["low"] > other["high"] or other["low"] > one["high"]  # type: ignore[operator]


def _name(row: dict[str, Any], axes: list[str]) -> str:
    return ", ".join([*(f"{name}={row[name]}" for name in axes), row["quantizer"]])


def _leaves(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return the leaves of a tree by dotted name."""
    found: dict[str, Any] = {}
    for name, value in tree.items():
        if isinstance(value, dict) and value:
            found |= _leaves(value, f"{prefix}{name}.")
        else:
            found[f"{prefix}{name}"] = value
    return found


def _unequal(one: dict[str, Any], other: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    names = dict.fromkeys([*one, *other])
    return {n: (one.get(n), other.get(n)) for n in names if one.get(n) != other.get(n)}


def _table(title: str, pairs: dict[str, tuple[Any, Any]], names: tuple[str, str]) -> Table:
    table = Table(title=title, box=box.SIMPLE_HEAD, title_justify="left")
    for heading in ("", *names):
        table.add_column(heading, overflow="fold")
    for name, values in pairs.items():
        table.add_row(name, *(Text("–" if value is None else str(value)) for value in values))
    return table


def _text(value: Value) -> str:
    if not isinstance(value, dict):
        return value or "–"
    if value["value"] is None:
        return "–"
    text = f"{value['value']:.4g}"
    return text if value["low"] is None else f"{text} [{value['low']:.4g}, {value['high']:.4g}]"
