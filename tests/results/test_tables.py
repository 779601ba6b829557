import io

import numpy as np
import pandas as pd
import pytest
from rich.console import Console

from results.figures.curves import VERDICT_STYLE
from results.scores.rows import mark_strongest
from results.scores.statistics import median
from results.tables.csv_text import csv_text, write_csv
from results.tables.paper import paper_table
from results.tables.summary import COLUMNS, results_table
from results.tables.terminal import print_results, terminal_table
from results.tables.verdicts import STAR, VERDICTS, chance, verdict

DESIGN_COLUMNS = [
    "quantizer",
    "trials",
    "test_accuracy_mean",
    "test_accuracy_std",
    "uplink_bytes_per_update",
    "bits_per_parameter",
    "strongest_attack",
    "mse_median",
    "mse_p10",
    "psnr_median",
    "psnr_p90",
    "ssim_median",
    "identified_rate",
    "label_accuracy",
    "baseline_mse",
    "attack_failed_rate",
    "server",
]


def score_rows(quantizer: str, attack: str, errors: list[float], yardstick: float) -> pd.DataFrame:
    """Batches of one image; a victim below 0.01 is recovered, the others settled but hidden."""
    mse = np.array(errors)
    return pd.DataFrame(
        {
            "quantizer": quantizer,
            "seed": 0,
            "round": 1,
            "partition": range(len(mse)),
            "attack": attack,
            "image": 0,
            "mse": mse,
            "psnr": -10 * np.log10(mse),
            "ssim": 1 - mse,
            "correlation": 1 - mse,
            "identified": mse < 0.02,
            "labels_recovered": 1.0,
            "recovered": mse < 0.01,
            "failed": False,
            "masked": False,
            "unexplained": False,
            "inconsistency": 0.0,
            "yardstick": yardstick,
            "update_rmse": 0.0 if quantizer == "none" else 0.01,
            "identified_chance": 0.0069,
            "label_chance": 0.1,
        }
    )


def study(*frames: pd.DataFrame) -> pd.DataFrame:
    scores = pd.concat(frames, ignore_index=True)
    scores["strongest"] = mark_strongest(scores)
    return scores


def history(**accuracies: list[float]) -> pd.DataFrame:
    """Two rounds; the first is a little better than the last, which is the one that counts."""
    rows = [
        (
            name,
            seed,
            server_round,
            accuracy * (0.1, 1.05, 1)[server_round],
            4000 * server_round,
            server_round,
        )
        for name, of_seeds in accuracies.items()
        for seed, accuracy in enumerate(of_seeds)
        for server_round in (0, 1, 2)
    ]
    columns = ["quantizer", "seed", "round", "accuracy", "uplink_bytes", "updates"]
    return pd.DataFrame(rows, columns=columns)


BASELINES = pd.DataFrame({"baseline": ["mid_grey", "mean_public", "nearest_public"]}).assign(
    mse=[0.2, 0.1, 0.01]
)


def table(scores: pd.DataFrame, trained: pd.DataFrame, *quantizers: str) -> pd.DataFrame:
    return results_table(
        quantizers or tuple(scores["quantizer"].unique()),
        history=trained,
        scores=scores,
        baselines=BASELINES,
        entropy_coded={"none": 3600.0},
        parameters=1000,
    )


NONE = score_rows("none", "dlg", [1e-6] * 11, 0.0)
SIGN = score_rows("sign", "dlg", [0.02 * k for k in range(5, 16)], 0.1)


def test_columns_are_those_of_the_design_in_their_order():
    made = table(study(NONE, SIGN), history(none=[0.9], sign=[0.8]))
    assert COLUMNS == DESIGN_COLUMNS
    assert list(made.columns[: len(COLUMNS)]) == DESIGN_COLUMNS
    assert list(made["quantizer"]) == ["none", "sign"]


