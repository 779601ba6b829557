"""The results as a table for a paper."""

import pandas as pd

from results.tables.numbers import setting_value, with_interval
from results.tables.summary import further_medians, heading_of
from results.tables.verdicts import guaranteed, starred


def paper_table(results: pd.DataFrame) -> pd.DataFrame:
    """Return the results as text for a paper: numbers with their 95 % bootstrap intervals.

    Parameters
    ----------
    results : DataFrame
        Of `results_table`; columns before ``quantizer`` are axes of a study and come first.

    Returns
    -------
    DataFrame
        One row per quantizer. A star at the verdict means that the privacy figures are not
        established.
    """

    def column(name: str, pattern: str, scale: float = 1) -> list[str]:
        return [with_interval(row, name, pattern, scale) for _, row in results.iterrows()]

    promises = {}
    if guaranteed(results):
        promises = {
            "epsilon": ["none" if pd.isna(one) else f"{one:,.3g}" for one in results["epsilon"]],
            "identified <= %": column("identified_bound", "{:.0f}", 100),
            "MSE >=": column("mse_bound", "{:.2g}"),
        }
    axes = results.columns[: results.columns.get_loc("quantizer")]
    return pd.DataFrame(
        {
            **{name: results[name].map(setting_value) for name in axes},
            "quantizer": results["quantizer"],
            **({} if "server" in axes else {"server": results["server"]}),
            "test %": column("test_accuracy_mean", "{:.1f}", 100),
            "points to none": column("accuracy_difference", "{:+.1f}", 100),
            "bytes": column("uplink_bytes_per_update", "{:,.0f}"),
            "attack": results["strongest_attack"],
            "MSE, median": column("mse_median", "{:.2g}"),
            "MSE, exposed tenth": column("mse_p10", "{:.2g}"),
            **{heading_of(name): column(name, "{:.2g}") for name in further_medians(results)},
            "identified %": column("identified_rate", "{:.0f}", 100),
            **promises,
            "dB to none": column("psnr_difference", "{:+.1f}"),
            "p (Holm)": column("p_holm", "{:.2g}"),
            "Pareto": ["yes" if front else "no" for front in results["pareto"]],
            "verdict": [starred(row) for _, row in results.iterrows()],
        }
    )
