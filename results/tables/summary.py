"""The results of a study: one row per quantizer."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from results.scores.alone import identified_alone
from results.scores.baselines import bar
from results.scores.gates import doubt, unsettled
from results.scores.rows import OBSERVATION, VICTIM
from results.scores.statistics import (
    Statistic,
    bootstrap_interval,
    mean,
    median,
    ninetieth,
    paired_differences,
    pareto_front,
    tenth,
)
from results.tables.verdicts import CHANCES, GUARANTEES, verdict

REFERENCE = "none"
"""The row without quantization; every other row is compared with it."""

SUMMARIES: tuple[tuple[str, str, Statistic], ...] = (
    ("mse_median", "mse", median),
    ("mse_p10", "mse", tenth),
    ("psnr_median", "psnr", median),
    ("psnr_p90", "psnr", ninetieth),
    ("ssim_median", "ssim", median),
    ("identified_rate", "identified", mean),
    ("label_accuracy", "labels_recovered", mean),
    ("correlation_median", "correlation", median),
    ("success_rate", "recovered", mean),
    ("update_rmse", "update_rmse", median),
    ("mse_best_known", "mse_best_known", median),
    ("psnr_best_known", "psnr_best_known", median),
)
"""Privacy columns: name, score, and the statistic over the victims."""

CONTROL_RATIO = 1.25
"""Two update errors within this ratio count as equal."""

COLUMNS = [
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
"""The first columns of ``results.csv``; other programs may rely on them."""


def results_table(
    quantizers: Sequence[str],
    *,
    history: pd.DataFrame,
    scores: pd.DataFrame,
    baselines: pd.DataFrame,
    entropy_coded: Mapping[str, float],
    parameters: int,
    server: str = "curious",
    aggregation: str = "plain",
    metrics: Sequence[str] = (),
    guarantees: pd.DataFrame | None = None,
    seed: int = 0,
) -> pd.DataFrame:
    """Sum up a study: one row per quantizer, in the study's order.

    Parameters
    ----------
    quantizers : sequence of str
        Specs, in the order of the study.
    history : DataFrame
        ``history.csv``: one row per trial and round, round 0 before training.
    scores : DataFrame
        As `results.reading.run_reader.RunReader.scores` makes them: every attack on every victim.
    baselines : DataFrame
        Scored baselines of the same victims.
    entropy_coded : Mapping[str, float]
        Mean bytes of a quantizer's update behind an entropy coder.
    parameters : int
        Elements of one update.
    server : str
        Spec of the server's plan.
    aggregation : str
        How updates are added up; ``plain`` if the server sees each of them.
    metrics : sequence of str
        Columns of ``scores`` by further metrics; the median of each is added.
    guarantees : DataFrame, optional
        ``quantizer`` and `GUARANTEES`; without it they are missing.
    seed : int
        Seed of the bootstrap.

    Returns
    -------
    DataFrame
        `COLUMNS`, `GUARANTEES` (see docs/explanation/guarantees.md), then
        ``entropy_coded_bytes_per_update``, ``victims``, ``established``, ``doubt`` (the reason if
        not), ``verdict`` (see `verdict`), ``correlation_median``,
        ``*_median`` of each further metric, ``success_rate``, ``naive_attack`` and
        ``naive_mse_median`` (the weakest attack of the suite), ``identified_alone`` and
        ``identified_alone_attack`` (see `identified_alone`), ``mse_best_known`` and
        ``psnr_best_known`` (medians of the best among all guesses at a victim, which only the truth
        can choose),
        ``psnr_difference`` (median paired difference to ``none`` over the victims, dB) and
        ``p_holm``, ``accuracy_difference`` (median paired difference to ``none`` over the seeds),
        ``update_rmse``, ``control`` and ``psnr_against_control`` (see `against_control`),
        ``pareto``, ``*_low`` and ``*_high`` (the 95 % bootstrap intervals), and `CHANCES`. Values
        of a quantizer that was not trained or attacked yet are missing.
    """
    strongest = scores[scores["strongest"]]
    baseline = bar(baselines) if len(baselines) else np.nan
    reference = strongest.loc[strongest["quantizer"] == REFERENCE, "recovered"]
    success_on_none = float(reference.mean()) if len(reference) else None
    summaries = [*SUMMARIES, *((f"{name}_median", name, median) for name in metrics)]
    rows = [
        {
            "quantizer": name,
            **_utility(history[history["quantizer"] == name], parameters, seed),
            **_privacy(strongest[strongest["quantizer"] == name], success_on_none, summaries, seed),
            **_naive(scores[scores["quantizer"] == name]),
            **identified_alone(scores[scores["quantizer"] == name]),
            "baseline_mse": baseline,
            "entropy_coded_bytes_per_update": entropy_coded.get(name, np.nan),
            "server": server,
            "aggregation": aggregation,
        }
        for name in quantizers
    ]
    table = pd.DataFrame(rows).merge(_against_none(strongest, seed), how="left", on="quantizer")
    table = table.merge(_accuracy_against_none(history, seed), how="left", on="quantizer")
    table = table.merge(against_control(table, strongest), how="left", on="quantizer")
    table["control"] = table["control"].fillna("")
    if guarantees is None:
        guarantees = pd.DataFrame(columns=["quantizer", *GUARANTEES], dtype="float64")
    table = table.merge(guarantees.astype({"quantizer": "str"}), how="left", on="quantizer")
    table["verdict"] = [verdict(row) for _, row in table.iterrows()]
    table["pareto"] = _pareto(table)
    first = COLUMNS + GUARANTEES
    further = [column for column in table.columns if column not in first + CHANCES]
    bounds = [column for column in further if column.endswith(("_low", "_high"))]
    return table[first + [c for c in further if c not in bounds] + bounds + CHANCES]


def further_medians(results: pd.DataFrame) -> list[str]:
    """Return the columns of some results that hold medians of further metrics."""
    known = {name for name, _, _ in SUMMARIES} | {"naive_mse_median"}
    return [name for name in map(str, results) if name.endswith("_median") and name not in known]


def heading_of(median_column: str) -> str:
    """Return the heading of a column of `further_medians` in a terminal or a paper."""
    return f"{median_column.removesuffix('_median')}, median"


def against_control(table: pd.DataFrame, strongest: pd.DataFrame) -> pd.DataFrame:
    """Compare each quantizer with Gaussian noise of the same update error, if the study has it.

    If a quantizer hides no more than such noise, only the size of its error hides anything.

    Parameters
    ----------
    table : DataFrame
        Columns ``quantizer`` and ``update_rmse``.
    strongest : DataFrame
        Rows of the strongest attack.

    Returns
    -------
    DataFrame
        ``quantizer``, ``control`` (the ``gaussian`` row whose ``update_rmse`` is nearest, at most
        `CONTROL_RATIO` times larger or smaller) and ``psnr_against_control`` (median paired
        difference, dB; negative: the quantizer hides more). Only quantizers that have a control.
    """
    errors = table.set_index("quantizer")["update_rmse"]
    controls = errors[errors.index.str.startswith("gaussian:")]
    rows = []
    for name, error in errors.drop(controls.index).items():
        distance = np.abs(np.log(controls / error)).dropna()
        if len(distance) and distance.min() <= np.log(CONTROL_RATIO):
            control = str(distance.idxmin())
            pair = strongest[strongest["quantizer"].isin([name, control])]
            difference = paired_differences(pair, "psnr", VICTIM, control)["median_difference"]
            rows.append((name, control, difference.iloc[0]))
    types = {"quantizer": "str", "control": "str", "psnr_against_control": "float64"}
    return pd.DataFrame(rows, columns=list(types)).astype(types)


def _utility(history: pd.DataFrame, parameters: int, seed: int) -> dict[str, object]:
    """Sum up accuracy after the last round and bytes per update over one quantizer's seeds."""
    last = history.sort_values("round").groupby("seed")["accuracy"].last()
    low, high = bootstrap_interval(last.to_numpy()[:, None], mean, seed)
    updates = history["updates"].sum()
    sent = history["uplink_bytes"].sum() / updates if updates else np.nan
    return {
        "trials": len(last),
        "test_accuracy_mean": last.mean(),
        "test_accuracy_std": last.std(ddof=1),
        "test_accuracy_mean_low": low,
        "test_accuracy_mean_high": high,
        "uplink_bytes_per_update": sent,
        "bits_per_parameter": 8 * sent / parameters,
    }


