from itertools import combinations

import numpy as np
import pandas as pd
import pytest
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import PathCollection
from matplotlib.figure import Figure
from matplotlib.text import Annotation, Text
from PIL import Image

from results.figures import curves
from results.figures.curves import VERDICT_STYLE, VISIBLE_MSE, draw_curve, marker_areas


def results_of(count: int, seed: int = 0) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    mse = 10 ** rng.uniform(-8, -0.5, count)
    return pd.DataFrame(
        {
            "server": "curious",
            "quantizer": [f"stochastic:bits={k}" for k in range(count)],
            "test_accuracy_mean": rng.uniform(0.7, 0.95, count),
            "test_accuracy_std": rng.uniform(0, 0.03, count),
            "mse_median": mse,
            "mse_median_low": mse / 2,
            "mse_median_high": mse * 2,
            "naive_mse_median": mse * rng.choice([1.0, 10.0], count),
            "baseline_mse": 0.05,
            "uplink_bytes_per_update": 10 ** rng.uniform(3, 4.5, count),
            "established": rng.random(count) > 0.5,
            "verdict": rng.choice(list(VERDICT_STYLE), count),
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


def scatters_of(axes: Axes) -> list[PathCollection]:
    return [made for made in axes.collections if isinstance(made, PathCollection)]


def test_every_quantizer_is_a_labelled_point_with_bars_in_both_directions(drawn):
    results = results_of(6)
    axes = drawn(results)
    labels = [text.get_text() for text in axes.texts if text.get_text()]
    assert labels == list(results["quantizer"])
    points = np.array([scatter.get_offsets()[0] for scatter in scatters_of(axes)])
    assert points[:, 0] == pytest.approx(results["mse_median"].clip(lower=VISIBLE_MSE))
    assert points[:, 1] == pytest.approx(100 * results["test_accuracy_mean"])
    assert len(axes.containers) == 6
    assert all(bar.has_xerr and bar.has_yerr for bar in axes.containers)
    assert axes.get_xscale() == "log"
    assert "MSE" in axes.get_xlabel()
    assert "%" in axes.get_ylabel()


def test_the_baseline_is_a_line_and_doubt_is_hollow(drawn):
    results = results_of(8).assign(established=[True, False] * 4)
    axes = drawn(results)
    assert any(list(line.get_xdata()) == [0.05, 0.05] for line in axes.lines)
    scatters = scatters_of(axes)
    hollow = [tuple(s.get_facecolor()[0][:3]) == (1, 1, 1) for s in scatters]
    assert hollow == [False, True] * 4


def test_an_arrow_leads_from_the_naive_attack_to_the_strongest(drawn):
    results = results_of(2).assign(mse_median=0.01, naive_mse_median=[0.2, 0.01])
    axes = drawn(results)
    arrows = [text for text in axes.texts if isinstance(text, Annotation) and not text.get_text()]
    assert [(arrow.xy[0], arrow.xyann[0]) for arrow in arrows] == [(0.01, 0.2)]


@pytest.mark.parametrize("count", [7, 20])
def test_labels_do_not_overlap(drawn, count):
    axes = drawn(results_of(count, seed=3))
    renderer = FigureCanvasAgg(axes.figure).get_renderer()
    boxes = [
        text.get_window_extent(renderer)
        for text in axes.texts
        if isinstance(text, Text) and text.get_text()
    ]
    assert len(boxes) == count
    for one, other in combinations(boxes, 2):
        overlap = one.intersection(one, other)
        assert overlap is None or min(overlap.width, overlap.height) < 2  # pixels


@pytest.mark.parametrize("decades", [0.3, 1.3, 3])
def test_the_labels_of_the_error_axis_do_not_overlap(drawn, decades):
    results = results_of(6)
    results["mse_median"] = results["naive_mse_median"] = 0.03 * np.logspace(0, decades / 2, 6)
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
        assert image.width > 800


def test_points_without_accuracy_or_attack_are_left_out(drawn):
    results = results_of(3)
    results.loc[0, "mse_median"] = np.nan
    results.loc[1, "test_accuracy_mean"] = np.nan
    axes = drawn(results)
    assert [text.get_text() for text in axes.texts if text.get_text()] == ["stochastic:bits=2"]


@pytest.mark.parametrize("kind", ["png", "svg", "pdf"])
def test_every_format_is_written_and_the_same_twice(tmp_path, kind):
    for name in ("a", "b"):
        draw_curve(results_of(4), tmp_path / f"{name}.{kind}")
    first = (tmp_path / f"a.{kind}").read_bytes()
    assert len(first) > 5000
    assert first == (tmp_path / f"b.{kind}").read_bytes()
