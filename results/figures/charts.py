"""The interactive charts of the report, as Plotly figures and the switches that restyle them."""

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from fl_sim.metrics import FurtherMetric
from results.figures.curves import VISIBLE_MSE, marker_areas
from results.figures.styles import ALONE, Style, family_styles
from results.scores.baselines import FEATURELESS
from results.scores.families import with_families
from results.scores.rows import OBSERVATION
from results.scores.statistics import Statistic, mean, median, tenth
from results.tables.numbers import percent
from results.tables.verdicts import starred

_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7F7F7F", "#B8860B")
_DASHES = ("solid", "dash", "dot", "dashdot", "longdash")
_FILLS = {"leaks": "", "partly leaks": "-dot", "bounded": "-open-dot"}
_FILLS |= {"nothing found": "-open", "not established": "-open"}
_WITHOUT_FAMILY = "other quantizers"
_MOST_NAMES = 12  # of quantizers without a family that have their names beside them
_FAR_RIGHT = 0.75  # of the way from the leftmost to the rightmost point


class CurveMetric(NamedTuple):
    """A choice for the horizontal axis of the curve: a column of the results, and its scale."""

    column: str
    score: str
    statistic: Statistic
    title: str
    better_high: bool  # for the attacker
    log: bool = False
    best: str = ""  # column of what the truth would choose, if there is one


METRICS = (
    CurveMetric(
        "mse_median", "mse", median, "MSE, median victim", False, log=True, best="mse_best_known"
    ),
    CurveMetric("mse_p10", "mse", tenth, "MSE, most exposed tenth", better_high=False, log=True),
    CurveMetric(
        "psnr_median", "psnr", median, "PSNR (dB), median victim", True, best="psnr_best_known"
    ),
    CurveMetric("ssim_median", "ssim", median, "SSIM, median victim", better_high=True),
    CurveMetric("identified_rate", "identified", mean, "victims identified (%)", better_high=True),
)

UPRIGHT = {
    "accuracy": ("test_accuracy_mean", "test accuracy (%)", False),
    "bytes": ("uplink_bytes_per_update", "bytes per update", True),
    "bits": ("bits_per_parameter", "bits per parameter", True),
}

SIZES = {
    "bytes": "uplink_bytes_per_update",
    "bits": "bits_per_parameter",
    "entropy-coded bytes": "entropy_coded_bytes_per_update",
}

Switch = dict[str, tuple[dict[str, Any], dict[str, Any]]]
"""Arguments (restyle, relayout) of ``Plotly.update`` for each option of a selection."""


def curve(
    results: pd.DataFrame,
    scores: pd.DataFrame,
    baselines: pd.DataFrame,
    further: Sequence[FurtherMetric] = (),
) -> tuple[go.Figure, dict[str, Switch]]:
    """Build the privacy-utility curve and its switches: metric, vertical axis, marker size.

    Each family of quantizers is a trace, and all quantizers without one share a trace; such traces
    have the meta ``family``, so that the page can switch them on and off.
    The metric sets only the x of a trace, the vertical axis only its y, the marker size only its
    size. So the three switches do not depend on each other.

    Parameters
    ----------
    results, scores, baselines : DataFrame
        Of the runs on the page, below each other.
    further : sequence of FurtherMetric
        Metrics that all runs have, beside `METRICS`.
    """
    points = with_families(results.dropna(subset=["test_accuracy_mean", "mse_median"]))
    styles = family_styles(points)
    groups = {name: points[points["family"] == name] for name in styles}
    alone = points[points["value"].isna()]
    if len(alone):
        groups[_WITHOUT_FAMILY] = alone
    front = points[points["pareto"]]
    figure = go.Figure()
    _add_aids(figure)
    for name, group in groups.items():
        _add_group(figure, name, group, points, styles.get(name))
    figure.add_scatter(
        name="strongest attack → best guess (by the truth)",
        mode="lines",
        line={"color": "#444444", "width": 5},
        opacity=0.35,
        hoverinfo="skip",
    )
    metrics = {
        one.title: _across(one, points, front, [*groups.values()], scores, baselines)
        for one in (*METRICS, *map(_curve_metric, further))
    }
    lines = [*groups.values()]
    upright = {name: _up(*UPRIGHT[name], points, front, lines) for name in UPRIGHT}
    sizes = {name: _marker_sizes(points, front, lines, column) for name, column in SIZES.items()}
    figure.update_layout(height=520, hovermode="closest")
    if points.empty:
        figure.add_annotation(text="nothing attacked yet", showarrow=False, font={"size": 16})
    _legend_below(figure)
    switches = {"metric": metrics, "upright": upright, "size": sizes}
    for switch in switches.values():
        _apply(figure, *next(iter(switch.values())))
    return figure, switches


