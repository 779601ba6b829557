import numpy as np
import pytest

from fl_sim.observed.evidence import BLOCKS
from results.scores.rows import BLOCKS_COLUMN
from results.scores.statistics import median
from results.tables.summary import COLUMNS
from tests.results.tables.table_cases import NONE, SIGN, history, score_rows, study, table

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


def test_the_strongest_attack_is_chosen_by_evidence_not_by_truth():
    close = score_rows("sign", "lucky", [0.001] * 3, evidence=0.5)
    predicts = score_rows("sign", "cell", [0.3] * 3, evidence=0.1)
    predicts.at[2, BLOCKS_COLUMN] = [0.9] * BLOCKS  # one victim is better predicted by the other
    scores = study(close, predicts)
    strongest = scores[scores["strongest"]].sort_values("partition")
    assert list(strongest["attack"]) == ["cell", "cell", "lucky"]
    made = table(scores, history(sign=[0.5])).iloc[0]
    assert made["strongest_attack"] == "cell"
    assert made["mse_median"] == pytest.approx(0.3)
    assert made["mse_best_known"] == pytest.approx(0.001)  # what the truth would have chosen
    assert made["psnr_best_known"] == pytest.approx(30)
    assert made["verdict"] == "partly leaks"  # with 30 dB it would be a leak
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


def test_half_finished_studies_have_missing_values_not_errors():
    made = table(study(NONE), history(none=[0.9], sign=[0.8]), "none", "sign", "drive")
    sign, drive = made.iloc[1], made.iloc[2]
    assert sign["test_accuracy_mean"] == pytest.approx(0.8)
    assert np.isnan(sign["mse_median"])
    assert sign["verdict"] == "not established"
    assert sign["doubt"] == "no attack was run, or none applies"
    assert drive["trials"] == 0
    assert np.isnan(drive["uplink_bytes_per_update"])
