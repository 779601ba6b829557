"""Tables of docs/findings.md, out of the folders of the studies that were run for them."""

from collections.abc import Callable, Mapping

import pandas as pd

from results.reading.study_reader import StudyReader
from results.tables.numbers import number
from results.tables.verdicts import starred

_PAPER = {  # what Deep Leakage from Gradients says, from memory
    "none": ("", "leaks"),
    "fp16": ("", "leaks"),
    "absmax:bits=8": ("", "int8 defends"),
    "gaussian:sigma=0.001": ("", "leaks"),
    "gaussian:sigma=0.01": ("", "defends"),
    "gaussian:sigma=0.1": ("", "defends"),
    "topk:keep=0.8": ("20 % pruned", "the limit"),
    "topk:keep=0.7": ("30 % pruned", "defends"),
    "topk:keep=0.3": ("70 % pruned", "defends"),
}
_NETWORKS = {"lenet_dlg": "sigmoid", "lenet": "tanh"}


def default(study: StudyReader) -> pd.DataFrame:
    """Return the results of a run as they are."""
    return study.results


def compared(study: StudyReader) -> pd.DataFrame:
    """Return accuracy, bytes and errors with their intervals, after the axes of the study."""
    results = study.results
    columns = {
        "test %": ("test_accuracy_mean", "{:.1f}", 100),
        "points to none": ("accuracy_difference", "{:+.1f}", 100),
        "bytes": ("uplink_bytes_per_update", "{:.0f}", 1),
        "MSE, median": ("mse_median", "{:.2g}", 1),
        "MSE, exposed tenth": ("mse_p10", "{:.2g}", 1),
        "PSNR dB": ("psnr_median", "{:.1f}", 1),
        "best known dB": ("psnr_best_known", "{:.1f}", 1),
        "SSIM": ("ssim_median", "{:.2f}", 1),
        "recovered %": ("success_rate", "{:.0f}", 100),
        "identified %": ("identified_rate", "{:.0f}", 100),
        "labels %": ("label_accuracy", "{:.0f}", 100),
        "dB to none": ("psnr_difference", "{:+.1f}", 1),
        "epsilon": ("epsilon", "{:.3g}", 1),
    }
    axes = results.columns[: results.columns.get_loc("quantizer") + 1]
    made = {name: results[name].astype(str).tolist() for name in axes}
    made |= _formatted(results, columns)
    made["p (Holm)"] = _texts(results["p_holm"], "{:.2g}")
    made["strongest"] = list(results["strongest_attack"])
    made["verdict"] = [starred(row) for _, row in results.iterrows()]
    return pd.DataFrame(made | {"doubt": results["doubt"].tolist()})


def dlg_table(study: StudyReader) -> pd.DataFrame:
    """Return the errors of the published attack and of one that knows the quantizer."""
    scores = study.scores.assign(attack=study.scores["attack"].str.partition(":")[0])
    groups = scores.groupby(["quantizer", "model", "attack"])[["mse", "ssim"]].median()
    rows = []
    for quantizer in study.results["quantizer"].unique():
        note, says = _PAPER.get(quantizer, ("", ""))
        row = {"quantizer": quantizer, "note": note, "the paper says": says}
        for model, network in _NETWORKS.items():
            own = groups.loc[quantizer, model]
            for attack in own.index:
                row[f"{network}: MSE of {attack}"] = f"{own.loc[attack, 'mse']:.2g}"
                row[f"{network}: SSIM of {attack}"] = f"{own.loc[attack, 'ssim']:.2f}"
        strongest = scores[scores["strongest"] & (scores["quantizer"] == quantizer)]
        best = strongest.groupby("model")[["psnr", "psnr_best_known"]].median()
        for model, network in _NETWORKS.items():
            row[f"{network}: PSNR dB"] = f"{best.loc[model, 'psnr']:.1f}"
            row[f"{network}: best known dB"] = f"{best.loc[model, 'psnr_best_known']:.1f}"
        rows.append(row | {"identified %": f"{100 * strongest['identified'].mean():.0f}"})
    return pd.DataFrame(rows)


