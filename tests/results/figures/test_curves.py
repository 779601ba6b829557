from itertools import combinations

import numpy as np
import pandas as pd
import pytest
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.text import Annotation, Text
from PIL import Image

from results.figures import curves
from results.figures.curves import VISIBLE_MSE, draw_curve, marker_areas
from results.figures.panels import COLUMN_WIDTH
from results.figures.styles import FILLS, family_styles
from results.scores.families import with_families

LONE = ("none", "sign", "fp16", "bf16", "terngrad", "natural", "scaled_sign", "drive")
SWEPT = ("uniform:bits", "topk:keep=0.1+eden:bits", "gaussian:sigma", "qsgd:norm=l2,levels")


def results_of(count: int, seed: int = 0) -> pd.DataFrame:
    """Quantizers without a family, then points of `SWEPT` in turn."""
    swept = [f"{name}={k + 1}" for k in range(count) for name in SWEPT]
    rng = np.random.default_rng(seed)
    mse = 10 ** rng.uniform(-8, -0.5, count)
    return pd.DataFrame(
        {
            "quantizer": [*LONE, *swept][:count],
            "test_accuracy_mean": (accuracy := rng.uniform(0.7, 0.95, count)),
            "test_accuracy_mean_low": accuracy - 0.01,
            "test_accuracy_mean_high": accuracy + 0.02,
            "test_accuracy_std": rng.uniform(0, 0.03, count),
            "mse_median": mse,
            "mse_median_low": mse / 2,
            "mse_median_high": mse * 2,
            "naive_mse_median": mse * rng.choice([1.0, 10.0], count),
            "mse_best_known": mse * rng.choice([1.0, 0.3], count),
            "mse_bound": np.where(np.arange(count) % 5 == 4, mse / 3, np.nan),
            "baseline_mse": 0.05,
            "uplink_bytes_per_update": 10 ** rng.uniform(3, 4.5, count),
            "established": rng.random(count) > 0.5,
            "verdict": rng.choice(list(FILLS), count),
            "server": "curious",
            "aggregation": "plain",
            "pareto": rng.random(count) > 0.7,
        }
    )


@pytest.fixture
def drawn(monkeypatch, tmp_path):
    """Draw a curve and return the axes it was drawn on."""

    def draw(results: pd.DataFrame) -> Axes:
        figures: list[Figure] = []
        save = curves.save_figure
        monkeypatch.setattr(
            curves, "save_figure", lambda figure, path: (figures.append(figure), save(figure, path))
        )
        draw_curve(results, tmp_path / "curve.png")
        return figures[0].axes[0]

    return draw


def markers_of(axes: Axes) -> list[Line2D]:
    """Return the points, without rings and lines."""
    return [one for one in axes.lines if one.get_marker() != "None" and one.get_zorder() == 4]


def shown(axes: Axes) -> list[str]:
    return [text.get_text() for text in axes.texts if text.get_text() not in ("", "*")]


def test_every_quantizer_is_a_point_with_bars_in_both_directions(drawn):
    results = results_of(6)
    axes = drawn(results)
    assert shown(axes) == list(results["quantizer"])
    points = markers_of(axes)
    assert [one.get_xdata()[0] for one in points] == pytest.approx(
        results["mse_median"].clip(lower=VISIBLE_MSE)
    )
    assert [one.get_ydata()[0] for one in points] == pytest.approx(
        100 * results["test_accuracy_mean"]
    )
    assert len(axes.containers) == 6
    assert all(bar.has_xerr and bar.has_yerr for bar in axes.containers)
    up = axes.containers[0].lines[2][1].get_segments()[0][:, 1]
    assert up == pytest.approx(100 * (results["test_accuracy_mean"][0] + np.array([-0.01, 0.02])))
    assert axes.get_xscale() == "log"
    assert "MSE" in axes.get_xlabel()
    assert "%" in axes.get_ylabel()


