"""What a setting does to privacy: the lines and marks that are drawn."""

from pathlib import Path

import pandas as pd
import pytest

from results.figures.by_setting import MOST_PSNR, by_setting_figure, draw_by_setting


def results_of(**columns):
    """Two quantizers at two batch sizes; ``none`` recovers less from larger batches."""
    table = pd.DataFrame(
        {
            "batch_size": [1, 1, 32, 32],
            "quantizer": ["none", "sign"] * 2,
            "psnr_median": [90.0, 20.0, 30.0, 12.0],
            "psnr_median_low": [80.0, 18.0, 29.0, 11.0],
            "psnr_median_high": [95.0, 22.0, 31.0, 13.0],
            "baseline_mse": [0.1, 0.1, 0.01, 0.01],
            "verdict": ["leaks", "leaks", "partly leaks", "nothing found"],
            "established": [True, True, True, False],
            "server": "curious",
            "aggregation": "plain",
        }
    )
    for place, (name, values) in enumerate(columns.items()):
        table.insert(place, name, values)
    return table


def lines(axes):
    """Return the places of each quantizer's line."""
    return [
        ([round(float(x)) for x in line.get_xdata()], [float(y) for y in line.get_ydata()])
        for line in axes.lines
        if len(line.get_xdata()) > 1
    ]


def test_each_quantizer_is_a_line_over_the_values_in_the_order_of_the_study():
    (axes,) = by_setting_figure(results_of(), "batch_size").axes
    assert [label.get_text() for label in axes.get_xticklabels()] == ["1", "32"]
    none, sign = lines(axes)
    assert none == ([0, 1], [MOST_PSNR, 30.0])
    assert sign == ([0, 1], [20.0, 12.0])
    assert [text.get_text() for text in axes.texts] == ["*"]


@pytest.mark.parametrize("count", [1, 2])
def test_every_value_has_the_line_of_its_featureless_image(count):
    results = results_of()
    (axes,) = by_setting_figure(results[: 2 * count], "batch_size").axes
    ends = [one.tolist() for one in axes.collections[0].get_segments()]
    assert ends == [[[k - 0.3, y], [k + 0.3, y]] for k, y in ((0, 10.0), (1, 20.0))][:count]


def test_other_settings_have_a_panel_each_and_a_quantizer_looks_the_same_in_all():
    twice = pd.concat([results_of(round=1), results_of(round=2)], ignore_index=True)
    without = twice.drop(index=[4, 6])  # of round 2 only sign
    first, second = by_setting_figure(without, "batch_size").axes
    assert [axes.get_title() for axes in (first, second)] == ["round = 1", "round = 2"]
    colours = [{line.get_color() for line in axes.lines} for axes in (first, second)]
    assert colours[1] < colours[0]
    assert first.get_ylim() == second.get_ylim()


def test_a_path_is_shown_by_its_stem_and_an_absent_one_as_none():
    weights = ["", "", Path("/somewhere/net.safetensors"), Path("/somewhere/net.safetensors")]
    results = results_of(initial_weights=weights).assign(batch_size=1)
    (axes,) = by_setting_figure(results, "initial_weights").axes
    assert [label.get_text() for label in axes.get_xticklabels()] == ["none", "net"]


def test_files_of_the_same_name_are_told_apart():
    files = [Path("/one/net.safetensors")] * 2 + [Path("/other/net.safetensors")] * 2
    results = results_of(initial_weights=files).assign(batch_size=1)
    (axes,) = by_setting_figure(results, "initial_weights").axes
    assert [label.get_text() for label in axes.get_xticklabels()] == list(map(str, files[::2]))


def test_rows_that_were_not_attacked_are_left_out(tmp_path):
    results = results_of()
    results.loc[1, "psnr_median"] = None
    (axes,) = by_setting_figure(results, "batch_size").axes
    assert lines(axes) == [([0, 1], [MOST_PSNR, 30.0])]
    results["psnr_median"] = float("nan")
    draw_by_setting(results, "batch_size", tmp_path / "empty.png")
    assert (tmp_path / "empty.png").read_bytes().startswith(b"\x89PNG")


def test_an_unknown_setting_is_named():
    with pytest.raises(KeyError, match="alpha"):
        by_setting_figure(results_of(), "alpha")
