"""The curve: accuracy against the error of the strongest attack, one point per quantizer."""

import io
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from adjustText import adjust_text  # type: ignore[import-untyped]
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogFormatterSciNotation, LogLocator, NullFormatter

from fl_sim.storage.files import write_bytes
from results.scores.statistics import CONFIDENCE
from results.tables.verdicts import server_plans

# Colours of Okabe and Ito, safe for colour-blind readers; each has its own marker shape too.
VERDICT_STYLE = {
    "leaks": ("#D55E00", "o"),
    "partly leaks": ("#E69F00", "s"),
    "bounded": ("#009E73", "p"),
    "nothing found": ("#0072B2", "D"),
    "not established": ("#666666", "^"),
}
VISIBLE_MSE = 1e-6
"""Below this MSE two images are equal in 8 bits; rounding to 8 bits alone gives 1.3e-6."""

_BASELINE_STYLE: dict[str, Any] = {"color": "#009E73", "linestyle": "--", "linewidth": 1.2}

_AREAS = (30.0, 300.0)  # points squared, for the fewest and the most bytes
_NOTE_WIDTH = 36  # letters that fit beside the axes
_NAIVE_GAP = 1.1  # a shorter arrow would be only its head


def draw_curve(results: pd.DataFrame, path: Path) -> None:
    """Write `curve_figure` to a file, atomically; its suffix (png, svg, pdf) says the format."""
    save_figure(curve_figure(results), path)


