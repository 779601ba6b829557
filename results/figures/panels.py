"""Figures of one panel or of several, in the widths of a paper's column and page."""

import io
import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from fl_sim.storage.files import write_bytes
from results.tables.numbers import setting_value

COLUMN_WIDTH = 8.5
"""Width of a paper's column in centimetres, and of a figure with one panel."""

MOST_A_ROW = 3
"""Small multiples side by side, on the width of a page."""

FONT = 6.0
"""Size of text in points."""

BASELINE_STYLE: dict[str, Any] = {"color": "#555555", "linestyle": (0, (6, 2)), "linewidth": 0.8}
"""Of the line of the best featureless image."""

_PAGE_WIDTH = 17.6
_LEFT, _RIGHT, _TITLE, _BELOW_AXES = 1.05, 0.15, 0.6, 0.95  # centimetres around a panel
_HEIGHT, _SMALL_HEIGHT = 6.4, 4.6  # of the panel, and of each of several
_LINE = 0.31  # of legend and note
_LETTERS = 38  # that a panel's title has room for
_LEGEND_LETTERS = 28  # that a fourth of the legend of several panels has room for


class Panel(NamedTuple):
    """One of several panels: its title, and the rows of the results that it shows."""

    title: str
    points: pd.DataFrame


def split(points: pd.DataFrame, axes: Sequence[str]) -> Iterator[Panel]:
    """Yield a panel for each combination of values of some columns; one panel without columns."""
    if not axes or points.empty:
        yield Panel("", points)
        return
    for values, own in points.groupby(list(axes), sort=False):
        yield Panel(", ".join(map("{} = {}".format, axes, map(setting_value, values))), own)


def panels_a_row(count: int) -> int:
    """Return how many of so many panels stand side by side: four as two by two."""
    return 2 if count == 4 else min(count, MOST_A_ROW)


def layout(count: int, legend: Sequence[Line2D], note: str) -> tuple[Figure, list[Axes]]:
    """Return a figure with its legend and note, and its empty panels; lengths in centimetres."""
    columns = panels_a_row(count)
    rows = -(-count // columns)
    width, panel, top = COLUMN_WIDTH, _HEIGHT, 0.2
    if count > 1:
        width, panel, top = _PAGE_WIDTH, _SMALL_HEIGHT, _TITLE
    lines = textwrap.wrap(note, int(width * 9.5))
    long = any(len(str(one.get_label())) > _LEGEND_LETTERS for one in legend)
    legend_columns = 2 if count == 1 or long else 4
    below_legend = 0.1 + 0.25 * len(lines)
    below_panels = below_legend + _LINE * (-(-len(legend) // legend_columns) + 0.4)
    height = below_panels + rows * (panel + top + _BELOW_AXES)
    figure = Figure(figsize=(width / 2.54, height / 2.54), dpi=300)
    across = (width - _RIGHT) / columns
    every = []
    for number in range(count):
        row, column = divmod(number, columns)
        left, bottom = column * across + _LEFT, height - (row + 1) * (panel + top + _BELOW_AXES)
        box = (left, bottom + _BELOW_AXES, across - _LEFT, panel)
        shares = (length / side for length, side in zip(box, (width, height) * 2, strict=True))
        every.append(figure.add_axes(tuple(shares)))  # type: ignore[arg-type]
    if legend:
        figure.legend(
            handles=legend,
            loc="upper left",
            bbox_to_anchor=(0.01, below_panels / height),
            ncols=legend_columns,
            fontsize=FONT,
            frameon=False,
            handlelength=3.2,
            columnspacing=1.2,
            labelspacing=0.35,
            borderpad=0,
            borderaxespad=0,
        )
    figure.text(0.01, 0.08 / height, "\n".join(lines), fontsize=FONT - 1, va="bottom")
    return figure, every


def draw_title(axes: Axes, title: str) -> None:
    """Write a title, in smaller letters where it would be wider than a panel."""
    axes.set_title(title, fontsize=(FONT + 1) * min(1, _LETTERS / max(1, len(title))))


def draw_frame(axes: Axes) -> None:
    """Draw ticks, grid and borders as all panels have them."""
    axes.tick_params(labelsize=FONT, length=2, pad=2, which="both")
    axes.grid(visible=True, which="major", color="#e4e4e4", linewidth=0.4)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["bottom", "left"]].set_linewidth(0.6)


def save_figure(figure: Figure, path: Path) -> None:
    """Write a figure atomically; the suffix of the file says the format."""
    write_bytes(path, render(figure, path.suffix.removeprefix(".")))


def render(figure: Figure, kind: str) -> bytes:
    """Return a figure as png, svg or pdf, without dates: equal figures give equal bytes."""
    stream = io.BytesIO()
    metadata = {"png": {"Software": None}, "svg": {"Date": None}, "pdf": {"CreationDate": None}}
    with rc_context({"svg.hashsalt": "fl_sim", "pdf.fonttype": 42}):
        figure.savefig(stream, format=kind, metadata=metadata.get(kind))
    return stream.getvalue()


def key(label: str, **style: Any) -> Line2D:
    """Return an entry of a legend."""
    return Line2D([], [], label=label, **style)
