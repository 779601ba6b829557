"""The results as a table in a terminal."""

import pandas as pd
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from results.tables.numbers import number, setting_value, with_spread
from results.tables.summary import further_medians, heading_of
from results.tables.verdicts import (
    BEST_KNOWN,
    chance,
    definitions,
    guaranteed,
    server_plans,
    starred,
)

_LESSER_COLUMNS = ["bits/par.", "SSIM", "label %", "attack"]


def print_results(results: pd.DataFrame, console: Console) -> None:
    """Print the results, the reasons for each star, and the meaning of the verdicts.

    The table uses the width of the console. A study with axes (the columns before ``quantizer``)
    gets one table for each point.
    """
    axes = list(results.columns[: results.columns.get_loc("quantizer")])
    points = results.groupby(axes, sort=False) if axes else [((), results)]
    for values, point in points:
        if axes:
            told = map(setting_value, values)
            console.print(Text(", ".join(map("{} = {}".format, axes, told))))
        console.print(terminal_table(point, console.width))
        for _, row in point[~point["established"]].iterrows():
            if not starred(row).endswith("*"):
                continue
            console.print(Text(f"* {row['quantizer']}: not established, {row['doubt']}"))
    for word, meaning in {"best": BEST_KNOWN, **definitions(results)}.items():
        console.print(Text(f"{word}: {meaning}"))


def terminal_table(results: pd.DataFrame, width: int = 80) -> Table:
    """Return the results as a table for a terminal.

    Below 110 columns of width it leaves out `_LESSER_COLUMNS`, and the MSE beside bounds. Further
    metrics are shown if the terminal is wide enough. A star marks privacy figures that are not
    established: a better attack may find more.
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
        if guaranteed(results):  # the PSNR says the same, and bounds need the room
            cells = cells.drop(columns="MSE")
    further = {heading_of(name): results[name] for name in further_medians(results)}
    if width >= 110 + sum(max(len(heading), 8) + 1 for heading in further):
        shown = {heading: values.map(number) for heading, values in further.items()}
        verdicts = cells.pop("verdict")
        cells = cells.assign(**shown, verdict=verdicts)
    for heading in map(str, cells.columns):
        wordy = heading in ("quantizer", "verdict", "attack")
        table.add_column(
            heading,
            justify="left" if wordy else "right",
            overflow="fold",
            no_wrap=heading not in ("quantizer", "attack"),
            min_width=14 if heading == "quantizer" else None,
        )
    for row in cells.itertuples(index=False):
        table.add_row(
            *map(Text, row)
        )  # as Text, because brackets in a spec would be read as markup
    return table


def _terminal_cells(results: pd.DataFrame) -> pd.DataFrame:
    def column(name: str, pattern: str, scale: float = 1) -> list[str]:
        return [number(scale * value, pattern) for value in results[name]]

    promises = {}
    if guaranteed(results):
        epsilons = [number(one, "{:,.3g}") for one in results["epsilon"]]
        promises = {
            "epsilon": ["none" if one == "–" else one for one in epsilons],
            "id. <=": column("identified_bound", "{:.0f}", 100),
        }
    spread = zip(results["test_accuracy_mean"], results["test_accuracy_std"], strict=True)
    return pd.DataFrame(
        {
            "quantizer": results["quantizer"],
            "test %": [with_spread(*pair) for pair in spread],
            "bytes": column("uplink_bytes_per_update", "{:,.0f}"),
            "bits/par.": column("bits_per_parameter", "{:.2f}"),
            "MSE": column("mse_median", "{:.1e}"),
            "PSNR": column("psnr_median", "{:.1f}"),
            "best": column("psnr_best_known", "{:.1f}"),
            "SSIM": column("ssim_median", "{:.2f}"),
            "id. %": column("identified_rate", "{:.0f}", 100),
            **promises,
            "label %": column("label_accuracy", "{:.0f}", 100),
            "attack": results["strongest_attack"],
            "verdict": [starred(row) for _, row in results.iterrows()],
        }
    )


def _terminal_caption(results: pd.DataFrame) -> str:
    least = number(results["baseline_mse"].iloc[0], "{:.2g}")
    return (
        f"{escape(server_plans(results))}\nPrivacy figures: strongest attack, median over victims; "
        f"the best featureless image has MSE {least}. {chance(results)} "
        f"{guaranteed(results)}"
    ).rstrip()