def curve_figure(results: pd.DataFrame) -> Figure:
    """Draw test accuracy against the strongest attack's median MSE.

    Error bars are 95 % bootstrap intervals of the median (horizontal) and standard deviations over
    seeds (vertical). A hollow point is not established: a better attack may find more. A dotted
    arrow leads from the weakest attack of the suite to the strongest. A note names the server plan.
    Errors below `VISIBLE_MSE` are drawn at `VISIBLE_MSE`.

    Parameters
    ----------
    results : DataFrame
        Of `results.tables.summary.results_table`; quantizers without accuracy or attack are left
        out.
    """
    points = results.dropna(subset=["test_accuracy_mean", "mse_median"]).copy()
    for column in points.columns[points.columns.str.contains("mse")]:
        points[column] = points[column].clip(lower=VISIBLE_MSE)
    room = 1 + max(0, len(points) - 12) / 40  # more labels need more room
    figure = Figure(figsize=(8.5 * room, 5 * room), dpi=150)
    axes = figure.add_axes((0.08, 0.11, 0.66, 0.83))
    axes.set_xscale("log")
    axes.set_xlabel("reconstruction MSE of the strongest attack, median over victims (log)")
    axes.set_ylabel("test accuracy (%)")
    axes.set_title("private →", loc="right", fontsize=9, color="#444444")
    axes.set_title(
        "← recovered (10⁻⁶ or less is drawn at 10⁻⁶)", loc="left", fontsize=9, color="#444444"
    )
    axes.grid(visible=True, which="major", color="#dddddd", linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    if len(points):
        _set_limits(axes, points)
    areas = marker_areas(points["uplink_bytes_per_update"])
    for (_, row), area in zip(points.iterrows(), areas, strict=True):
        _draw_point(axes, row, float(area))
    if len(points):
        axes.axvline(points["baseline_mse"].iloc[0], **_BASELINE_STYLE, zorder=1)
        _draw_legends(axes, points)
        _draw_labels(axes, points)
    else:
        axes.text(0.5, 0.5, "nothing attacked yet", transform=axes.transAxes, ha="center")
    note = textwrap.fill(server_plans(results), _NOTE_WIDTH)
    figure.text(0.75, 0.02, note, fontsize=7.5, va="bottom")
    return figure


def marker_areas(sizes: "pd.Series[float]") -> "pd.Series[float]":
    """Return marker areas in points squared, linear in the logarithm of the bytes."""
    logarithm = np.log(sizes.clip(lower=1))
    low, high = logarithm.min(), logarithm.max()
    share = (logarithm - low) / (high - low) if high > low else logarithm * 0 + 0.5
    return pd.Series(_AREAS[0] + share * (_AREAS[1] - _AREAS[0]))


def save_figure(figure: Figure, path: Path) -> None:
    """Write a figure atomically; the suffix of the file says the format."""
    write_bytes(path, render(figure, path.suffix.removeprefix(".")))


def render(figure: Figure, kind: str) -> bytes:
    """Return a figure as png, svg or pdf, without dates: equal figures give equal bytes."""
    stream = io.BytesIO()
    metadata = {"png": {"Software": None}, "svg": {"Date": None}, "pdf": {"CreationDate": None}}
    with rc_context({"svg.hashsalt": "fl_sim"}):
        figure.savefig(stream, format=kind, metadata=metadata.get(kind))
    return stream.getvalue()


def _set_limits(axes: Axes, points: pd.DataFrame) -> None:
    """Leave room around every point, bar and arrow for the labels."""
    columns = ["mse_median", "mse_median_low", "mse_median_high", "naive_mse_median"]
    errors = points[[*columns, "baseline_mse"]].to_numpy(dtype=np.float64)
    least, most = np.nanmin(errors) / 2, np.nanmax(errors) * 2
    axes.set_xlim(least, most)
    if most < 100 * least:  # powers of ten alone are too few labels, all multiples too many
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter(LogFormatterSciNotation(minor_thresholds=(np.inf, np.inf)))
        axes.xaxis.set_minor_formatter(NullFormatter())
    accuracy, spread = points["test_accuracy_mean"], points["test_accuracy_std"].fillna(0)
    low, high = 100 * (accuracy - spread).min(), 100 * (accuracy + spread).max()
    margin = max(0.5, 0.1 * (high - low))
    axes.set_ylim(low - margin, high + margin)


def _draw_point(axes: Axes, row: "pd.Series", area: float) -> None:
    colour, marker = VERDICT_STYLE[row["verdict"]]
    x, y = row["mse_median"], 100 * row["test_accuracy_mean"]
    across = np.array([[x - row["mse_median_low"]], [row["mse_median_high"] - x]])
    up = 100 * row["test_accuracy_std"]
    axes.errorbar(
        x,
        y,
        xerr=np.nan_to_num(across).clip(min=0),
        yerr=0 if np.isnan(up) else up,
        fmt="none",
        ecolor=colour,
        elinewidth=1,
        capsize=2,
        zorder=2,
    )
    axes.scatter(
        x,
        y,
        s=area,
        marker=marker,
        facecolor=colour if row["established"] else "white",
        edgecolor=colour,
        linewidth=1.3,
        alpha=0.9,
        zorder=3,
    )
    if row["naive_mse_median"] > _NAIVE_GAP * x:
        arrow = {"arrowstyle": "->", "color": colour, "linewidth": 0.8, "linestyle": ":"}
        axes.annotate("", (x, y), (row["naive_mse_median"], y), arrowprops=arrow, zorder=1)
        axes.plot(row["naive_mse_median"], y, "x", color=colour, markersize=4, zorder=1)


def _draw_labels(axes: Axes, points: pd.DataFrame) -> None:
    x, y = points["mse_median"].to_numpy(), 100 * points["test_accuracy_mean"].to_numpy()
    texts = [
        axes.text(mse, accuracy, name, fontsize=7.5, zorder=4)
        for mse, accuracy, name in zip(x, y, points["quantizer"], strict=True)
    ]
    ends = ("mse_median_low", "mse_median_high", "naive_mse_median")
    bars = [
        points[column].fillna(points["mse_median"]) for column in ends
    ]  # missing with a single victim
    adjust_text(
        texts,
        x=np.concatenate([x, *bars]),
        y=np.tile(y, 1 + len(bars)),
        ax=axes,
        iter_lim=500,
        expand=(1.1, 2.0),
        force_text=(0.2, 0.5),
        force_static=(0.1, 0.5),
        arrowprops={"arrowstyle": "-", "color": "#888888", "linewidth": 0.5},
    )


def _draw_legends(axes: Axes, points: pd.DataFrame) -> None:
    handles = []
    for verdict in [name for name in VERDICT_STYLE if name in set(points["verdict"])]:
        colour, marker = VERDICT_STYLE[verdict]
        face = "white" if verdict == "not established" else colour
        handles.append(
            Line2D([], [], marker=marker, color="none", mfc=face, mec=colour, label=verdict)
        )
    if not points["established"].all():
        label = "hollow: not established,\na better attack may find more"
        handles.append(
            Line2D([], [], marker="o", color="none", mfc="white", mec="black", label=label)
        )
    if (points["naive_mse_median"] > _NAIVE_GAP * points["mse_median"]).any():
        label = "from the weakest attack\nto the strongest"
        handles.append(Line2D([], [], marker="x", color="#444444", linestyle=":", label=label))
    handles.append(Line2D([], [], **_BASELINE_STYLE, label="best featureless image"))
    sizes = points["uplink_bytes_per_update"]
    shown = pd.Series(sorted({sizes.min(), sizes.max()}))
    for size, area in zip(shown, marker_areas(shown), strict=True):
        label = f"{size:,.0f} bytes"
        dot = Line2D([], [], marker="o", color="none", mfc="#cccccc", mec="#888888", label=label)
        dot.set_markersize(float(np.sqrt(area)))
        handles.append(dot)
    axes.figure.legend(
        handles=handles,
        loc="upper left",
        bbox_to_anchor=(0.75, 0.96),
        fontsize=7.5,
        frameon=False,
        labelspacing=1.1,
        title=f"bars: {CONFIDENCE:.0%} interval,\ns.d. over seeds",
        title_fontsize=7.5,
        alignment="left",
    )
