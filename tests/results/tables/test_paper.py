from results.tables.paper import paper_table
from tests.results.tables.table_cases import NONE, SIGN, history, study, table


def test_the_table_of_a_paper_has_intervals_axes_and_stars():
    made = table(study(NONE, SIGN.assign(masked=True)), history(none=[0.9], sign=[0.8]))
    made.insert(0, "local_steps", 5)
    shown = paper_table(made).set_index("quantizer")
    assert list(shown["local_steps"]) == ["5", "5"]
    low, high = made.loc[1, ["mse_median_low", "mse_median_high"]]
    assert shown.loc["sign", "MSE, median"] == f"0.2 [{low:.2g}, {high:.2g}]"
    assert shown.loc["sign", "test %"] == "80.0"  # one seed has no interval
    assert shown.loc["sign", "points to none"] == "-10.0"
    assert shown.loc["sign", "p (Holm)"] == f"{2 / 2**11:.2g}"
    assert list(shown["Pareto"]) == ["yes", "no"]
    assert list(shown["verdict"]) == ["leaks", "not established*"]
