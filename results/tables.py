"""Tables: one row per reconstructed image, one row per quantizer, and how they are written."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from fl_sim.plans import parse_plan
from fl_sim.storage.files import write_text
from results.scores.baselines import bar
from results.scores.gates import SUCCESS_MSE, doubt, unsettled
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
    ("update_rmse", "update_rmse", median),
)
"""Privacy columns: name, the score it sums up, and how."""

VERDICTS: dict[str, str] = {
    "leaks": "half of the victims or more are recovered "
    f"(MSE below {SUCCESS_MSE:g}), or identified beyond chance",
    "partly leaks": "the median picture is closer than any featureless one, or more than a tenth "
    "of the victims are identified beyond chance",
    "nothing found": "the attack is shown to work, and found nothing",
    "not established": "nothing was found, but the attack is not shown to work: never read it as "
    "private",
}
"""What each verdict means; every table, page and document takes the words from here."""

STAR = "the attack is not shown to work on enough victims: a better one may find more"
"""What a star at a verdict means."""

CHANCES = ["identified_chance", "label_chance"]
"""What ``identified_rate`` and ``label_accuracy`` are for a blind guess."""

CONTROL_RATIO = 1.25
"""Update errors within this ratio count as equal."""

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
"""The columns of ``results.csv`` that its readers may rely on; more follow them."""


def mark_strongest(scores: pd.DataFrame) -> pd.Series:
    """Tell which rows are of the strongest attack: per batch, the lowest yardstick.

    Chosen as a server would, without the truth, by `YARDSTICK` of the attack losses; a tie goes to
    the first name. The images of a batch come from one reconstruction, so they are chosen together.
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
    entropy_coded: Mapping[str, float],
    parameters: int,
    server: str = "curious",
    metrics: Sequence[str] = (),
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
    metrics : sequence of str
        Columns of ``scores`` by further metrics; the median of each is added.
    seed : int
        Seed of the bootstrap.

    Returns
    -------
    DataFrame
        `COLUMNS`, then ``entropy_coded_bytes_per_update``, ``victims``, ``established``,
        ``doubt`` (why not), ``verdict`` (see `verdict`), ``correlation_median``, ``*_median`` of
        each further metric,
        ``success_rate``, ``naive_attack`` and ``naive_mse_median`` (the weakest attack of the
        suite), ``psnr_difference`` (median of the victims, paired, to ``none``, dB) and
        ``p_holm``, ``accuracy_difference`` (median of the seeds, paired, to ``none``),
        ``update_rmse``, ``control`` and ``psnr_against_control`` (see `against_control`),
        ``pareto``, ``*_low`` and ``*_high``, the 95 % bootstrap intervals, and `CHANCES`. A
        quantizer not yet trained or attacked has missing values.
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
            "baseline_mse": baseline,
            "entropy_coded_bytes_per_update": entropy_coded.get(name, np.nan),
            "server": server,
        }
        for name in quantizers
    ]
    table = pd.DataFrame(rows).merge(_against_none(strongest, seed), how="left", on="quantizer")
    table = table.merge(_accuracy_against_none(history, seed), how="left", on="quantizer")
    table = table.merge(against_control(table, strongest), how="left", on="quantizer")
    table["control"] = table["control"].fillna("")
    table["verdict"] = [verdict(row) for _, row in table.iterrows()]
    table["pareto"] = _pareto(table)
    further = [column for column in table.columns if column not in COLUMNS + CHANCES]
    bounds = [column for column in further if column.endswith(("_low", "_high"))]
    return table[COLUMNS + [c for c in further if c not in bounds] + bounds + CHANCES]


def further_medians(results: pd.DataFrame) -> list[str]:
    """Return the columns of some results that are medians of further metrics."""
    known = {name for name, _, _ in SUMMARIES} | {"naive_mse_median"}
    return [name for name in map(str, results) if name.endswith("_median") and name not in known]


def against_control(table: pd.DataFrame, strongest: pd.DataFrame) -> pd.DataFrame:
    """Compare quantizers with Gaussian noise of the same update error, where the study has it.

    A quantizer that hides no more than noise of its own size hides by its size alone.

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


def verdict(row: "pd.Series") -> str:
    """Say in a word of `VERDICTS` what the strongest attack shows.

    What was found is found, whatever the gates say; that nothing was found counts only where
    they are passed. Of a rate of identification counts what is beyond chance: a gallery of one
    public image names half of the victims to anybody.
    """
    identified = _beyond_chance(row["identified_rate"], row["identified_chance"])
    if max(row["success_rate"], identified) >= 0.5:
        return "leaks"
    if row["mse_median"] < row["baseline_mse"] or identified > 0.1:
        return "partly leaks"
    return "nothing found" if row["established"] else "not established"


def _beyond_chance(rate: float, chance: float) -> float:
    """Return a rate corrected for guessing: 0 at chance, 1 where all is known."""
    return (rate - chance) / (1 - chance) if chance != 1 else 0.0


def starred(row: "pd.Series") -> str:
    """Return a row's verdict as it is shown: with a star where the figures are not established."""
    return str(row["verdict"]) + ("" if row["established"] else "*")


