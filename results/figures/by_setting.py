"""What a setting does to privacy: PSNR over its values, one line for each quantizer."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from results.figures.panels import (
    BASELINE_STYLE,
    FONT,
    draw_frame,
    draw_title,
    key,
    layout,
    panels_a_row,
    save_figure,
    split,
)
from results.figures.styles import FILLS, Style, nth_style
from results.scores.scoring import psnr
from results.scores.statistics import CONFIDENCE
from results.tables.numbers import setting_value
from results.tables.verdicts import server_plans, starred

MOST_PSNR = 60.0
"""Above so many decibels two images are equal in 8 bits; better guesses are drawn here."""

_REACH = 0.3  # of the line of the featureless image, to both sides of a value
_SHIFT = 0.02  # between the lines of two quantizers, so that their bars stand side by side
_DOT: dict[str, Any] = {"markersize": 4, "markeredgewidth": 0.7, "markerfacecoloralt": "white"}


def draw_by_setting(results: pd.DataFrame, setting: str, path: Path) -> None:
    """Write `by_setting_figure` to a file, atomically; its suffix says the format."""
    save_figure(by_setting_figure(results, setting), path)


def by_setting_figure(results: pd.DataFrame, setting: str) -> Figure:
    """Draw the median PSNR of the strongest attack over the values of a setting.

    Each quantizer is a line; a fuller marker leaks more (`results.figures.styles.FILLS`), a star
    is not established. Bars are bootstrap intervals over victims. The dashed line is the best
    featureless image: a guess below it shows nothing of the victim. Other settings that have
    several values have a panel for each combination.

    Parameters
    ----------
    results : DataFrame
        Of a study with axes; rows without an attack are left out.
    setting : str
        Column of an axis, such as ``batch_size``. Its values stand at equal distances, in the order
        of the study.

    Raises
    ------
    KeyError
        If the study has no such axis.
    """
    axes = list(results.columns[: results.columns.get_loc("quantizer")])
    if setting not in axes:
        raise KeyError(setting)
    values = {value: place for place, value in enumerate(results[setting].unique())}
    names = list(map(setting_value, values))
    if len(set(names)) < len(names):  # files of several folders
        names = list(map(str, values))
    points = results.dropna(subset=["psnr_median"]).reset_index(drop=True)
    others = [name for name in axes if name != setting and points[name].nunique() > 1]
    panels = list(split(points, others))
    styles = {name: nth_style(k) for k, name in enumerate(points["quantizer"].unique())}
    bars = f"Higher: more recovered. Bars: {CONFIDENCE:.0%} intervals over victims."
    figure, every = layout(
        len(panels),
        _legend(points, styles) if len(points) else [],
        f"{bars} {server_plans(results)}",
    )
    for number, (place, panel) in enumerate(zip(every, panels, strict=True)):
        draw_frame(place)
        if number:
            place.sharey(every[0])
        draw_title(place, panel.title)
        place.set_xticks(list(values.values()), names)
        place.set_xlim(-0.3, len(values) - 0.7)
        place.set_xlabel(setting, fontsize=FONT + 0.5)
        if number % panels_a_row(len(panels)) == 0:
            place.set_ylabel("PSNR (dB), median victim", fontsize=FONT + 0.5)
        _draw_lines(place, panel.points.assign(place=panel.points[setting].map(values)), styles)
    if points.empty:
        every[0].text(0.5, 0.5, "nothing attacked yet", transform=every[0].transAxes, ha="center")
    return figure


def _draw_lines(axes: Axes, points: pd.DataFrame, styles: Mapping[str, Style]) -> None:
    bar = points.groupby("place")["baseline_mse"].median().map(psnr)
    axes.hlines(bar, bar.index - _REACH, bar.index + _REACH, **BASELINE_STYLE, zorder=1)
    for number, (name, style) in enumerate(styles.items()):
        own = points[points["quantizer"] == name]
        if own.empty:
            continue
        shift = _SHIFT * (number - (len(styles) - 1) / 2)
        x, y = own["place"] + shift, own["psnr_median"].clip(upper=MOST_PSNR)
        axes.plot(x, y, color=style.colour, linestyle=style.dashes, linewidth=0.9, zorder=2)
        ends = own[["psnr_median_low", "psnr_median_high"]].clip(upper=MOST_PSNR)
        axes.vlines(x, ends.iloc[:, 0], ends.iloc[:, 1], color=style.colour, linewidth=0.5)
        for across, up, (_, row) in zip(x, y, own.iterrows(), strict=True):
            fill: Any = FILLS[row["verdict"]]
            dot = {"marker": style.marker, "color": style.colour, "fillstyle": fill, **_DOT}
            axes.plot(across, up, **dot, zorder=3)
            if starred(row).endswith("*"):
                note: dict[str, Any] = {"xytext": (2, 1), "textcoords": "offset points"}
                axes.annotate("*", (across, up), **note, fontsize=FONT, zorder=4)


def _legend(points: pd.DataFrame, styles: Mapping[str, Style]) -> list[Line2D]:
    """Return what lines, fills and stars mean, as far as they are drawn."""
    handles = []
    for name, style in styles.items():
        line = {"color": style.colour, "linestyle": style.dashes, "linewidth": 0.9}
        handles.append(key(name, **line, marker=style.marker, markersize=4))
    handles.append(key("best featureless image", **BASELINE_STYLE))
    grey = {"marker": "o", "color": "#444444", "linestyle": "none", **_DOT}
    for fill in dict.fromkeys(FILLS.values()):
        verdicts = [verdict for verdict, own in FILLS.items() if own == fill]
        if points["verdict"].isin(verdicts).any():
            handles.append(key(verdicts[0], **grey, fillstyle=fill))
    if any(starred(row).endswith("*") for _, row in points.iterrows()):
        handles.append(key("not established", **{**grey, "marker": "$*$"}))
    return handles