def test_a_family_is_one_line_through_its_parameters_with_its_ends_labelled(drawn):
    results = results_of(20)[8:].sample(frac=1, random_state=0)  # four families of three
    axes = drawn(results)
    lines = [one for one in axes.lines if len(one.get_xdata()) == 3]
    assert len(lines) == len(SWEPT)
    assert sorted(shown(axes)) == ["1"] * 4 + ["3"] * 4
    assert len({one.get_color() for one in lines}) == 4
    assert len({one.get_marker() for one in markers_of(axes)}) == 4
    uniform = results[results["quantizer"].str.startswith("uniform")].sort_values("quantizer")
    assert any(list(one.get_xdata()) == list(uniform["mse_median"]) for one in lines)
    legend = [text.get_text() for text in axes.figure.legends[0].get_texts()]
    assert set(legend[:4]) == set(SWEPT)


def test_styles_of_families_differ_in_colour_and_in_grey():
    specs = [f"topk:keep={k}+uniform:bits={b}" for k in range(1, 13) for b in range(1, 14)]
    styles = family_styles(with_families(pd.DataFrame({"quantizer": specs})))
    assert len(styles) == 12
    assert len({(style.marker, style.dash) for style in styles.values()}) == 12
    assert len({(style.symbol, style.colour) for style in styles.values()}) == 12


def test_the_baseline_is_a_line_and_a_fill_tells_the_verdict(drawn):
    results = results_of(8).assign(established=[True, False] * 4, verdict=[*FILLS, *FILLS][:8])
    axes = drawn(results)
    assert any(list(line.get_xdata()) == [0.05, 0.05] for line in axes.lines)
    assert [one.get_fillstyle() for one in markers_of(axes)] == [*FILLS.values(), *FILLS.values()][
        :8
    ]
    stars = [text.xy[0] for text in axes.texts if text.get_text() == "*"]
    unsure = results[~results["established"] & (results["verdict"] != "bounded")]
    assert stars == pytest.approx(unsure["mse_median"].clip(lower=VISIBLE_MSE))


def test_a_tick_is_the_bound_on_the_mean_error(drawn):
    results = results_of(6)
    ticks = [line for line in drawn(results).lines if line.get_marker() == "|"]
    bound = results["mse_bound"].dropna().clip(lower=VISIBLE_MSE)
    assert [tick.get_xdata()[0] for tick in ticks] == pytest.approx(bound)


def test_each_value_of_an_axis_has_a_panel_and_the_same_scales(drawn):
    results = pd.concat([results_of(16).assign(batch_size=size) for size in (1, 4, 16, 64)])
    results.insert(0, "batch_size", results.pop("batch_size"))
    axes = drawn(results)
    every = axes.figure.axes
    assert [one.get_title() for one in every] == [f"batch_size = {n}" for n in (1, 4, 16, 64)]
    assert len({one.get_xlim() for one in every}) == len({one.get_ylim() for one in every}) == 1
    assert all(len(markers_of(one)) == 16 for one in every)
    assert len(axes.figure.legends) == 1


@pytest.mark.parametrize(("count", "columns"), [(1, 1), (2, 2), (3, 3), (4, 2), (5, 3), (6, 3)])
def test_panels_stand_in_rows_without_a_lonely_one(drawn, count, columns):
    results = pd.concat([results_of(2).assign(seeds=number) for number in range(count)])
    results.insert(0, "seeds", results.pop("seeds"))
    every = drawn(results).figure.axes
    assert len({round(one.get_position().x0, 6) for one in every}) == columns


def test_names_too_long_for_a_panel_stand_in_the_legend(drawn):
    name = "clip:norm=0.5+topk:keep=0.1+uniform:bits=2"
    results = results_of(2).assign(quantizer=["none", name])
    assert shown(drawn(results)) == ["none", name]
    panels = pd.concat([results.assign(batch_size=size) for size in (1, 8)])
    panels.insert(0, "batch_size", panels.pop("batch_size"))
    figure = drawn(panels).figure
    assert [shown(axes) for axes in figure.axes] == [["none", "q1"]] * 2
    assert f"q1: {name}" in [text.get_text() for text in figure.legends[0].get_texts()]
    renderer = FigureCanvasAgg(figure).get_renderer()
    assert figure.legends[0].get_window_extent(renderer).x1 <= figure.bbox.x1


def test_one_panel_is_as_wide_as_a_column_of_a_paper(drawn):
    figure = drawn(results_of(16)).figure
    assert 2.54 * figure.get_figwidth() == pytest.approx(COLUMN_WIDTH)
    renderer = FigureCanvasAgg(figure).get_renderer()
    axes, legend = figure.axes[0], figure.legends[0].get_window_extent(renderer)
    assert legend.x1 <= figure.bbox.x1
    assert legend.y1 <= axes.xaxis.label.get_window_extent(renderer).y0 + 1
    assert axes.xaxis.label.get_window_extent(renderer).x1 <= figure.bbox.x1
    assert figure.texts[0].get_window_extent(renderer).y1 <= legend.y0