def definitions(results: pd.DataFrame) -> dict[str, str]:
    """Return what the verdicts of some results mean, and the star where one is shown."""
    shown = {word: text for word, text in VERDICTS.items() if word in set(results["verdict"])}
    return shown if results["established"].all() else shown | {"*": STAR}


def chance(results: pd.DataFrame) -> str:
    """Say what a blind guess reaches, in a sentence; nothing where nothing is attacked yet."""
    known = results[CHANCES].dropna().drop_duplicates()
    if known.empty:
        return ""
    identified, labels = (" to ".join(_ends(known[name])) for name in CHANCES)
    return f"Chance alone identifies {identified} of the victims and knows {labels} of the labels."


def server_plans(results: pd.DataFrame) -> str:
    """Say what the server is to its clients, in a sentence for each plan of some results."""
    plans = dict.fromkeys(results["server"])
    return " ".join(f"Server plan: {plan} ({parse_plan(plan).threat})." for plan in plans)


def _ends(rates: "pd.Series[float]") -> list[str]:
    """Return the least and the greatest rate as text, once if they read the same."""
    return list(dict.fromkeys(percent(rate) for rate in (rates.min(), rates.max())))


def percent(rate: float) -> str:
    """Return a small rate with two digits: ``0.69%``."""
    return f"{100 * rate:.2g}%"


def paper_table(results: pd.DataFrame) -> pd.DataFrame:
    """Lay the results out for a paper, as text: figures with their 95 % bootstrap intervals.

    Parameters
    ----------
    results : DataFrame
        Of `results_table`; columns before ``quantizer`` are axes of a study and come first.

    Returns
    -------
    DataFrame
        One row a quantizer. A star at the verdict says that its privacy figures are not
        established.
    """

    def column(name: str, pattern: str, scale: float = 1) -> list[str]:
        return [_with_interval(row, name, pattern, scale) for _, row in results.iterrows()]

    axes = results.columns[: results.columns.get_loc("quantizer")]
    return pd.DataFrame(
        {
            **{name: results[name].astype("str") for name in axes},
            "quantizer": results["quantizer"],
            **({} if "server" in axes else {"server": results["server"]}),
            "test %": column("test_accuracy_mean", "{:.1f}", 100),
            "points to none": column("accuracy_difference", "{:+.1f}", 100),
            "bytes": column("uplink_bytes_per_update", "{:,.0f}"),
            "attack": results["strongest_attack"],
            "MSE, median": column("mse_median", "{:.2g}"),
            "MSE, exposed tenth": column("mse_p10", "{:.2g}"),
            **{_heading(name): column(name, "{:.2g}") for name in further_medians(results)},
            "identified %": column("identified_rate", "{:.0f}", 100),
            "dB to none": column("psnr_difference", "{:+.1f}"),
            "p (Holm)": column("p_holm", "{:.2g}"),
            "Pareto": ["yes" if front else "no" for front in results["pareto"]],
            "verdict": [starred(row) for _, row in results.iterrows()],
        }
    )


def write_csv(path: Path, frame: pd.DataFrame) -> None:
    """Write a table atomically; the same table gives the same bytes on every machine."""
    write_text(path, csv_text(frame))


def csv_text(frame: pd.DataFrame) -> str:
    """Return a table as CSV with six significant digits; no text is a formula to a spreadsheet."""
    texts = frame.select_dtypes(exclude=["number", "bool"]).map(_no_formula)
    plain = frame.assign(**{str(name): texts[name] for name in texts})
    return plain.to_csv(index=False, float_format="%.6g", lineterminator="\n")


def _no_formula(cell: object) -> object:
    """Put an apostrophe before text that a spreadsheet would compute; numbers stay."""
    if not isinstance(cell, str) or not cell.startswith(("=", "+", "-", "@", "\t", "\r")):
        return cell
    try:
        float(cell)
    except ValueError:
        return f"'{cell}"
    return cell


def print_results(results: pd.DataFrame, console: Console) -> None:
    """Print the results as wide as the console is, their doubts, and what the verdicts mean.

    Those of a study with axes, whose columns come first, are one table for each of its points.
    """
    axes = list(results.columns[: results.columns.get_loc("quantizer")])
    points = results.groupby(axes, sort=False) if axes else [((), results)]
    for values, point in points:
        if axes:
            console.print(Text(", ".join(map("{} = {}".format, axes, values))))
        console.print(terminal_table(point, console.width))
        for _, row in point[~point["established"]].iterrows():
            console.print(Text(f"* {row['quantizer']}: not established, {row['doubt']}"))
    for word, meaning in definitions(results).items():
        console.print(Text(f"{word}: {meaning}"))