def test_a_row_sums_up_what_it_says():
    made = table(study(NONE, SIGN), history(none=[0.9, 0.7], sign=[0.8, 0.8]))
    none, sign = (row for _, row in made.iterrows())
    assert none["trials"] == 2
    assert none["test_accuracy_mean"] == pytest.approx(0.8)  # after the last round
    assert none["test_accuracy_std"] == pytest.approx(np.std([0.9, 0.7], ddof=1))
    assert none["uplink_bytes_per_update"] == 4000
    assert none["bits_per_parameter"] == 32
    assert none["entropy_coded_bytes_per_update"] == 3600
    assert sign["mse_median"] == pytest.approx(0.2)
    assert sign["mse_p10"] == pytest.approx(0.12)  # the most exposed tenth
    assert sign["psnr_median"] == pytest.approx(-10 * np.log10(0.2))
    assert sign["psnr_p90"] == pytest.approx(-10 * np.log10(0.12))
    assert sign["ssim_median"] == pytest.approx(0.8)
    assert (none["identified_rate"], sign["identified_rate"]) == (1, 0)
    assert (none["success_rate"], sign["success_rate"]) == (1, 0)
    assert sign["baseline_mse"] == 0.1  # the best featureless one; a stranger's picture is not
    assert sign["attack_failed_rate"] == 0
    assert sign["mse_median_low"] < 0.2 < sign["mse_median_high"]
    assert sign["psnr_difference"] == pytest.approx(float(median(SIGN["psnr"] - 60)))
    assert none["psnr_difference"] != none["psnr_difference"]  # not compared with itself
    assert sign["p_holm"] == pytest.approx(2 / 2**11)


def test_the_strongest_attack_is_chosen_by_yardstick_not_by_truth():
    close = score_rows("sign", "lucky", [0.001] * 3, yardstick=0.5)
    explains = score_rows("sign", "cell", [0.3] * 3, yardstick=0.1)
    explains.loc[2, "yardstick"] = 0.9  # one victim is better explained by the other
    scores = study(close, explains)
    strongest = scores[scores["strongest"]].sort_values("partition")
    assert list(strongest["attack"]) == ["cell", "cell", "lucky"]
    made = table(scores, history(sign=[0.5])).iloc[0]
    assert made["strongest_attack"] == "cell"
    assert made["mse_median"] == pytest.approx(0.3)
    assert (made["naive_attack"], made["naive_mse_median"]) == ("cell", 0.3)


def test_a_tie_goes_to_the_first_name_and_infinity_never_wins():
    scores = study(
        score_rows("sign", "b", [0.1], 0.5),
        score_rows("sign", "a", [0.2], 0.5),
        score_rows("sign", "c", [0.3], np.inf),
    )
    assert list(scores.loc[scores["strongest"], "attack"]) == ["a"]


def test_the_images_of_a_batch_are_chosen_together():
    first = score_rows("sign", "a", [0.1, 0.2], 0.5).assign(partition=0, image=[0, 1])
    second = score_rows("sign", "b", [0.01, 0.3], 0.4).assign(partition=0, image=[0, 1])
    scores = study(first, second)
    assert list(scores["strongest"]) == [False, False, True, True]


def test_what_is_not_established_earns_no_place_on_the_front():
    masked = SIGN.assign(masked=True)
    trained = history(none=[0.9], sign=[0.9])
    settled = table(study(NONE, SIGN), trained).set_index("quantizer")
    doubted = table(study(NONE, masked), trained).set_index("quantizer")
    assert settled["pareto"].tolist() == [False, True]  # same accuracy and bytes, more privacy
    assert doubted.loc["sign", "established"] == np.False_
    assert doubted.loc["sign", "verdict"] == "not established"
    assert "failed to optimise on 100%" in doubted.loc["sign", "doubt"]
    assert doubted["pareto"].tolist() == [True, False]
    assert doubted.loc["sign", "attack_failed_rate"] == 1


