"""ROC curves of what `clients.Inspect` finds, one panel a server.

``python -m benchmarks.servers.roc SAMPLES`` reads what ``benchmarks.inspection --out SAMPLES``
wrote, and writes ``docs/results/attacks/inspection_roc.csv``. It draws that table to
``docs/images/attacks/inspection_roc.png``; without SAMPLES, the one that is there.
"""

import argparse
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from benchmarks.inspection import HEAD, VARIANTS, score
from clients.signs import LIMITS
from results.figures.panels import save_figure
from results.tables.csv_text import write_csv

TABLE, PLOT = (
    Path("docs/results/attacks/inspection_roc.csv"),
    Path("docs/images/attacks/inspection_roc.png"),
)

RATES = (0.5, 1, 2, 3, 5, 7, 10, 15, 20, 30, 50, 70, 100)
"""Percent of the honest models that may be suspected."""

_COLUMNS = [f"{rate:g} %" for rate in RATES]
_SHADES = {"published": "#000000", "noise": "#0072B2", "jitter": "#009E73", "part": "#D55E00"}
_DASHES = {"kept": (0, (1, 1)), "0.03": (0, (1, 1)), "0.1": (0, (4, 1.5)), "1": (0, (8, 2))}
_ACROSS = 3


def main() -> None:
    """Write table and picture."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("samples", type=Path, nargs="?")
    parser.add_argument("--table", type=Path, default=TABLE)
    parser.add_argument("--plot", type=Path, default=PLOT)
    arguments = parser.parse_args()
    if arguments.samples:
        write_csv(arguments.table, pd.DataFrame(curves(pd.read_csv(arguments.samples))))
    save_figure(figure(pd.read_csv(arguments.table)), arguments.plot)


def curves(samples: pd.DataFrame) -> Iterator[dict[str, object]]:
    """Yield a row for each plan and variant: percent found at each rate of false alarms.

    A model is found if it is more suspicious, by all signs, than so many of the honest ones.
    """
    honest = samples[samples["variant"] == "honest"].drop_duplicates([*HEAD[3:6], *LIMITS])
    alarms = score(honest)
    cuts = [np.quantile(alarms, 1 - rate / 100, method="higher") for rate in RATES[:-1]]
    planted = samples[samples["variant"] != "honest"]
    for (plan, model, variant), group in planted.groupby(["plan", "model", "variant"], sort=False):
        found = [100 * float((score(group) > cut).mean()) for cut in cuts] + [100.0]
        yield {
            "plan": plan,
            "model": model,
            "variant": variant,
            "models": len(group),
            "honest models": len(honest),
            **{name: f"{value:.1f}" for name, value in zip(_COLUMNS, found, strict=True)},
            "commit": ", ".join(sorted(set(group["commit"]))),
        }


def figure(table: pd.DataFrame) -> Figure:
    """Draw a panel for each plan, and a curve in it for each variant."""
    plans = list(table.groupby("plan", sort=False))
    rows = -(-len(plans) // _ACROSS)
    made = Figure(figsize=(17.6 / 2.54, (4.2 * rows + 1.4) / 2.54), dpi=200, layout="constrained")
    panels = made.subplots(rows, _ACROSS, squeeze=False, sharex=True, sharey=True).flatten()
    for axes, (plan, own) in zip(panels, plans, strict=False):
        _draw(axes, str(plan), own)
    for axes in panels[len(plans) :]:
        axes.axis("off")
    for axes in panels[::_ACROSS]:
        axes.set_ylabel("planted models found", fontsize=6.5)
    for axes in panels[max(0, len(plans) - _ACROSS) : len(plans)]:
        axes.set_xlabel("honest models suspected", fontsize=6.5)
        axes.tick_params(labelbottom=True)
    handles, labels = panels[0].get_legend_handles_labels()
    made.legend(handles, labels, loc="outside lower center", ncols=5, fontsize=6, frameon=False)
    return made


def _draw(axes: Axes, plan: str, table: pd.DataFrame) -> None:
    for number, variant in enumerate(VARIANTS):
        for _, row in table[table["variant"] == variant].iterrows():
            kind, _, size = variant.partition("=")
            colour = _SHADES.get(kind, _SHADES["published"])
            dashes = _DASHES.get(size or kind, "-")
            found = row[_COLUMNS].astype(float)
            axes.plot(
                RATES, found, color=colour, ls=dashes, lw=1.1, label=variant, zorder=20 - number
            )
    axes.axvline(1, color="#bbbbbb", lw=0.6, zorder=0)
    axes.set_xscale("log")
    axes.set_ylim(-3, 103)
    axes.set_title(plan, fontsize=6.5)
    axes.xaxis.set_major_formatter(PercentFormatter(decimals=0))
    axes.yaxis.set_major_formatter(PercentFormatter(decimals=0))
    axes.tick_params(labelsize=6, length=2, pad=2, which="both")
    axes.grid(visible=True, which="major", color="#e4e4e4", linewidth=0.4)
    axes.spines[["top", "right"]].set_visible(False)


if __name__ == "__main__":
    main()