def terminal_table(results: pd.DataFrame, width: int = 80) -> Table:
    """Lay the results out for a terminal; below 110 columns without the lesser figures.

    Further metrics are shown where the terminal is wide enough. A star marks privacy figures that
    are not established: a better attack may find more.
    """
    table = Table(
        caption=_terminal_caption(results),
        caption_justify="left",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        pad_edge=False,
    )
    cells = _terminal_cells(results)
    if width < 110:
        cells = cells.drop(columns=_LESSER_COLUMNS)
    further = {_heading(name): results[name] for name in further_medians(results)}
    if width >= 110 + sum(max(len(heading), 8) + 1 for heading in further):
        shown = {heading: values.map(_number) for heading, values in further.items()}
        verdicts = cells.pop("verdict")
        cells = cells.assign(**shown, verdict=verdicts)
    for heading in map(str, cells.columns):
        wordy = heading in ("quantizer", "verdict", "attack")
        table.add_column(
            heading,
            justify="left" if wordy else "right",
            overflow="fold",
            no_wrap=heading not in ("quantizer", "attack"),
            min_width=18 if heading == "quantizer" else None,
        )
    for row in cells.itertuples(index=False):
        table.add_row(*map(Text, row))  # a spec may hold brackets, which are markup in plain text
    return table


def _terminal_caption(results: pd.DataFrame) -> str:
    least = _number(results["baseline_mse"].iloc[0], "{:.2g}")
    return (
        f"{escape(server_plans(results))}\nPrivacy figures: strongest attack, median over victims; "
        f"a picture without features has MSE {least}. {chance(results)}"
    )


def _heading(median_column: str) -> str:
    return f"{median_column.removesuffix('_median')}, median"


_LESSER_COLUMNS = ["bits/par.", "SSIM", "label %", "attack"]


def _terminal_cells(results: pd.DataFrame) -> pd.DataFrame:
    def column(name: str, pattern: str, scale: float = 1) -> list[str]:
        return [_number(scale * value, pattern) for value in results[name]]

    spread = zip(results["test_accuracy_mean"], results["test_accuracy_std"], strict=True)
    return pd.DataFrame(
        {
            "quantizer": results["quantizer"],
            "test %": [_spread(*pair) for pair in spread],
            "bytes": column("uplink_bytes_per_update", "{:,.0f}"),
            "bits/par.": column("bits_per_parameter", "{:.2f}"),
            "MSE": column("mse_median", "{:.1e}"),
            "PSNR": column("psnr_median", "{:.1f}"),
            "SSIM": column("ssim_median", "{:.2f}"),
            "id. %": column("identified_rate", "{:.0f}", 100),
            "label %": column("label_accuracy", "{:.0f}", 100),
            "attack": results["strongest_attack"],
            "verdict": [starred(row) for _, row in results.iterrows()],
        }
    )


def _utility(history: pd.DataFrame, parameters: int, seed: int) -> dict[str, object]:
    """Accuracy after the last round and bytes per update, over the seeds of one quantizer."""
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
    row |= {name: strongest[name].mean() for name in CHANCES}
    for name, score, statistic in summaries:
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


def _accuracy_against_none(history: pd.DataFrame, seed: int) -> pd.DataFrame:
    """Compare accuracies seed by seed: the same data, first weights and batches."""
    last = history.sort_values("round").groupby(["quantizer", "seed"], as_index=False).last()
    table = paired_differences(last, "accuracy", ["seed"], REFERENCE, seed)
    names = {"median_difference": "", "low": "_low", "high": "_high"}
    columns = {old: f"accuracy_difference{new}" for old, new in names.items()}
    return table.rename(columns=columns)[["quantizer", *columns.values()]]


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


def _with_interval(row: "pd.Series", name: str, pattern: str, scale: float) -> str:
    """Return a figure, and its interval where it has one: ``0.18 [0.12, 0.25]``."""
    text = _number(scale * row[name], pattern)
    low, high = row.get(f"{name}_low", np.nan), row.get(f"{name}_high", np.nan)
    if pd.isna(low):
        return text
    return f"{text} [{pattern.format(scale * low)}, {pattern.format(scale * high)}]"


def _spread(centre: float, spread: float) -> str:
    """Accuracy in percent, with the standard deviation over seeds where there is one."""
    if pd.isna(spread):
        return _number(100 * centre, "{:.1f}")
    return f"{100 * centre:.1f} ± {100 * spread:.1f}"
