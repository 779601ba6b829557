"""Tables: one row per reconstructed image, one row per quantizer, and how they are written."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from rich.console import Console
from rich.table import Table

from fl_sim.files import write_text
from results.baselines import bar
from results.gates import doubt, unsettled
from results.statistics import (
    Statistic,
    bootstrap_interval,
    mean,
    median,
    ninetieth,
    paired_differences,
    pareto_front,
    tenth,
)

OBSERVATION = ["seed", "round", "partition"]
"""Columns that name one client in one round; with ``image``, one victim."""

VICTIM = [*OBSERVATION, "image"]

REFERENCE = "none"
"""The unquantized row that every other one is compared with."""

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
)
"""Privacy columns: name, the score it sums up, and how."""

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
]
"""The columns of ``results.csv`` that its readers may rely on; more follow them."""


def mark_strongest(scores: pd.DataFrame) -> pd.Series:
    """Tell which rows are of the strongest attack: per batch, the lowest yardstick.

    Chosen as a server would, without the truth, by `results.gates.YARDSTICK`; a tie goes to the
    first name. The images of a batch come from one reconstruction, so they are chosen together.
    """
    batch = ["quantizer", *OBSERVATION]
    ordered = scores.sort_values([*batch, "yardstick", "attack"], kind="stable")
    best = ordered.groupby(batch, sort=False)["attack"].transform("first")
    return (ordered["attack"] == best).reindex(scores.index)


def results_table(
    quantizers: Sequence[str],
    *,
    history: pd.DataFrame,
    scores: pd.DataFrame,
    baselines: pd.DataFrame,
    parameters: int,
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
        As `results.run.score_run` makes them: every attack on every victim.
    baselines : DataFrame
        Scored baselines of the same victims.
    parameters : int
        Elements of one update.
    seed : int
        Seed of the bootstrap.

    Returns
    -------
    DataFrame
        `COLUMNS`, then ``entropy_coded_bytes_per_update``, ``victims``, ``established``,
        ``doubt`` (why not), ``verdict`` (see `verdict`), ``correlation_median``,
        ``success_rate``, ``naive_attack`` and ``naive_mse_median`` (the weakest attack of the
        suite), ``psnr_difference`` (paired, to ``none``, dB) and ``p_holm``, ``pareto``, and
        ``*_low`` and ``*_high``, the 95 % bootstrap intervals. A quantizer not yet trained or
        attacked has missing values.
    """
    strongest = scores[scores["strongest"]]
    baseline = bar(baselines) if len(baselines) else np.nan
    reference = strongest.loc[strongest["quantizer"] == REFERENCE, "recovered"]
    success_on_none = float(reference.mean()) if len(reference) else None
    rows = [
        {
            "quantizer": name,
            **_utility(history[history["quantizer"] == name], parameters, seed),
            **_privacy(strongest[strongest["quantizer"] == name], success_on_none, seed),
            **_naive(scores[scores["quantizer"] == name]),
            "baseline_mse": baseline,
        }
        for name in quantizers
    ]
    table = pd.DataFrame(rows).merge(_against_none(strongest, seed), how="left", on="quantizer")
    table["verdict"] = [verdict(row) for _, row in table.iterrows()]
    table["pareto"] = _pareto(table)
    further = [column for column in table.columns if column not in COLUMNS]
    bounds = [column for column in further if column.endswith(("_low", "_high"))]
    return table[COLUMNS + [c for c in further if c not in bounds] + bounds]


def verdict(row: "pd.Series") -> str:
    """Say in a word what the strongest attack shows.

    ``leaks``: it recovers half of the victims or more. ``not established``: a gate is not passed,
    so nothing may be said for the quantizer. ``partly leaks``: closer than the best featureless
    picture, or more than a tenth identified. ``nothing found``: by this suite.
    """
    if row["success_rate"] >= 0.5:
        return "leaks"
    if not row["established"]:
        return "not established"
    if row["mse_median"] < row["baseline_mse"] or row["identified_rate"] > 0.1:
        return "partly leaks"
    return "nothing found"


def write_csv(path: Path, frame: pd.DataFrame) -> None:
    """Write a table atomically; the same table gives the same bytes on every machine."""
    write_text(path, frame.to_csv(index=False, float_format="%.6g", lineterminator="\n"))