def _add_aids(figure: go.Figure) -> None:
    """Add the traces of the arrows, of the featureless image, and of the Pareto front."""
    figure.add_scatter(
        name="weakest attack → strongest",
        mode="lines+markers",
        line={"color": "#888888", "width": 1, "dash": "dot"},
        marker={"symbol": "arrow", "size": 9, "angleref": "previous", "color": "#888888"},
        hoverinfo="skip",
    )
    figure.add_scatter(
        name="best featureless image",
        mode="lines",
        line={"color": "#888888", "dash": "longdash"},
        hoverinfo="skip",
    )
    figure.add_scatter(
        name="Pareto front",
        mode="markers",
        marker={"symbol": "circle-open", "color": "#888888", "line": {"width": 2}},
        hoverinfo="skip",
    )


def _add_group(
    figure: go.Figure, name: str, group: pd.DataFrame, points: pd.DataFrame, style: Style | None
) -> None:
    """Add the trace of a family; without a style, of the quantizers that have none."""
    joined, style = style is not None, style or ALONE
    named = not joined and len(group) <= _MOST_NAMES
    stars = [starred(row)[len(row["verdict"]) :] for _, row in group.iterrows()]
    figure.add_scatter(
        name=name,
        meta="family",
        mode="lines+markers+text" if joined else "markers+text",
        text=(group["quantizer"] + stars).tolist() if named else stars,
        textposition=_label_sides(group, points).tolist() if named else "top right",
        customdata=[[text] for text in group["quantizer"]],
        hovertext=[_hover(row) for _, row in group.iterrows()],
        hoverinfo="text",
        line={"color": style.colour, "dash": style.dash, "width": 2},
        marker={
            "color": style.colour,
            "symbol": [style.symbol + _FILLS[verdict] for verdict in group["verdict"]],
            "line": {"width": 2, "color": style.colour},
        },
    )


def _curve_metric(metric: FurtherMetric) -> CurveMetric:
    column, title = metric.column, f"{metric.spec}, median victim"
    return CurveMetric(f"{column}_median", column, median, title, metric.higher_is_better)


def _label_sides(group: pd.DataFrame, points: pd.DataFrame) -> "pd.Series[str]":
    """Choose the side of each label of a group: neighbours on the curve get different sides.

    Labels of points far to the right are on the left, where a narrow screen still shows them.
    """
    sides = ("bottom", "middle", "top")
    every = np.log10(points["mse_median"].clip(lower=VISIBLE_MSE))
    place = (every[group.index] - every.min()).sort_values()
    chosen = [
        f"{sides[number % len(sides)]} {'left' if far else 'right'}"
        for number, far in enumerate(place > _FAR_RIGHT * (every.max() - every.min()))
    ]
    return pd.Series(chosen, index=place.index, dtype="str")[group.index]


def training(history: pd.DataFrame) -> go.Figure:
    """Draw test accuracy against the bytes that one client has sent so far."""
    figure = go.Figure()
    for number, (name, rows) in enumerate(_by_quantizer(history)):
        rounds = rows.groupby("round")[["accuracy", "uplink_bytes", "updates"]].mean()
        sent = (rounds["uplink_bytes"] / rounds["updates"].clip(lower=1)).cumsum()
        # Nothing is sent before round 1, and the axis is logarithmic.
        later = (rounds.index > 0) & rounds["accuracy"].notna()
        figure.add_scatter(
            name=name,
            x=sent[later].tolist(),
            y=(100 * rounds["accuracy"][later]).tolist(),
            mode="lines",
            line=_line(number),
            hovertemplate="%{y:.1f} % after %{x:,.0f} bytes",
        )
    figure.update_xaxes(type="log", dtick=1, tickformat=",", title="bytes sent by one client (log)")
    figure.update_yaxes(title="test accuracy (%)")
    return _legend_below(figure)