def test_a_quantizer_is_compared_with_noise_of_its_own_size():
    near = score_rows("gaussian:sigma=0.011", "dlg", [0.2] * 11, 0.1).assign(update_rmse=0.011)
    far = score_rows("gaussian:sigma=1.0", "dlg", [0.9] * 11, 0.1).assign(update_rmse=1.0)
    made = table(study(NONE, SIGN, far, near), history(none=[0.9])).set_index("quantizer")
    assert made.loc["sign", "control"] == "gaussian:sigma=0.011"
    expected = np.median(SIGN["psnr"] + 10 * np.log10(0.2))
    assert made.loc["sign", "psnr_against_control"] == pytest.approx(expected)
    assert made["control"].eq("").sum() == 3
    alone = table(study(NONE, SIGN, far), history(none=[0.9])).set_index("quantizer")
    assert alone["control"].eq("").all()  # none of equal size


def test_accuracies_are_compared_seed_by_seed():
    trained = history(none=[0.9, 0.5, 0.7], sign=[0.8, 0.4, 0.5], drive=[0.95, 0.5])
    made = table(study(NONE, SIGN), trained, "none", "sign", "drive").set_index("quantizer")
    assert made.loc["sign", "accuracy_difference"] == pytest.approx(-0.1)
    assert made.loc["sign", "accuracy_difference_low"] == pytest.approx(-0.2)
    assert made.loc["sign", "accuracy_difference_high"] == pytest.approx(-0.1)
    assert made.loc["drive", "accuracy_difference"] == pytest.approx(0.025)  # of the shared seeds
    assert np.isnan(made.loc["none", "accuracy_difference"])


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


def test_half_finished_studies_have_missing_values_not_errors():
    made = table(study(NONE), history(none=[0.9], sign=[0.8]), "none", "sign", "drive")
    sign, drive = made.iloc[1], made.iloc[2]
    assert sign["test_accuracy_mean"] == pytest.approx(0.8)
    assert np.isnan(sign["mse_median"])
    assert sign["verdict"] == "not established"
    assert sign["doubt"] == "not attacked yet"
    assert drive["trials"] == 0
    assert np.isnan(drive["uplink_bytes_per_update"])


@pytest.mark.parametrize(
    ("success", "identified", "mse", "established", "word"),
    [
        (1.0, 1.0, 1e-9, True, "leaks"),
        (0.5, 0.0, 0.02, True, "leaks"),
        (0.0, 0.5, 0.3, False, "leaks"),  # identified is identified
        (0.4, 0.0, 0.09, True, "partly leaks"),
        (0.0, 0.2, 0.3, True, "partly leaks"),
        (0.0, 0.0, 0.09, False, "partly leaks"),  # found is found
        (0.0, 0.1, 0.1, True, "nothing found"),
        (0.0, 0.1, 0.1, False, "not established"),
        (np.nan, np.nan, np.nan, False, "not established"),
    ],
)
def test_verdicts(success, identified, mse, established, word):
    row = {
        "identified_chance": 0.0,
        "success_rate": success,
        "identified_rate": identified,
        "mse_median": mse,
        "baseline_mse": 0.1,
        "established": established,
    }
    assert verdict(pd.Series(row)) == word
    assert word in VERDICTS


@pytest.mark.parametrize(
    ("rate", "chance", "word"),
    [
        (0.5, 0.5, "nothing found"),  # one public image: a coin
        (0.7, 0.5, "partly leaks"),
        (0.76, 0.5, "leaks"),
        (0.1, 0.2, "nothing found"),  # less than chance
        (1.0, 1.0, "nothing found"),  # no public image at all
        (0.51, 0.001, "leaks"),
    ],
)
def test_what_chance_alone_identifies_is_no_leak(rate, chance, word):
    row = {"success_rate": 0.0, "mse_median": 0.3, "baseline_mse": 0.1, "established": True}
    assert verdict(pd.Series(row | {"identified_rate": rate, "identified_chance": chance})) == word