def print_results(results: pd.DataFrame, console: Console) -> None:
    """Print the results, and why what is not established is not."""
    console.print(terminal_table(results))
    for _, row in results[results["verdict"] == "not established"].iterrows():
        console.print(f"  {row['quantizer']}: not established, {row['doubt']}", style="dim")


def terminal_table(results: pd.DataFrame) -> Table:
    """Lay the results out for a terminal of 100 columns."""
    table = Table(
        caption="Privacy: strongest attack, median over victims. A picture without features has "
        f"MSE {_number(results['baseline_mse'].iloc[0])}.",
        header_style="bold",
        caption_justify="left",
    )
    table.add_column("quantizer", overflow="fold")
    for heading in ("test acc. %", "bytes", "MSE", "PSNR dB", "SSIM", "ident. %", "labels %"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("strongest", overflow="fold")
    table.add_column("verdict")
    for _, row in results.iterrows():
        table.add_row(
            row["quantizer"],
            _spread(row["test_accuracy_mean"], row["test_accuracy_std"]),
            _number(row["uplink_bytes_per_update"], "{:,.0f}"),
            _number(row["mse_median"], "{:.2g}"),
            _number(row["psnr_median"], "{:.1f}"),
            _number(row["ssim_median"], "{:.2f}"),
            _number(100 * row["identified_rate"], "{:.0f}"),
            _number(100 * row["label_accuracy"], "{:.0f}"),
            row["strongest_attack"],
            row["verdict"],
            style="dim" if row["verdict"] == "not established" else None,
        )
    return table


def _utility(history: pd.DataFrame, parameters: int, seed: int) -> dict[str, object]:
    """Accuracy after the last round and bytes per update, over the seeds of one quantizer."""
    last = history.sort_values("round").groupby("seed")["accuracy"].last()
    low, high = bootstrap_interval(last.to_numpy()[:, None], mean, seed)
    sums = history[["uplink_bytes", "entropy_coded_bytes"]].sum() / history["updates"].sum()
    return {
        "trials": len(last),
        "test_accuracy_mean": last.mean(),
        "test_accuracy_std": last.std(ddof=1),
        "test_accuracy_mean_low": low,
        "test_accuracy_mean_high": high,
        "uplink_bytes_per_update": sums["uplink_bytes"],
        "bits_per_parameter": 8 * sums["uplink_bytes"] / parameters,
        "entropy_coded_bytes_per_update": sums["entropy_coded_bytes"],
    }


def _privacy(
    strongest: pd.DataFrame, success_on_none: float | None, seed: int
) -> dict[str, object]:
    """Sum up what the strongest attack makes of one quantizer's victims."""
    reason = doubt(strongest, success_on_none)
    row: dict[str, object] = {
        "victims": len(strongest),
        "strongest_attack": _most_frequent(strongest["attack"]),
        "attack_failed_rate": unsettled(strongest).mean() if len(strongest) else np.nan,
        "established": not reason,
        "doubt": reason,
    }
    batches = [batch for _, batch in strongest.sort_values("image").groupby(OBSERVATION)]
    for name, score, statistic in SUMMARIES:
        clusters = np.array([batch[score].to_numpy(dtype=np.float64) for batch in batches])
        row[name] = float(statistic(clusters.ravel())) if len(clusters) else np.nan
        row[f"{name}_low"], row[f"{name}_high"] = bootstrap_interval(clusters, statistic, seed)
    return row


def _naive(scores: pd.DataFrame) -> dict[str, object]:
    """Return the attack that looks the most harmless: the highest median error."""
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


def _pareto(table: pd.DataFrame) -> "pd.Series[bool]":
    """Mark the front in accuracy, exposed-tenth MSE and bytes.

    Privacy that is not established earns nothing: such a row stands on the front by accuracy and
    bytes alone.
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
    """Return the most frequent name, the first in the alphabet of equals; empty of none."""
    counts = names.value_counts()
    return min(counts.index[counts == counts.max()], default="")


def _number(value: float, pattern: str = "{:.3g}") -> str:
    return "–" if pd.isna(value) else pattern.format(value)


def _spread(centre: float, spread: float) -> str:
    """Accuracy in percent, with the standard deviation over seeds where there is one."""
    if pd.isna(spread):
        return _number(100 * centre, "{:.1f}")
    return f"{100 * centre:.1f} ± {100 * spread:.1f}"