def stages(strongest: pd.DataFrame, baseline: float) -> go.Figure:
    """Draw the error of the strongest attack in every observed round."""
    figure = go.Figure()
    for number, (name, rows) in enumerate(_by_quantizer(strongest)):
        of_round = rows.groupby("round")["mse"]
        middle, low, high = (of_round.quantile(q).clip(lower=VISIBLE_MSE) for q in (0.5, 0.1, 0.9))
        figure.add_scatter(
            name=name,
            x=middle.index.tolist(),
            y=middle.tolist(),
            mode="lines+markers",
            line=_line(number),
            error_y={
                "type": "data",
                "symmetric": False,
                "array": (high - middle).tolist(),
                "arrayminus": (middle - low).tolist(),
                "thickness": 1,
            },
            hovertemplate="round %{x}: median MSE %{y:.2g}",
        )
    figure.add_hline(baseline, line={"color": "#009E73", "dash": "dash", "width": 1})
    figure.update_xaxes(title="training round")
    figure.update_yaxes(type="log", dtick=1, title="MSE, median (bars: middle 80 %)")
    return _legend_below(figure)


def masking(strongest: pd.DataFrame) -> go.Figure:
    """Draw attack loss at the reconstruction against attack loss at the truth, per batch."""
    figure = go.Figure()
    batches = strongest.drop_duplicates(["quantizer", *OBSERVATION])
    floor = 1e-12
    short = batches["masked"] | batches["unexplained"]
    for name, rows, colour, symbol in (
        ("optimised", batches[~short], "#0072B2", "circle"),
        ("failed to optimise", batches[short], "#D55E00", "x"),
    ):
        figure.add_scatter(
            name=name,
            x=rows["loss_at_truth"].clip(lower=floor).tolist(),
            y=rows["loss_at_guess"].replace(np.inf, np.nan).clip(lower=floor).tolist(),
            text=(rows["quantizer"] + ", " + rows["attack"]).tolist(),
            mode="markers",
            marker={"color": colour, "symbol": symbol, "size": 7, "opacity": 0.7},
            hovertemplate="%{text}<br>at truth %{x:.2g}, at reconstruction %{y:.2g}",
        )
    ends = [floor, float(max(1, batches["loss_at_truth"].max()))] if len(batches) else []
    figure.add_scatter(
        name="equal", x=ends, y=ends, mode="lines", line={"color": "#888888", "dash": "dot"}
    )
    figure.update_xaxes(type="log", title="attack loss at the truth (log)")
    figure.update_yaxes(type="log", title="at the reconstruction (log)")
    return _legend_below(figure)


def labels(results: pd.DataFrame) -> go.Figure:
    """Draw the share of recovered labels, per quantizer."""
    shown = results.dropna(subset=["label_accuracy"])
    figure = go.Figure()
    figure.add_bar(
        name="strongest attack",
        x=(100 * shown["label_accuracy"]).tolist(),
        y=shown["quantizer"].tolist(),
        orientation="h",
        marker={"color": "#0072B2"},
        hovertemplate="%{y}: %{x:.0f} %<extra></extra>",
    )
    figure.add_scatter(
        name="chance",
        mode="markers",
        x=(100 * shown["label_chance"]).tolist(),
        y=shown["quantizer"].tolist(),
        marker={"symbol": "line-ns", "size": 18, "line": {"width": 3, "color": "#D55E00"}},
        hovertemplate="chance: %{x:.2g} %<extra></extra>",
    )
    figure.update_xaxes(title="labels recovered (%)", range=[0, 100])
    return _upright_names(figure, len(shown))


