import numpy as np
import pandas as pd
import pytest

from results.figures import charts
from results.reading.run_reader import RunReader
from tests.results.tables.table_cases import (
    BASELINES,
    NONE,
    SIGN,
    history,
    score_rows,
    study,
    table,
)


@pytest.fixture
def made():
    weak = score_rows("sign", "weak", [0.5] * 11, 0.9).assign(psnr=3.0)
    scores = study(NONE, SIGN, weak)
    trained = history(none=[0.9, 0.8], sign=[0.8, 0.7])
    baselines = BASELINES.assign(psnr=[7.0, 10.0, 20.0], ssim=0.1, identified=0.0)
    return charts.curve(table(scores, trained), scores, baselines)


def trace(figure, name):
    return next(one for one in figure.data if one.name == name)


def test_the_curve_starts_with_the_first_option_of_every_switch(made):
    figure, _ = made
    leaks, hidden = trace(figure, "leaks"), trace(figure, "nothing found")
    assert list(leaks.x) == [pytest.approx(1e-6)]
    assert list(leaks.y) == [pytest.approx(85)]
    assert list(hidden.x) == [pytest.approx(0.2)]
    assert list(trace(figure, "best featureless image").x) == [0.1, 0.1]
    assert figure.layout.xaxis.type == "log"
    assert "MSE" in figure.layout.xaxis.title.text
    assert figure.layout.yaxis.title.text == "test accuracy (%)"
    assert hidden.customdata[0][0] == "sign"
    assert list(hidden.error_y.array) == [pytest.approx(100 * np.std([0.8, 0.7], ddof=1))]


def test_arrows_start_at_the_weakest_attack(made):
    arrows = trace(made[0], "weakest attack → strongest")
    assert list(arrows.x[3:5]) == [pytest.approx(0.5), pytest.approx(0.2)]
    assert arrows.x[2] is None
    assert list(arrows.y[3:5]) == [pytest.approx(75)] * 2


def test_each_switch_restyles_every_trace_and_only_its_own_part(made):
    figure, switches = made
    assert set(switches) == {"metric", "upright", "size"}
    parts = {"metric": ("x", "error_x"), "upright": ("y", "error_y"), "size": ("marker",)}
    for name, options in switches.items():
        for restyle, relayout in options.values():
            assert {path.split(".")[0] for path in restyle} <= set(parts[name])
            for values in restyle.values():
                assert not isinstance(values, list) or len(values) == len(figure.data)
            assert all(path.startswith(f"{parts[name][0]}axis.") for path in relayout)


def test_a_metric_that_rises_with_recovery_runs_the_other_way(made):
    options = made[1]["metric"]
    restyle, relayout = options["PSNR (dB), median victim"]
    assert relayout["xaxis.autorange"] == "reversed"
    assert relayout["xaxis.type"] == "linear"
    assert restyle["x"][1] == [10, 10]  # the best featureless image by PSNR
    restyle, _ = options["victims identified (%)"]
    assert restyle["x"][3] == [100]


def test_hollow_points_are_not_established():
    scores = study(NONE, SIGN.assign(masked=True))
    baselines = BASELINES.assign(psnr=7.0, ssim=0.1, identified=0.0)
    results = table(scores, history(none=[0.9], sign=[0.8]))
    figure, _ = charts.curve(results, scores, baselines)
    assert list(trace(figure, "not established").marker.symbol) == ["triangle-up-open"]
    assert list(trace(figure, "leaks").marker.symbol) == ["circle"]
    assert "failed to optimise" in trace(figure, "not established").hovertext[0]


def test_a_leak_that_is_not_established_has_a_star_and_is_hollow():
    half = pd.concat([SIGN.assign(recovered=True)[:6], SIGN.assign(masked=True)[6:]])
    scores = study(NONE, half)
    baselines = BASELINES.assign(psnr=7.0, ssim=0.1, identified=0.0)
    figure, _ = charts.curve(table(scores, history(none=[0.9], sign=[0.8])), scores, baselines)
    leaks = trace(figure, "leaks")
    assert list(leaks.marker.symbol) == ["circle", "circle-open"]
    assert [text.split("<br>")[0] for text in leaks.hovertext] == [
        "<b>none</b>: leaks",
        "<b>sign</b>: leaks*",
    ]


def test_training_counts_the_bytes_one_client_sent():
    figure = charts.training(history(none=[0.5, 0.7]))
    line = figure.data[0]
    assert list(line.x) == [4000, 8000]  # 4,000 an update, one update of a client a round
    assert list(line.y) == [pytest.approx(63), pytest.approx(60)]


def test_charts_of_a_run(graded_run):
    run = RunReader(graded_run)
    strongest = run.scores[run.scores["strongest"]]
    stages = charts.stages(strongest, 0.07)
    assert [line.name for line in stages.data] == ["none", "uniform:bits=4", "sign"]
    assert list(stages.data[1].x) == [1, 5]
    masking = charts.masking(strongest)
    failed = trace(masking, "failed to optimise")
    assert len(failed.x) == 16  # noise is all that sign got
    assert len(trace(masking, "optimised").x) == 32
    assert (np.array(failed.y) > np.array(failed.x)).all()
    assert list(charts.labels(run.results).data[0].x) == [100, 100, 100]
    assert list(charts.labels(run.results).data[1].x) == pytest.approx(
        100 * run.results["label_chance"]
    )
    clients = charts.clients(strongest).data[0]
    assert np.array(clients.z).shape == (3, 4)
    assert list(clients.y) == ["none", "uniform:bits=4", "sign"]
    assert (np.array(clients.z[0]) == -6).all()


def test_an_empty_study_has_an_empty_curve():
    scores = NONE.iloc[:0].assign(strongest=False)
    empty = table(scores, history(none=[0.9]), "none")
    figure, switches = charts.curve(empty, scores, pd.DataFrame())
    assert figure.layout.annotations[0].text == "nothing attacked yet"
    assert len(switches["metric"]) == 5


def test_labels_of_the_points_furthest_right_are_to_their_left(made):
    figure, _ = made
    places = {
        text: (x, side)
        for one in figure.data
        if one.text is not None
        for text, x, side in zip(one.text, one.x, one.textposition, strict=True)
    }
    last = max(places.values())
    assert last[1].endswith("left")
    assert min(places.values())[1].endswith("right")