def _privacy(
    strongest: pd.DataFrame,
    success_on_none: float | None,
    summaries: Sequence[tuple[str, str, Statistic]],
    seed: int,
) -> dict[str, object]:
    """Sum up the scores of the strongest attack on one quantizer's victims."""
    reason = doubt(strongest, success_on_none)
    row: dict[str, object] = {
        "victims": len(strongest),
        "strongest_attack": _most_frequent(strongest["attack"]),
        "attack_failed_rate": unsettled(strongest).mean() if len(strongest) else np.nan,
        "established": not reason,
        "doubt": reason,
    }
    batches = [batch for _, batch in strongest.sort_values("image").groupby(OBSERVATION)]
    row |= {name: strongest[name].mean() for name in CHANCES}
    for name, score, statistic in summaries:
        clusters = [batch[score].to_numpy(dtype=np.float64) for batch in batches]
        row[name] = float(statistic(np.concatenate(clusters))) if clusters else np.nan
        row[f"{name}_low"], row[f"{name}_high"] = bootstrap_interval(clusters, statistic, seed)
    return row


def _naive(scores: pd.DataFrame) -> dict[str, object]:
    """Return the weakest attack: the one with the highest median error."""
    medians = scores.groupby("attack")["mse"].median()
    if medians.empty:
        return {"naive_attack": "", "naive_mse_median": np.nan}
    return {"naive_attack": str(medians.idxmax()), "naive_mse_median": float(medians.max())}