def clients(strongest: pd.DataFrame) -> go.Figure:
    """Draw each client's median error under the strongest attack, per quantizer."""
    median_of = strongest.groupby(["quantizer", "partition"], sort=False)["mse"].median()
    table = median_of.unstack().sort_index(axis=1)
    table = table.loc[list(dict.fromkeys(strongest["quantizer"]))]
    values = np.log10(table.clip(lower=VISIBLE_MSE).to_numpy(dtype=np.float64))
    figure = go.Figure()
    figure.add_heatmap(
        z=[[None if np.isnan(v) else v for v in row] for row in values.tolist()],
        x=[f"client {partition}" for partition in table.columns],
        y=table.index.tolist(),
        colorscale="Cividis",
        colorbar={"title": {"text": "log₁₀ MSE"}},
        hovertemplate="%{y}, %{x}: log₁₀ MSE %{z:.1f}<extra></extra>",
    )
    return _upright_names(figure, len(table))


def _across(
    metric: CurveMetric,
    points: pd.DataFrame,
    front: pd.DataFrame,
    groups: Sequence[pd.DataFrame],
    scores: pd.DataFrame,
    baselines: pd.DataFrame,
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the changes when a metric is chosen."""
    scale = 100.0 if metric.column == "identified_rate" else 1.0
    least = VISIBLE_MSE if metric.log else -np.inf

    def shown(values: "pd.Series[float]") -> list[float]:
        return (scale * values).clip(lower=least).tolist()

    naive = _naive(metric, points, scores)
    apart = naive != points[metric.column]  # else an arrow would be only its head
    arrows = _interleave(shown(naive.where(apart)), shown(points[metric.column].where(apart)))
    bar = _best_featureless(metric, baselines)
    x = [arrows, shown(pd.Series([bar, bar])), shown(front[metric.column])]
    x += [shown(group[metric.column]) for group in groups]
    x += [_interleave(shown(points[metric.column]), shown(points[metric.best or metric.column]))]
    restyle: dict[str, Any] = {
        "x": x,
        "error_x.array": [[]] * 3,
        "error_x.arrayminus": [[]] * 3,
        "error_x.thickness": 1,
    }
    for group in groups:
        centre = np.array(shown(group[metric.column]))
        high = np.array(shown(group[f"{metric.column}_high"])) - centre
        low = centre - np.array(shown(group[f"{metric.column}_low"]))
        restyle["error_x.array"] = [*restyle["error_x.array"], np.nan_to_num(high).tolist()]
        restyle["error_x.arrayminus"] = [
            *restyle["error_x.arrayminus"],
            np.nan_to_num(low).tolist(),
        ]
    for name in ("error_x.array", "error_x.arrayminus"):
        restyle[name] = [*restyle[name], []]
    # For every metric, further to the right is more private.
    relayout = {
        "xaxis.title.text": f"{metric.title} (→ less recovered)",
        "xaxis.type": "log" if metric.log else "linear",
        "xaxis.dtick": 1 if metric.log else None,
        "xaxis.autorange": "reversed" if metric.better_high else True,
    }
    return restyle, relayout


def _up(
    column: str,
    title: str,
    log: bool,
    points: pd.DataFrame,
    front: pd.DataFrame,
    groups: Sequence[pd.DataFrame],
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the changes when a vertical axis is chosen."""
    accuracy = column == "test_accuracy_mean"
    scale = 100.0 if accuracy else 1.0

    def shown(frame: pd.DataFrame) -> list[float]:
        return (scale * frame[column]).tolist()

    y = shown(points)
    ends = [min(y), max(y)] if y else []
    restyle: dict[str, Any] = {
        "y": [_interleave(y, y), ends, shown(front), *map(shown, groups), _interleave(y, y)],
        "error_y.thickness": 1,
    }
    for name, end in (("array", "high"), ("arrayminus", "low")):
        distances = [
            (scale * (group[f"{column}_{end}"] - group[column]).abs().fillna(0)).tolist()
            if accuracy
            else []
            for group in groups
        ]
        restyle[f"error_y.{name}"] = [[], [], [], *distances, []]
    relayout = {
        "yaxis.title.text": title + (" (log)" if log else ""),
        "yaxis.type": "log" if log else "linear",
        "yaxis.tickformat": "," if log else "",
        "yaxis.dtick": 1 if log else None,
        "yaxis.autorange": True,
    }
    return restyle, relayout


def _marker_sizes(
    points: pd.DataFrame, front: pd.DataFrame, groups: Sequence[pd.DataFrame], column: str
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the changes when a marker size is chosen: diameters in pixels."""
    diameters = 2.4 * np.sqrt(marker_areas(points[column]))
    sizes = [diameters[group.index].tolist() for group in groups]
    return {"marker.size": [9, 1, (diameters[front.index] + 9).tolist(), *sizes, 1]}, {}


def _naive(metric: CurveMetric, points: pd.DataFrame, scores: pd.DataFrame) -> "pd.Series[float]":
    """Return the metric under each quantizer's weakest attack."""
    of_attack = scores.groupby(["quantizer", "attack"])[metric.score]
    values = of_attack.agg(lambda s: float(metric.statistic(s.to_numpy(dtype=np.float64))))
    keys = zip(points["quantizer"], points["naive_attack"], strict=True)
    return pd.Series([values.get(key, np.nan) for key in keys], dtype="float64")


def _best_featureless(metric: CurveMetric, baselines: pd.DataFrame) -> float:
    if baselines.empty:
        return float("nan")
    featureless = baselines[baselines["baseline"].isin(FEATURELESS)]
    values = [
        float(metric.statistic(group.to_numpy(dtype=np.float64)))
        for _, group in featureless.groupby("baseline")[metric.score]
    ]
    return max(values) if metric.better_high else min(values)


def _hover(row: "pd.Series") -> str:
    lines = [
        f"<b>{row['quantizer']}</b>: {starred(row)}",
        f"accuracy {100 * row['test_accuracy_mean']:.1f} %",
        f"{row['uplink_bytes_per_update']:,.0f} bytes, "
        f"{row['bits_per_parameter']:.2f} bits a parameter",
        f"MSE {row['mse_median']:.2g} (most exposed tenth {row['mse_p10']:.2g})",
        f"PSNR {row['psnr_median']:.1f} dB (best known {row['psnr_best_known']:.1f}), "
        f"SSIM {row['ssim_median']:.2f}",
        f"identified {row['identified_rate']:.0%} (chance {percent(row['identified_chance'])})",
        f"labels {row['label_accuracy']:.0%} (chance {percent(row['label_chance'])})",
        f"strongest attack: {row['strongest_attack']}",
    ]
    if row["doubt"]:
        lines.append(f"not established: {row['doubt']}")
    return "<br>".join(lines)


def _apply(figure: go.Figure, restyle: dict[str, Any], relayout: dict[str, Any]) -> None:
    """Apply one switch in Python, as ``Plotly.update`` does in the browser."""
    for path, values in restyle.items():
        for number, trace in enumerate(figure.data):
            trace[path] = values[number] if isinstance(values, list) else values
    for path, value in relayout.items():
        figure.layout[path] = value


def _by_quantizer(frame: pd.DataFrame) -> Iterable[tuple[str, pd.DataFrame]]:
    for name in dict.fromkeys(frame["quantizer"]):
        yield str(name), frame[frame["quantizer"] == name]


def _line(number: int) -> dict[str, Any]:
    dash = _DASHES[number // len(_COLOURS) % len(_DASHES)]
    return {"color": _COLOURS[number % len(_COLOURS)], "dash": dash, "width": 2}


def _interleave(starts: Sequence[float], ends: Sequence[float]) -> list[float | None]:
    """Return start, end, gap, start, end, gap, ...: separate segments of one line trace."""
    return [value for pair in zip(starts, ends, strict=True) for value in (*pair, None)]


def _legend_below(figure: go.Figure) -> go.Figure:
    figure.update_layout(
        height=figure.layout.height or 400,
        legend={"orientation": "h", "yanchor": "top", "y": -0.2, "x": 0},
        margin={"l": 60, "r": 20, "t": 30, "b": 60},
    )
    figure.update_xaxes(exponentformat="power", automargin=True)
    figure.update_yaxes(exponentformat="power", automargin=True)
    return figure


def _upright_names(figure: go.Figure, count: int) -> go.Figure:
    figure.update_yaxes(autorange="reversed", automargin=True)
    figure.update_layout(height=150 + 24 * count, margin={"l": 20, "r": 20, "t": 20, "b": 60})
    return figure
