"""Figures and tables of a run or study in further formats."""

from collections.abc import Callable, Iterable
from pathlib import Path

from fl_sim.storage.files import write_bytes, write_text
from results.figures.by_setting import draw_by_setting
from results.figures.curves import draw_curve
from results.figures.panels import save_figure
from results.reading.study_reader import StudyReader, run_gallery
from results.tables.families import NOTE, family_table
from results.tables.paper import paper_table
from results.tables.verdicts import chance, definitions, server_plans


def export(root: Path, formats: Iterable[str]) -> list[Path]:
    """Write figures and tables of a run or study in further formats, and return their paths.

    Parameters
    ----------
    root : Path
        Folder of a run or study. The galleries of a study are written to the folders of its points.
    formats : iterable of str
        Keys of `FORMATS`: ``png``, ``svg`` and ``pdf`` for the figures;
        ``parquet`` for scores and results; ``md`` and ``tex`` for
        `results.tables.paper.paper_table`; ``tex`` also for the curve as a figure that includes
        ``curve.pdf``, and for the table of families.

    Raises
    ------
    KeyError
        If a format is unknown; nothing is written.
    SettingsError
        If the folder is not that of a run or study.
    """
    writers = [(suffix, FORMATS[suffix]) for suffix in formats]
    study = StudyReader(root)
    return [path for suffix, write in writers for path in write(study, suffix)]


def _figures(study: StudyReader, suffix: str) -> list[Path]:
    paths = [study.root / f"curve.{suffix}"]
    draw_curve(study.results, paths[0])
    for setting in study.study.axes:
        paths.append(study.root / f"psnr_by_{setting}.{suffix}")
        draw_by_setting(study.results_by_round, setting, paths[-1])
    for run in study.runs.values():
        if run.scores["round"].nunique() > 1:
            paths.append(run.folder.root / f"curve_by_round.{suffix}")
            draw_curve(run.results_by_round, paths[-1])
        gallery = run_gallery(run)
        if gallery is not None:
            paths.append(run.folder.root / f"gallery.{suffix}")
            save_figure(gallery, paths[-1])
    return paths


def _parquet(study: StudyReader, suffix: str) -> list[Path]:
    paths = []
    for name, frame in (("results", study.results), ("scores", study.scores)):
        paths.append(study.root / f"{name}.{suffix}")
        write_bytes(paths[-1], frame.to_parquet(index=False))
    return paths


def _markdown(study: StudyReader, suffix: str) -> list[Path]:
    shown = paper_table(study.results)
    rows = [list(shown.columns), ["---"] * shown.shape[1], *shown.to_numpy().tolist()]
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    doubts = study.results.loc[~study.results["established"], ["quantizer", "doubt"]]
    notes = [f"- {word}: {text}." for word, text in definitions(study.results).items()]
    notes += [f"- * `{q}`: not established, {why}." for q, why in doubts.itertuples(index=False)]
    notes = [note.replace("- *", "- \\*") for note in notes]
    text = "\n".join([*lines, "", *dict.fromkeys(notes), "", _caption(study)])
    return _write(study, suffix, text.rstrip() + "\n")


def _latex(study: StudyReader, suffix: str) -> list[Path]:
    shown = paper_table(study.results).map(_escaped)
    shown.columns = shown.columns.map(_escaped)
    table = shown.style.hide(axis="index").to_latex(hrules=True)
    words = [rf"\emph{{{word}}}: {text}." for word, text in definitions(study.results).items()]
    words.append(_escaped(_caption(study)))
    text = f"{table}\\par {{\\footnotesize {' '.join(words)}}}\n"
    paths = _write(study, suffix, text) + _latex_curve(study)
    if len(study.families):
        paths.append(study.root / "families.tex")
        shown = family_table(study.families).map(_escaped)
        shown.columns = shown.columns.map(_escaped)
        made = shown.style.hide(axis="index").to_latex(hrules=True)
        write_text(paths[-1], f"{made}\\par {{\\footnotesize {_escaped(NOTE)}}}\n")
    return paths


def _latex_curve(study: StudyReader) -> list[Path]:
    """Write the curve as a figure of LaTeX, with the PDF that it includes."""
    several = bool(study.study.axes)
    kind, width = ("figure*", r"\textwidth") if several else ("figure", r"\columnwidth")
    caption = (
        "Test accuracy against the median error of the strongest attack. A line joins quantizers "
        "that differ in one number, whose smallest and largest value stand at its ends; quantizers "
        f"without a family have their names. {_caption(study)}"
    )
    lines = [
        rf"\begin{{{kind}}}",
        r"  \centering",
        rf"  \includegraphics[width={width}]{{curve.pdf}}",
        rf"  \caption{{{_escaped(caption)}}}",
        rf"\end{{{kind}}}",
    ]
    paths = [study.root / "curve.tex", study.root / "curve.pdf"]
    write_text(paths[0], "\n".join(lines) + "\n")
    draw_curve(study.results, paths[1])
    return paths


def _escaped(text: str) -> str:
    return text.replace("%", r"\%").replace("_", r"\_")


def _caption(study: StudyReader) -> str:
    return f"{server_plans(study.results)} {chance(study.results)}".rstrip()


def _write(study: StudyReader, suffix: str, text: str) -> list[Path]:
    path = study.root / f"results.{suffix}"
    write_text(path, text)
    return [path]


FORMATS: dict[str, Callable[[StudyReader, str], list[Path]]] = {
    "png": _figures,
    "svg": _figures,
    "pdf": _figures,
    "parquet": _parquet,
    "md": _markdown,
    "tex": _latex,
}