def _against_none(strongest: pd.DataFrame, seed: int) -> pd.DataFrame:
    table = paired_differences(strongest, "psnr", VICTIM, REFERENCE, seed)
    table = table.rename(
        columns={
            "median_difference": "psnr_difference",
            "low": "psnr_difference_low",
            "high": "psnr_difference_high",
        }
    )
    return table.drop(columns=["pairs", "p"])


def _accuracy_against_none(history: pd.DataFrame, seed: int) -> pd.DataFrame:
    """Compare accuracies seed by seed: data, initial weights and batches are the same."""
    last = history.sort_values("round").groupby(["quantizer", "seed"], as_index=False).last()
    table = paired_differences(last, "accuracy", ["seed"], REFERENCE, seed)
    names = {"median_difference": "", "low": "_low", "high": "_high"}
    columns = {old: f"accuracy_difference{new}" for old, new in names.items()}
    return table.rename(columns=columns)[["quantizer", *columns.values()]]


def _pareto(table: pd.DataFrame) -> "pd.Series[bool]":
    """Mark the Pareto front of accuracy, exposed-tenth MSE and bytes.

    Privacy that is not established counts as none: such a row is on the front only for its
    accuracy and bytes.
    """
    gains = pd.DataFrame(
        {
            "accuracy": table["test_accuracy_mean"],
            "privacy": table["mse_p10"].where(table["established"], 0.0),
            "size": -table["uplink_bytes_per_update"],
        }
    )
    complete = gains.notna().all(axis=1)
    front = pd.Series(False, index=table.index)
    front[complete] = pareto_front(gains[complete].to_numpy(dtype=np.float64))
    return front


def _most_frequent(names: "pd.Series[str]") -> str:
    """Return the most frequent name; of several, the first in the alphabet; empty if none."""
    counts = names.value_counts()
    return min(counts.index[counts == counts.max()], default="")
