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
    scores = study(NONE, SIGN.assign(mse_best_known=0.05), weak)
    trained = history(none=[0.9, 0.8], sign=[0.8, 0.7])
    baselines = BASELINES.assign(psnr=[7.0, 10.0, 20.0], ssim=0.1, identified=0.0)
    return charts.curve(table(scores, trained), scores, baselines)


def trace(figure, name):
    return next(one for one in figure.data if one.name == name)


def test_the_curve_starts_with_the_first_option_of_every_switch(made):
    figure, _ = made
    alone = trace(figure, "other quantizers")
    assert list(alone.x) == [pytest.approx(1e-6), pytest.approx(0.2)]
    assert list(alone.y) == [pytest.approx(85), pytest.approx(75)]
    assert list(alone.marker.symbol) == ["circle", "circle-open"]  # leaks, nothing found
    assert list(trace(figure, "best featureless image").x) == [0.1, 0.1]
    assert figure.layout.xaxis.type == "log"
    assert "MSE" in figure.layout.xaxis.title.text
    assert figure.layout.yaxis.title.text == "test accuracy (%)"
    assert alone.customdata[1][0] == "sign"
    assert list(alone.error_y.array) == [pytest.approx(5)] * 2
    assert list(alone.error_y.arrayminus) == [pytest.approx(5)] * 2


def test_arrows_start_at_the_weakest_attack(made):
    arrows = trace(made[0], "weakest attack → strongest")
    assert list(arrows.x[3:5]) == [pytest.approx(0.5), pytest.approx(0.2)]
    assert np.isnan(arrows.x[:2]).all()  # one attack alone
    assert arrows.x[2] is None
    assert list(arrows.y[3:5]) == [pytest.approx(75)] * 2


def test_a_pale_bar_leads_from_the_strongest_attack_to_the_best_guess(made):
    figure, switches = made
    bar = trace(figure, "strongest attack → best guess (by the truth)")
    assert list(bar.x[3:5]) == [pytest.approx(0.2), pytest.approx(0.05)]
    restyle, _ = switches["metric"]["PSNR (dB), median victim"]
    assert restyle["x"][-1][4] == pytest.approx(-10 * np.log10(0.05))
    restyle, _ = switches["metric"]["SSIM, median victim"]  # nothing is best known of it
    assert restyle["x"][-1][3] == restyle["x"][-1][4]


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
    assert restyle["x"][3] == [100, 0]


def test_hollow_points_with_a_star_are_not_established():
    scores = study(NONE, SIGN.assign(masked=True))
    baselines = BASELINES.assign(psnr=7.0, ssim=0.1, identified=0.0)
    results = table(scores, history(none=[0.9], sign=[0.8]))
    alone = trace(charts.curve(results, scores, baselines)[0], "other quantizers")
    assert list(alone.marker.symbol) == ["circle", "circle-open"]
    assert list(alone.text) == ["none", "sign*"]
    assert "failed to optimise" in alone.hovertext[1]


def test_a_leak_that_is_not_established_has_a_star():
    half = pd.concat([SIGN.assign(recovered=True)[:6], SIGN.assign(masked=True)[6:]])
    scores = study(NONE, half)
    baselines = BASELINES.assign(psnr=7.0, ssim=0.1, identified=0.0)
    results = table(scores, history(none=[0.9], sign=[0.8]))
    alone = trace(charts.curve(results, scores, baselines)[0], "other quantizers")
    assert list(alone.text) == ["none", "sign*"]
    assert [text.split("<br>")[0] for text in alone.hovertext] == [
        "<b>none</b>: leaks",
        "<b>sign</b>: leaks*",
    ]


def test_a_family_is_a_trace_of_its_own_in_the_order_of_its_parameters():
    names = ["uniform:bits=8", "none", "uniform:bits=2"]
    scores = study(
        *(score_rows(name, "a", [0.01 * k] * 11, 0.5) for k, name in enumerate(names, 1))
    )
    trained = history(**{name: [0.9, 0.8] for name in names})
    baselines = BASELINES.assign(psnr=7.0, ssim=0.1, identified=0.0)
    figure, switches = charts.curve(table(scores, trained), scores, baselines)
    families = [one for one in figure.data if one.meta == "family"]
    assert [one.name for one in families] == ["uniform:bits", "other quantizers"]
    assert "lines" in families[0].mode
    assert "lines" not in families[1].mode
    assert list(families[0].x) == [pytest.approx(0.03), pytest.approx(0.01)]
    assert [one for (one,) in families[0].customdata] == ["uniform:bits=2", "uniform:bits=8"]
    restyle, _ = switches["metric"]["PSNR (dB), median victim"]
    assert restyle["x"][3] == [pytest.approx(-10 * np.log10(0.03)), pytest.approx(20)]


def test_training_counts_the_bytes_one_client_sent():
    figure = charts.training(history(none=[0.5, 0.7]))
    line = figure.data[0]
    assert list(line.x) == [4000, 8000]  # 4,000 an update, one update of a client a round
    assert list(line.y) == [pytest.approx(63), pytest.approx(60)]


def test_training_leaves_out_rounds_whose_model_was_not_tested():
    trained = history(none=[0.5, 0.7])
    trained.loc[trained["round"] == 1, "accuracy"] = float("nan")
    line = charts.training(trained).data[0]
    assert list(line.x) == [8000]
    assert list(line.y) == [pytest.approx(60)]


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
    alone = trace(made[0], "other quantizers")
    sides = [side for _, side in sorted(zip(alone.x, alone.textposition, strict=True))]
    assert sides[0].endswith("right")
    assert sides[-1].endswith("left")