def test_an_arrow_leads_from_the_naive_attack_to_the_strongest(drawn):
    results = results_of(2).assign(mse_median=0.01, naive_mse_median=[0.2, 0.01])
    axes = drawn(results)
    arrows = [text for text in axes.texts if isinstance(text, Annotation) and not text.get_text()]
    assert [(arrow.xy[0], arrow.xyann[0]) for arrow in arrows] == [(0.01, 0.2)]


def test_a_pale_bar_leads_from_the_strongest_attack_to_the_best_guess(drawn):
    results = results_of(2).assign(mse_median=0.01, mse_best_known=[0.004, 0.01])
    axes = drawn(results)
    bars = [line for line in axes.lines if line.get_alpha() == curves._BEST_STYLE["alpha"]]
    assert [tuple(bar.get_xdata()) for bar in bars] == [(0.004, 0.01), (0.01, 0.01)]


@pytest.mark.parametrize("count", [8, 28])
def test_labels_do_not_overlap(drawn, count):
    axes = drawn(results_of(count, seed=3))
    renderer = FigureCanvasAgg(axes.figure).get_renderer()
    boxes = [
        text.get_window_extent(renderer)
        for text in axes.texts
        if isinstance(text, Text) and text.get_text() not in ("", "*")
    ]
    assert len(boxes) == 8 * (1 if count == 8 else 2)
    for one, other in combinations(boxes, 2):
        overlap = one.intersection(one, other)
        assert overlap is None or min(overlap.width, overlap.height) < 2  # pixels


@pytest.mark.parametrize("decades", [0.3, 1.3, 3])
def test_the_labels_of_the_error_axis_do_not_overlap(drawn, decades):
    results = results_of(6)
    results["mse_median"] = results["naive_mse_median"] = results["mse_best_known"] = (
        0.03 * np.logspace(0, decades / 2, 6)
    )
    results["mse_median_low"], results["mse_median_high"] = 0.03, 0.03 * 10 ** (decades / 2)
    axes = drawn(results)
    renderer = FigureCanvasAgg(axes.figure).get_renderer()
    least, most = axes.get_xlim()
    ticks = [*axes.xaxis.get_major_ticks(), *axes.xaxis.get_minor_ticks()]
    boxes = [
        tick.label1.get_window_extent(renderer)
        for tick in ticks
        if least <= tick.get_loc() <= most and tick.label1.get_text()
    ]
    assert len(boxes) >= 2
    assert not any(one.overlaps(other) for one, other in combinations(boxes, 2))


def test_marker_areas_grow_with_the_logarithm_of_the_bytes():
    areas = marker_areas(pd.Series([100.0, 1000.0, 10000.0]))
    assert areas[1] - areas[0] == pytest.approx(areas[2] - areas[1])
    assert areas[0] > 0
    assert marker_areas(pd.Series([500.0, 500.0])).nunique() == 1


@pytest.mark.parametrize("count", [0, 1])
def test_an_empty_and_a_single_result_are_drawn(tmp_path, count):
    draw_curve(results_of(count), tmp_path / "curve.png")
    with Image.open(tmp_path / "curve.png") as image:
        assert image.width == pytest.approx(300 * COLUMN_WIDTH / 2.54, abs=1)


def test_points_without_accuracy_or_attack_are_left_out(drawn):
    results = results_of(3)
    results.loc[0, "mse_median"] = np.nan
    results.loc[1, "test_accuracy_mean"] = np.nan
    axes = drawn(results)
    assert shown(axes) == ["fp16"]


@pytest.mark.parametrize("kind", ["png", "svg", "pdf"])
def test_every_format_is_written_and_the_same_twice(tmp_path, kind):
    for name in ("a", "b"):
        draw_curve(results_of(4), tmp_path / f"{name}.{kind}")
    first = (tmp_path / f"a.{kind}").read_bytes()
    assert len(first) > 5000
    assert first == (tmp_path / f"b.{kind}").read_bytes()