def stages(study: StudyReader) -> pd.DataFrame:
    """Return what each attack, and the choice among them, finds in each observed round."""
    scores = study.scores
    chosen = scores[scores["strongest"]].assign(attack="chosen")
    columns = {
        "PSNR dB": ("psnr", "median", 1, "{:.1f}"),
        "best known dB": ("psnr_best_known", "median", 1, "{:.1f}"),
        "correlation": ("correlation", "median", 1, "{:.2f}"),
        "identified %": ("identified", "mean", 100, "{:.0f}"),
    }
    rows = []
    for (quantizer, attack), own in pd.concat([scores, chosen]).groupby(
        ["quantizer", "attack"], sort=False
    ):
        row = {"quantizer": quantizer, "attack": attack}
        for heading, (column, statistic, scale, pattern) in columns.items():
            for server_round, value in own.groupby("round")[column].agg(statistic).items():
                row[f"{heading}, round {server_round}"] = pattern.format(scale * value)
        rows.append(row)
    order = {name: place for place, name in enumerate(study.results["quantizer"])}
    return pd.DataFrame(rows).sort_values("quantizer", key=lambda c: c.map(order), kind="stable")


def accuracy(study: StudyReader) -> pd.DataFrame:
    """Return accuracy by seed, and the difference to no quantizer."""
    last = study.history.sort_values("round").groupby(["quantizer", "seed"])["accuracy"].last()
    percents = 100 * last.unstack()
    results = study.results.set_index("quantizer")
    table = pd.DataFrame({"bytes": _texts(results["uplink_bytes_per_update"], "{:.0f}")})
    table.insert(0, "quantizer", list(results.index))
    percents = percents.loc[results.index]
    for seed, values in percents.items():
        table[f"seed {seed} %"] = _texts(values, "{:.1f}")
    table["mean %"] = _texts(percents.mean(axis=1), "{:.1f}")
    table["s.d."] = _texts(percents.std(axis=1), "{:.1f}")
    for seed, values in (percents - percents.loc["none"]).items():
        table[f"points to none, seed {seed}"] = _texts(values, "{:+.1f}")
    return table


def error_feedback(study: StudyReader) -> pd.DataFrame:
    """Return accuracy, bytes and errors."""
    results = study.results
    return pd.DataFrame(
        {
            "quantizer": results["quantizer"],
            "test %": _texts(100 * results["test_accuracy_mean"], "{:.1f}"),
            "bytes": _texts(results["uplink_bytes_per_update"], "{:.0f}"),
            "MSE, median": _texts(results["mse_median"], "{:.2g}"),
            "best known dB": _texts(results["psnr_best_known"], "{:.1f}"),
            "identified %": _texts(100 * results["identified_rate"], "{:.0f}"),
            "verdict": [starred(row) for _, row in results.iterrows()],
        }
    )


def realistic(study: StudyReader) -> pd.DataFrame:
    """Return what is found at each start, batch size and stage, and why more may be there."""
    results = study.results_by_round
    columns = {
        "test %": ("test_accuracy_mean", "{:.1f}", 100),
        "PSNR dB": ("psnr_median", "{:.1f}", 1),
        "best known dB": ("psnr_best_known", "{:.1f}", 1),
        "correlation": ("correlation_median", "{:.2f}", 1),
        "recovered %": ("success_rate", "{:.0f}", 100),
        "identified %": ("identified_rate", "{:.0f}", 100),
        "labels %": ("label_accuracy", "{:.0f}", 100),
    }
    made: dict[str, list[str]] = {}
    if "initial_weights" in results:
        made["weights"] = ["trained" if file else "drawn" for file in results["initial_weights"]]
    made |= {name: results[name].astype(str).tolist() for name in ("batch_size", "round")}
    made |= {"quantizer": results["quantizer"].tolist(), **_formatted(results, columns)}
    made["verdict"] = [starred(row) for _, row in results.iterrows()]
    return pd.DataFrame(made | {"doubt": results["doubt"].tolist()})


TABLES: Mapping[str, Callable[[StudyReader], pd.DataFrame]] = {
    "default": default,
    "one_bit": compared,
    "curves": compared,
    "curves_cifar": compared,
    "defences": compared,
    "malicious": compared,
    "dlg_table": dlg_table,
    "stages": stages,
    "accuracy": accuracy,
    "error_feedback": error_feedback,
    "realistic": realistic,
    "realistic_malicious": realistic,
}
"""The table of each study, by the study's name."""


def _formatted(
    results: pd.DataFrame, columns: Mapping[str, tuple[str, str, float]]
) -> dict[str, list[str]]:
    """Return columns, each with its pattern and scale, by heading, with the ends of intervals."""
    return {
        heading + end: _texts(scale * results[column + end], pattern)
        for heading, (column, pattern, scale) in columns.items()
        for end in ("", "_low", "_high")
        if column + end in results
    }


def _texts(values: "pd.Series[float]", pattern: str) -> list[str]:
    return [number(value, pattern).replace("–", "") for value in values]
