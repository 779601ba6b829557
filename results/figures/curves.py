"""The curve: accuracy against the error of the strongest attack, one line for each family."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from adjustText import adjust_text  # type: ignore[import-untyped]
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patheffects import withStroke
from matplotlib.ticker import LogFormatterSciNotation, LogLocator, NullFormatter
from matplotlib.transforms import Bbox
from numpy.typing import NDArray

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
from results.figures.styles import ALONE, FILLS, Style, family_styles
from results.scores.families import with_families
from results.scores.statistics import CONFIDENCE
from results.tables.verdicts import server_plans, starred

VISIBLE_MSE = 1e-6
"""Below this MSE two images are equal in 8 bits; rounding to 8 bits alone gives 1.3e-6."""

_AREAS = (9.0, 70.0)  # points squared, for the fewest and the most bytes
_LONG = 12  # letters of a name that a panel among several has no room for
_NAIVE_GAP = 1.1  # a shorter arrow would be only its head
_BEST_STYLE: dict[str, Any] = {"linewidth": 2.5, "alpha": 0.3, "solid_capstyle": "butt"}
_FRONT_STYLE: dict[str, Any] = {"marker": "o", "mfc": "none", "mec": "#777777", "mew": 0.5}
_BOUND_STYLE: dict[str, Any] = {"marker": "|", "markersize": 7, "mew": 1.2, "linestyle": "none"}
_HALO = withStroke(linewidth=1.5, foreground="white")  # around a label that crosses a line
_ERRORS = ["mse_median", "mse_median_low", "mse_median_high", "naive_mse_median", "mse_best_known"]
_ERRORS += ["mse_bound"]


def draw_curve(results: pd.DataFrame, path: Path) -> None:
    """Write `curve_figure` to a file, atomically; its suffix (png, svg, pdf) says the format."""
    save_figure(curve_figure(results), path)


def curve_figure(results: pd.DataFrame) -> Figure:
    """Draw test accuracy against the strongest attack's median MSE.

    Each family of quantizers is a line through its parameters, with its ends labelled; colour,
    dashes and markers differ, so that the figure can be read in grey. A larger marker sends more
    bytes, a fuller one leaks more (`results.figures.styles.FILLS`), a star is not established, a
    ring is on the Pareto front. Bars are bootstrap intervals over victims (horizontal) and seeds
    (vertical). A dotted arrow leads from the weakest attack of the suite to the strongest; a pale
    bar leads on to the best guess that the truth would choose. A tick is the mean error that no
    attack can get below, where there is such a bound. The dashed line is the best featureless
    image. A note names the server plan. Errors below `VISIBLE_MSE` are drawn at `VISIBLE_MSE`.

    Parameters
    ----------
    results : DataFrame
        Of `results.tables.summary.results_table`; quantizers without accuracy or attack are left
        out. Columns before ``quantizer`` are axes of a study, or the observed round: each of their
        values gets a panel; long names stand in the legend there. One panel is as wide as a paper's
        column, several as its page.
    """
    points = with_families(_visible(results))
    styles = family_styles(points)
    panels = list(split(points, list(results.columns[: results.columns.get_loc("quantizer")])))
    names = _names(points, styles, short=len(panels) > 1)
    legend = _legend(points, styles, names) if len(points) else []
    figure, every = layout(len(panels), legend, _note(results))
    if points.empty:
        every[0].text(0.5, 0.5, "nothing attacked yet", transform=every[0].transAxes, ha="center")
    else:
        areas = marker_areas(points["uplink_bytes_per_update"])
        points = points.assign(area=areas / (1 if len(panels) == 1 else 2))
    for number, (axes, panel) in enumerate(zip(every, panels, strict=True)):
        _draw_frame(axes, number, len(panels))
        if len(points):
            own = panel.points.join(points["area"])
            draw_title(axes, panel.title)
            _set_limits(axes, points)
            axes.axvline(own["baseline_mse"].median(), **BASELINE_STYLE, zorder=1)
            _draw_lines(axes, own, styles, names)
    return figure


def marker_areas(sizes: "pd.Series[float]") -> "pd.Series[float]":
    """Return marker areas in points squared, linear in the logarithm of the bytes."""
    logarithm = np.log(sizes.clip(lower=1))
    low, high = logarithm.min(), logarithm.max()
    share = (logarithm - low) / (high - low) if high > low else logarithm * 0 + 0.5
    return pd.Series(_AREAS[0] + share * (_AREAS[1] - _AREAS[0]))


def _visible(results: pd.DataFrame) -> pd.DataFrame:
    """Return the rows that can be drawn, with errors no lower than what the eye can tell."""
    points = results.dropna(subset=["test_accuracy_mean", "mse_median"]).reset_index(drop=True)
    columns = [*_ERRORS, "baseline_mse"]
    points[columns] = points[columns].clip(lower=VISIBLE_MSE)
    return points


def _note(results: pd.DataFrame) -> str:
    bars = f"Bars: {CONFIDENCE:.0%} intervals over victims and over seeds."
    return f"{bars} 10⁻⁶ stands for 10⁻⁶ or less. {server_plans(results)}"


def _draw_frame(axes: Axes, number: int, count: int) -> None:
    axes.set_xscale("log")
    draw_frame(axes)
    columns = panels_a_row(count)
    if number >= count - columns:
        text = "MSE of the strongest attack, median victim (→ less recovered)"
        axes.set_xlabel(text if count == 1 else "MSE, median victim", fontsize=FONT + 0.5)
    if number % columns == 0:
        axes.set_ylabel("test accuracy (%)", fontsize=FONT + 0.5, labelpad=2)


def _set_limits(axes: Axes, points: pd.DataFrame) -> None:
    """Leave room around every point, bar and arrow for the labels."""
    errors = points[[*_ERRORS, "baseline_mse"]].to_numpy(dtype=np.float64)
    least, most = np.nanmin(errors) / 3, np.nanmax(errors) * 2
    axes.set_xlim(least, most)
    if most < 100 * least:  # powers of ten alone are too few labels, all multiples too many
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter(LogFormatterSciNotation(minor_thresholds=(np.inf, np.inf)))
        axes.xaxis.set_minor_formatter(NullFormatter())
    centre = points["test_accuracy_mean"]
    low = 100 * points["test_accuracy_mean_low"].fillna(centre).min()
    high = 100 * points["test_accuracy_mean_high"].fillna(centre).max()
    margin = max(0.5, 0.1 * (high - low))
    axes.set_ylim(low - margin, high + margin)


def _names(points: pd.DataFrame, styles: dict[str, Style], *, short: bool) -> dict[str, str]:
    """Return labels of the quantizers without a family: the spec, or a number where it is long."""
    alone = dict.fromkeys(points.loc[~points["family"].isin(list(styles)), "quantizer"])
    long = [name for name in alone if short and len(name) > _LONG]
    return {name: f"q{long.index(name) + 1}" if name in long else name for name in alone}


def _draw_lines(
    axes: Axes, points: pd.DataFrame, styles: dict[str, Style], names: dict[str, str]
) -> None:
    """Draw every family and every quantizer without one, then label the ends."""
    labels, targets = [], []
    for family, own in points.groupby("family", sort=False):
        style = styles.get(str(family), ALONE)
        x, y = own["mse_median"], 100 * own["test_accuracy_mean"]
        axes.plot(x, y, **_line(style), zorder=2)
        for _, row in own.iterrows():
            _draw_point(axes, row, style)
        for end, neighbour in ((0, 1), (-1, -2)) if len(own) > 1 else ((0, 0),):
            row = own.iloc[end]
            text = f"{row['value']:g}" if str(family) in styles else names[row["quantizer"]]
            other = own.iloc[neighbour] if len(own) > 1 else _nearest(axes, row, points)
            place = _beside(axes, text, row, other)
            centred: dict[str, Any] = {"ha": "center", "va": "center", "path_effects": [_HALO]}
            labels.append(axes.text(*place, text, fontsize=FONT, color=style.colour, **centred))
            targets.append((row["mse_median"], 100 * row["test_accuracy_mean"]))
    _spread(axes, labels, targets, points)


def _beside(axes: Axes, text: str, row: "pd.Series", neighbour: "pd.Series") -> tuple[float, float]:
    """Return a place for a text next to a point, on the side away from its neighbour."""
    here, there = _in_pixels(axes, row), _in_pixels(axes, neighbour)
    away = here - there if np.any(here != there) else np.array([0.0, 1.0])
    way = away / np.linalg.norm(away)
    half_text = np.abs(way) @ (0.3 * FONT * len(text), FONT)  # a letter is 0.6 em wide
    length = (np.sqrt(row["area"]) / 2 + half_text) * axes.figure.dpi / 72
    x, y = axes.transData.inverted().transform(here + way * length)
    return float(x), float(y)


def _nearest(axes: Axes, row: "pd.Series", points: pd.DataFrame) -> "pd.Series":
    """Return the nearest point at another place, or the point itself where there is none."""
    away = np.linalg.norm(_in_pixels(axes, points) - _in_pixels(axes, row), axis=1)
    return points.iloc[int(np.where(away > 1, away, np.inf).argmin())] if (away > 1).any() else row


def _in_pixels(axes: Axes, points: "pd.DataFrame | pd.Series") -> NDArray[np.float64]:
    places = points[["mse_median", "test_accuracy_mean"]].to_numpy(dtype=np.float64) * (1, 100)
    return np.asarray(axes.transData.transform(places))


def _draw_point(axes: Axes, row: "pd.Series", style: Style) -> None:
    x, y, colour = row["mse_median"], 100 * row["test_accuracy_mean"], style.colour
    size = float(np.sqrt(row["area"]))
    across = [[x - row["mse_median_low"]], [row["mse_median_high"] - x]]
    up = [[y - 100 * row["test_accuracy_mean_low"]], [100 * row["test_accuracy_mean_high"] - y]]
    axes.errorbar(
        x,
        y,
        xerr=np.nan_to_num(across).clip(min=0),
        yerr=np.nan_to_num(up).clip(min=0),
        fmt="none",
        ecolor=colour,
        elinewidth=0.5,
        alpha=0.7,
        zorder=2,
    )
    axes.plot([row["mse_best_known"], x], [y, y], color=colour, **_BEST_STYLE, zorder=1)
    axes.plot(
        x,
        y,
        marker=style.marker,
        markersize=size,
        fillstyle=FILLS[row["verdict"]],
        color=colour,
        markerfacecoloralt="white",
        markeredgewidth=0.7,
        zorder=4,
    )
    if pd.notna(row["mse_bound"]):
        axes.plot(row["mse_bound"], y, **_BOUND_STYLE, color=colour, zorder=3)
    if row["pareto"]:
        axes.plot(x, y, markersize=size + 3, **_FRONT_STYLE, zorder=3)
    if starred(row).endswith("*"):
        offset = (size / 2, size / 2 - 2)
        axes.annotate("*", (x, y), offset, textcoords="offset points", fontsize=FONT, zorder=5)
    if row["naive_mse_median"] > _NAIVE_GAP * x:
        arrow = {"arrowstyle": "->", "color": colour, "linewidth": 0.5, "linestyle": ":"}
        arrow |= {"mutation_scale": 4}
        axes.annotate("", (x, y), (row["naive_mse_median"], y), arrowprops=arrow, zorder=1)


def _spread(
    axes: Axes, labels: list[Any], targets: list[tuple[float, float]], points: pd.DataFrame
) -> None:
    """Move labels away from each other, from markers and from the ends of bars."""
    x, y = points["mse_median"].to_numpy(), 100 * points["test_accuracy_mean"].to_numpy()
    ends = ("mse_median_low", "mse_median_high", "naive_mse_median")
    bars = [points[name].fillna(points["mse_median"]) for name in ends]  # missing with one victim
    adjust_text(
        labels,
        x=np.concatenate([x, *bars]),
        y=np.tile(y, 1 + len(bars)),
        objects=_marker_boxes(axes, points),
        target_x=[across for across, _ in targets],
        target_y=[up for _, up in targets],
        ax=axes,
        iter_lim=500,
        expand=(1.1, 1.6),
        force_text=(0.2, 0.5),
        force_static=(0.3, 1.0),
        force_pull=(0.0, 0.0),
        arrowprops={"arrowstyle": "-", "color": "#999999", "linewidth": 0.3},
    )


def _marker_boxes(axes: Axes, points: pd.DataFrame) -> list[Bbox]:
    """Return the places of the markers with their rings, in pixels."""
    radii = (np.sqrt(points["area"].to_numpy()) / 2 + 2) * axes.figure.dpi / 72
    return [
        Bbox([place - radius, place + radius])
        for place, radius in zip(_in_pixels(axes, points), radii, strict=True)
    ]


def _legend(points: pd.DataFrame, styles: dict[str, Style], names: dict[str, str]) -> list[Line2D]:
    """Return what families, fills, rings, bars and sizes mean, as far as they are drawn."""
    handles = [
        key(name, **_line(style), marker=style.marker, markersize=4)
        for name, style in styles.items()
    ]
    grey: dict[str, Any] = {"color": "#444444", "linewidth": 0.8}
    dot = {**grey, "marker": "o", "markersize": 4, "linestyle": "none", "mew": 0.7}
    for fill in dict.fromkeys(FILLS.values()):
        verdicts = [verdict for verdict, own in FILLS.items() if own == fill]
        if points["verdict"].isin(verdicts).any():
            handles.append(key(verdicts[0], **dot, fillstyle=fill, markerfacecoloralt="white"))
    if any(starred(row).endswith("*") for _, row in points.iterrows()):
        handles.append(key("not established", **{**dot, "marker": "$*$"}))
    if points["pareto"].any():
        handles.append(key("Pareto front", linestyle="none", markersize=7, **_FRONT_STYLE))
    handles.append(key("best featureless image", **BASELINE_STYLE))
    handles.append(key("to the best known guess", color="#444444", **_BEST_STYLE))
    if points["mse_bound"].notna().any():
        handles.append(key("bound on the mean MSE", color="#444444", **_BOUND_STYLE))
    if (points["naive_mse_median"] > _NAIVE_GAP * points["mse_median"]).any():
        handles.append(key("from the weakest attack", **grey, linestyle=":"))
    handles += [
        key(f"{short}: {name}", **{**dot, "color": ALONE.colour})
        for name, short in names.items()
        if short != name
    ]
    sizes = points["uplink_bytes_per_update"]
    shown = pd.Series(sorted({sizes.min(), sizes.max()}))
    for size, area in zip(shown, marker_areas(shown), strict=True):
        dot |= {"markersize": float(np.sqrt(area)), "mfc": "#bbbbbb"}
        handles.append(key(f"{size:,.0f} bytes an update", **dot))
    return handles


def _line(style: Style) -> dict[str, Any]:
    return {"color": style.colour, "linestyle": style.dashes, "linewidth": 1}
