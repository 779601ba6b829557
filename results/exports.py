"""Figures and tables of a run in the formats of papers, on request."""

from collections.abc import Callable, Iterable
from pathlib import Path

import pandas as pd

from fl_sim.files import write_bytes, write_text
from results.curves import draw_curve
from results.run_reader import RunReader
from results.run_report import draw_run_gallery
from results.tables import COLUMNS


def export(root: Path, formats: Iterable[str]) -> list[Path]:
    """Write a run's figures and tables in further formats, and return their paths.

    Parameters
    ----------
    root : Path
        Folder of a run.
    formats : iterable of str
        Keys of `FORMATS`: ``png``, ``svg`` and ``pdf`` are of the curve and the gallery;
        ``parquet`` of scores and results; ``md`` and ``tex`` of the columns every reader relies on.

    Raises
    ------
    KeyError
        If a format is unknown; nothing is written.
    SettingsError
        If the folder is not that of a run.
    """
    writers = [(suffix, FORMATS[suffix]) for suffix in formats]
    run = RunReader(root)
    return [path for suffix, write in writers for path in write(run, suffix)]


def _figures(run: RunReader, suffix: str) -> list[Path]:
    curve, gallery = (run.folder.root / f"{name}.{suffix}" for name in ("curve", "gallery"))
    draw_curve(run.results, curve)
    draw_run_gallery(run, gallery)
    return [path for path in (curve, gallery) if path.exists()]


def _parquet(run: RunReader, suffix: str) -> list[Path]:
    paths = []
    for name, frame in (("results", run.results), ("scores", run.scores)):
        path = run.folder.root / f"{name}.{suffix}"
        write_bytes(path, frame.to_parquet(index=False))
        paths.append(path)
    return paths


def _markdown(run: RunReader, suffix: str) -> list[Path]:
    shown = _printable(run.results)
    rows = [list(shown.columns), ["---"] * shown.shape[1], *shown.to_numpy().tolist()]
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    return _write(run, suffix, "\n".join(lines) + "\n")


def _latex(run: RunReader, suffix: str) -> list[Path]:
    shown = _printable(run.results)
    return _write(run, suffix, shown.style.hide(axis="index").to_latex(hrules=True))


def _write(run: RunReader, suffix: str, text: str) -> list[Path]:
    path = run.folder.root / f"results.{suffix}"
    write_text(path, text)
    return [path]


def _printable(results: pd.DataFrame) -> pd.DataFrame:
    """Return the columns of the design and the verdict, as text with four digits."""
    shown = results[[*COLUMNS, "verdict"]].rename(columns=lambda name: name.replace("_", " "))
    return shown.map(lambda value: f"{value:.4g}" if isinstance(value, float) else str(value))


FORMATS: dict[str, Callable[[RunReader, str], list[Path]]] = {
    "png": _figures,
    "svg": _figures,
    "pdf": _figures,
    "parquet": _parquet,
    "md": _markdown,
    "tex": _latex,
}
