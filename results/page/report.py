"""The page of one or several runs: a self-contained, interactive HTML file."""

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from plotly.io.json import to_json_plotly
from plotly.offline import get_plotlyjs

from fl_sim.storage.files import write_text
from fl_sim.study.provenance import describe, read_sessions
from fl_sim.study.runs import weights_digest
from fl_sim.study.settings import dump_settings
from fl_sim.study.study import read_study
from results.figures import charts
from results.figures.pictures import BUDGET, affordable_victims, batch_strips, victim_cards
from results.reading.run_reader import RunReader
from results.reading.study_reader import GALLERY_VICTIMS
from results.scores.baselines import bar
from results.scores.rows import VICTIM, random_batches, random_victims
from results.tables.csv_text import csv_text
from results.tables.families import NOTE, family_table
from results.tables.numbers import percent
from results.tables.summary import REFERENCE
from results.tables.verdicts import chance, definitions, server_plans, starred

_MOST_OF_A_BATCH = 32  # images of a batch on the page
_PACKAGES = ("torch", "flwr", "numpy", "scipy", "scikit-image", "plotly")


@dataclass(frozen=True)
class ReportEntry:
    """One run on the page; ``prefix`` comes before the names of its quantizers."""

    run: RunReader
    prefix: str = ""

    @cached_property
    def results(self) -> pd.DataFrame:
        """Results with names unique on the page."""
        return self._named(self.run.results)

    @cached_property
    def families(self) -> pd.DataFrame:
        """Families with names unique on the page."""
        families = self.run.families
        return families.assign(family=self.prefix + families["family"].astype("str"))

    @cached_property
    def scores(self) -> pd.DataFrame:
        """Scores with names unique on the page."""
        return self._named(self.run.scores)

    @cached_property
    def history(self) -> pd.DataFrame:
        """History with names unique on the page."""
        return self._named(self.run.history)

    @property
    def setting(self) -> str:
        """What was trained and attacked, in a sentence."""
        settings = self.run.settings
        data, training, audit = settings.data, settings.training, settings.audit
        weights = settings.initial_weights
        start = "" if weights is None else f" from weights {weights_digest(weights)}"
        steps = f", {training.local_steps} local steps" if training.update == "delta" else ""
        facts = (
            data.dataset,
            f"{settings.model} with {self.run.parameters:,} parameters{start}",
            f"{data.clients} clients ({data.partition})",
            f"{training.rounds} rounds",
            f"batch {training.batch_size}",
            f"update: {training.update}{steps}",
            f"server plan {settings.server}",
            f"seeds {_listed(settings.seeds)}",
        )
        return (
            f"{', '.join(facts)}. Attacked in rounds {_listed(settings.observed_rounds)} by "
            f"{_listed(audit.attacks)}. Utility and privacy are measured in this same setting."
        )

    @property
    def command(self) -> str:
        """The command that repeats the run from its own settings and compares the results."""
        root = self.run.folder.root
        return f"python run_simulation.py reproduce {shlex.quote(str(root))}"

    @property
    def sessions(self) -> list[str]:
        """When, where and by which code the run was made, one sentence per session."""
        return list(map(describe, read_sessions(self.run.folder)))

    @property
    def toml(self) -> str:
        """The resolved settings."""
        return dump_settings(self.run.settings)

    def cards(self, budget: int) -> dict[str, list[dict[str, Any]]]:
        """Return the victims' cards per quantizer."""
        victims = random_victims(self.run.scores, affordable_victims(self.run, budget))
        classes = self.run.trials[0].federation.splits.classes
        cards = victim_cards(self.run, victims, classes)
        return {self.prefix + quantizer: of_quantizer for quantizer, of_quantizer in cards.items()}

    def strips(self) -> dict[str, list[dict[str, Any]]]:
        """Return whole batches per quantizer, as in the gallery; of large ones the first images."""
        batches = random_batches(self.run.scores, GALLERY_VICTIMS)[:_MOST_OF_A_BATCH]
        strips = batch_strips(self.run, batches)
        return {self.prefix + quantizer: strip for quantizer, strip in strips.items()}

    def _named(self, frame: pd.DataFrame) -> pd.DataFrame:
        return frame.assign(quantizer=self.prefix + frame["quantizer"].astype("str"))


def write_report(run: RunReader, path: Path) -> None:
    """Write the page of one run, finished or not."""
    _write([ReportEntry(run)], run.folder.root.resolve().name, path)


def compare(roots: Sequence[Path], path: Path) -> None:
    """Write one page over several runs and studies; quantizers are named ``run / quantizer``.

    Raises
    ------
    SettingsError
        If a folder is not that of a run or study.
    """
    names = [root.resolve().name for root in roots]
    if len(set(names)) < len(names):  # runs of one name in different folders
        names = [str(root) for root in roots]
    runs = {
        " / ".join(filter(None, (name, point.name))): RunReader(folder.root)
        for root, name in zip(roots, names, strict=True)
        for study in [read_study(root)]
        for point, folder in zip(study.points, study.folders(root), strict=True)
    }
    write_comparison(runs, " and ".join(names), path)


def write_comparison(runs: Mapping[str, RunReader], title: str, path: Path) -> None:
    """Write one page over several runs, by name."""
    _write([ReportEntry(run, f"{name} / ") for name, run in runs.items()], title, path)