def test_chance_stands_beside_the_rates():
    half = SIGN.assign(identified_chance=0.25, label_chance=0.35)
    made = table(study(NONE, half), history(none=[0.9], sign=[0.8]), "none", "sign", "drive")
    assert list(made.columns[-2:]) == ["identified_chance", "label_chance"]
    assert made["label_chance"].tolist()[:2] == pytest.approx([0.1, 0.35])
    assert np.isnan(made.loc[2, "label_chance"])
    said = "Chance alone identifies 0.69% to 25% of the victims and knows 10% to 35% of the labels."
    assert chance(made) == said
    console = Console(width=80, file=io.StringIO())
    print_results(made[:1], console)
    printed = " ".join(console.file.getvalue().split())
    assert "Chance alone identifies 0.69% of the victims and knows 10% of the labels." in printed
    assert chance(made[2:]) == ""


def test_every_verdict_has_a_colour():
    assert list(VERDICT_STYLE) == list(VERDICTS)


def test_the_same_table_gives_the_same_bytes(tmp_path):
    scores, trained = study(NONE, SIGN), history(none=[0.9, 0.8], sign=[0.8, 0.7])
    for name in ("a", "b"):
        write_csv(tmp_path / name, table(scores, trained))
    written = (tmp_path / "a").read_bytes()
    assert written == (tmp_path / "b").read_bytes()
    assert b"\r" not in written
    again = pd.read_csv(io.BytesIO(written))
    assert again.loc[1, "mse_median"] == pytest.approx(0.2, rel=1e-5)


@pytest.mark.parametrize("width", [80, 120])
def test_the_printed_table_fits_the_terminal_and_names_doubts(width):
    scores = study(NONE, SIGN.assign(masked=True))
    console = Console(width=width, file=io.StringIO(), record=True)
    print_results(table(scores, history(none=[0.9, 0.8], sign=[0.8, 0.7])), console)
    text = console.export_text()
    assert max(len(line) for line in text.splitlines()) <= width
    assert "not established*" in text
    assert "sign: not established, the attack failed to optimise on 100%" in text
    words = " ".join(text.split())
    assert f"leaks: {VERDICTS['leaks']} not established: {VERDICTS['not established']}" in words
    assert f"*: {STAR}" in words
    assert "nothing found:" not in words
    assert ("SSIM" in text) is (width == 120)
    assert "4,000" in text


def test_brackets_of_a_spec_are_printed_as_they_are():
    spec = "mixed:body.[a-z0-9].*=8,[/b]=4"
    scores = study(SIGN.assign(quantizer=spec, masked=True))
    console = Console(width=200, file=io.StringIO())
    print_results(table(scores, history(**{spec: [0.8, 0.7]}), spec), console)
    assert console.file.getvalue().count(spec) == 2  # in the table and in its doubt


def test_missing_figures_are_dashes():
    made = table(study(NONE), history(none=[0.9]), "none", "sign")
    console = Console(width=120, file=io.StringIO(), record=True)
    console.print(terminal_table(made, 120))
    row = next(line for line in console.export_text().splitlines() if "sign" in line)
    assert row.count("–") >= 6
    assert "nan" not in row


def test_no_text_of_a_csv_is_a_formula_and_numbers_stay():
    texts = ['=HYPERLINK("http://x")', "+1+1", "-a", "@a", "\t=1", "-2.5", "topk:keep=0.1", None]
    frame = pd.DataFrame({"run": texts, "dB": [-1.5] * 8, "psnr": -3, "star": True})
    read = pd.read_csv(io.StringIO(csv_text(frame)))
    expected = ["'" + text for text in texts[:5]] + ["-2.5", "topk:keep=0.1"]
    assert read["run"].tolist()[:-1] == expected
    assert pd.isna(read["run"].iloc[-1])
    assert (read["dB"].unique(), read["psnr"].unique()) == ([-1.5], [-3])
    assert frame["run"].tolist()[:-1] == texts[:-1]