def _write(entries: Sequence[ReportEntry], title: str, path: Path) -> None:
    results = pd.concat([entry.results for entry in entries], ignore_index=True)
    scores = pd.concat([entry.scores for entry in entries], ignore_index=True)
    history = pd.concat([entry.history for entry in entries], ignore_index=True)
    baselines = pd.concat([entry.run.baselines for entry in entries], ignore_index=True)
    strongest = scores[scores["strongest"]]
    shared = [
        metric
        for metric in entries[0].run.metrics
        if all(metric.spec in entry.run.settings.audit.metrics for entry in entries)
    ]
    curve, switches = charts.curve(results, scores, baselines, shared)
    figures = {"curve": curve, "training": charts.training(history)}
    if len(strongest):
        figures["stages"] = charts.stages(strongest, bar(baselines))
        figures["masking"] = charts.masking(strongest)
        figures["labels"] = charts.labels(results)
        figures["clients"] = charts.clients(strongest)
    cards: dict[str, Any] = {}
    strips: dict[str, Any] = {}
    for entry in entries:
        cards |= entry.cards(BUDGET // len(entries))
        strips |= entry.strips()
    text = _ENVIRONMENT.get_template("report.html.j2").render(
        title=title,
        entries=entries,
        verdicts=_verdicts(entries),
        definitions=definitions(results),
        chance=chance(results),
        server=server_plans(results),
        families=_families(entries),
        family_note=NOTE,
        switches={name: list(options) for name, options in switches.items()},
        captions={name: _CAPTIONS[name] for name in figures if name != "curve"},
        victims=len(strongest.drop_duplicates(VICTIM)),
        results=results,
        cell=_cell,
        csv=csv_text(results),
        data=_as_script(
            {
                "figures": {n: f.to_plotly_json() for n, f in figures.items()},
                "switches": switches,
                "cards": cards,
                "strips": strips,
            }
        ),
        versions=", ".join(f"{package} {version(package)}" for package in _PACKAGES),
        plotly=get_plotlyjs(),
    )
    write_text(path, text)


def sentence(row: "pd.Series", reference: "pd.Series | None") -> str:
    """Return sentences on what one quantizer costs, saves and hides."""
    if pd.isna(row["test_accuracy_mean"]):
        return "Not trained yet."
    text = f"Reaches {100 * row['test_accuracy_mean']:.1f} % test accuracy"
    sent = row["uplink_bytes_per_update"]
    if reference is None or row["quantizer"] == reference["quantizer"]:
        text += f" and sends {sent:,.0f} bytes an update."
    else:
        points = 100 * (row["test_accuracy_mean"] - reference["test_accuracy_mean"])
        saved = 1 - sent / reference["uplink_bytes_per_update"]
        change = f"{saved:.0%} fewer" if saved >= 0 else f"{-saved:.0%} more"
        text += f" ({points:+.1f} points) and sends {sent:,.0f} bytes an update ({change})."
    if pd.isna(row["mse_median"]):
        return f"{text} Not attacked yet."
    text += (
        f" The strongest attack recovers {row['success_rate']:.0%} of the victims, identifies "
        f"{row['identified_rate']:.0%} (chance {percent(row['identified_chance'])}) and recovers "
        f"{row['label_accuracy']:.0%} of the labels (chance {percent(row['label_chance'])}); the "
        f"median PSNR is {row['psnr_median']:.1f} dB (best known {row['psnr_best_known']:.1f})."
    )
    if not row["established"]:
        text += f" Not established: {row['doubt']}. A better attack may find more."
    return text


def _verdicts(entries: Sequence[ReportEntry]) -> list[tuple[str, str, str, str]]:
    """Return quantizer, verdict, verdict as shown and sentence of every row.

    Each run has its own reference.
    """
    rows: list[tuple[str, str, str, str]] = []
    for entry in entries:
        named = {str(row["quantizer"]): row for _, row in entry.results.iterrows()}
        reference = named.get(entry.prefix + REFERENCE)
        rows += [
            (name, str(row["verdict"]), starred(row), sentence(row, reference))
            for name, row in named.items()
        ]
    return rows


def _families(entries: Sequence[ReportEntry]) -> pd.DataFrame:
    """Return the table of the families of all runs that have some."""
    tables = [family_table(entry.families) for entry in entries if len(entry.families)]
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame()


def _listed(values: Sequence[object]) -> str:
    return ", ".join(map(str, values))


def _cell(value: object) -> Markup:
    """Return one cell of the table; a number keeps its exact value for sorting."""
    if isinstance(value, str | bool | np.bool_):
        return Markup("<td>{}</td>").format(str(value))
    number = float(value)  # type: ignore[arg-type]
    text = (
        "–" if np.isnan(number) else f"{number:.4g}" if number != int(number) else f"{number:,.0f}"
    )
    return Markup('<td data-number="{}">{}</td>').format(number, text)


def _as_script(data: object) -> str:
    """Return JSON for a script element; no text in it can end the element."""
    text: str = to_json_plotly(data)
    return text.replace("<", "\\u003c")


_CAPTIONS = {
    "training": (
        "Bytes to reach an accuracy",
        "Test accuracy against the bytes that one client has sent so far, mean over seeds.",
    ),
    "stages": (
        "Stages of training",
        "Error of the strongest attack in each observed round; the dashed line is the best "
        "featureless image.",
    ),
    "masking": (
        "Did the attack optimise?",
        "Attack loss at the reconstruction against the loss of the same attack at the truth. A "
        "point far above the diagonal is a failure of the attack, not a merit of the quantizer.",
    ),
    "labels": (
        "Labels",
        "Share of the private labels that the strongest attack recovers; the line is chance.",
    ),
    "clients": (
        "Clients",
        "Median error of the strongest attack on each client; dark means exposed.",
    ),
}

_ENVIRONMENT = Environment(
    loader=PackageLoader(__package__), autoescape=True, undefined=StrictUndefined
)
