"""The card of a run: its settings, versions and figures in one file that others can quote."""

import json
import tomllib
from pathlib import Path
from typing import Any

import pandas as pd

from fl_sim.data import load_splits
from fl_sim.storage.files import write_text
from fl_sim.storage.fingerprint import fingerprint
from fl_sim.study.provenance import read_sessions
from fl_sim.study.runs import weights_digest
from fl_sim.study.settings import SettingsError
from results.reading.study_reader import StudyReader

FORMAT = 1
FIGURES = (
    "test_accuracy_mean",
    "uplink_bytes_per_update",
    "mse_median",
    "psnr_median",
    "psnr_best_known",
    "ssim_median",
    "identified_rate",
    "label_accuracy",
)
"""Columns of ``results.csv`` that a card holds, with their intervals."""

_ANYWHERE = {None: ("engine", "plugin"), "data": ("data_dir",), "training": ("timeout",)}
"""Settings by section that no figure depends on: where work is done, and where files lie."""


def write_card(study: StudyReader, path: Path) -> None:
    """Write `make_card` as JSON, atomically; the same run gives the same text."""
    write_text(path, json.dumps(make_card(study), indent=1, ensure_ascii=False) + "\n")


def make_card(study: StudyReader) -> dict[str, Any]:
    """Return what others need to quote a run or study, and to compare theirs with it.

    Returns
    -------
    dict
        ``format``, ``name``, ``digest`` (16 digits that stand for ``settings`` and ``images``),
        ``settings`` (those that figures depend on), ``images`` (digest of each data set),
        ``commit`` and ``versions`` of the last session, ``axes`` (settings with several values) and
        ``rows``: the value of each axis, ``quantizer``, ``attack``, ``victims``, ``verdict``,
        ``established`` and ``figures``: ``value``, ``low`` and ``high`` of each of `FIGURES`, null
        where unknown.
    """
    tree = _without_places(tomllib.loads(study.study.toml))
    if "initial_weights" in tree:
        tree["initial_weights"] = _digests(tree["initial_weights"])
    trials = [run.trials[0] for run in study.runs.values()]
    images = list(dict.fromkeys(load_splits(one.data, one.seed).digest for one in trials))
    sessions = read_sessions(study.study.folders(study.root)[0])
    last = sessions[-1] if sessions else {"git": None, "python": "", "packages": {}}
    axes = list(study.study.axes)
    return {
        "format": FORMAT,
        "name": study.root.resolve().name,
        "digest": fingerprint({"settings": tree, "images": images}),
        "settings": tree,
        "images": images,
        "commit": _commit(last["git"]),
        "versions": {"python": last["python"], **last["packages"]},
        "axes": axes,
        "rows": [_row(row, axes) for _, row in study.results.iterrows()],
    }


def read_card(path: Path) -> dict[str, Any]:
    """Read what `write_card` wrote.

    Raises
    ------
    SettingsError
        If the file is missing, or no card of this format.
    """
    try:
        card: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if card["format"] != FORMAT:
            raise SettingsError("card", str(path), f"format {FORMAT}; make it again with `report`")
        rows = [(row["quantizer"], row["figures"]["mse_median"]["value"]) for row in card["rows"]]
        del rows
    except OSError as error:
        raise SettingsError("card", str(path), f"cannot be read: {error.strerror}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise SettingsError("card", str(path), "is not a card.json of a run") from error
    return card


def _without_places(tree: dict[str, Any]) -> dict[str, Any]:
    """Return settings without those of `_ANYWHERE`."""
    kept = {name: dict(value) if isinstance(value, dict) else value for name, value in tree.items()}
    for section, names in _ANYWHERE.items():
        part = kept if section is None else kept[section]
        for name in names:
            part.pop(name, None)
    return kept


def _digests(files: str | list[str]) -> str | list[str]:
    """Return what stands for files of weights, wherever they lie."""
    if isinstance(files, list):
        return [str(_digests(one)) for one in files]
    return files and weights_digest(Path(files))


def _axis(name: str, value: object) -> Any:
    return _digests(str(value)) if name == "initial_weights" else _plain(value)


def _row(row: "pd.Series", axes: list[str]) -> dict[str, Any]:
    return {
        **{name: _axis(name, row[name]) for name in axes},
        "quantizer": row["quantizer"],
        "attack": row["strongest_attack"],
        "victims": int(row["victims"]),
        "verdict": row["verdict"],
        "established": bool(row["established"]),
        "figures": {name: _figure(row, name) for name in FIGURES},
    }


def _figure(row: "pd.Series", name: str) -> dict[str, float | None]:
    columns = {"value": name, "low": f"{name}_low", "high": f"{name}_high"}
    return {key: _number(row.get(column)) for key, column in columns.items()}


def _number(value: Any) -> float | None:
    """Return a number with the six digits of ``results.csv``."""
    return None if value is None or pd.isna(value) else float(f"{value:.6g}")


def _plain(value: Any) -> Any:
    plain = value.item() if hasattr(value, "item") else value
    return plain if isinstance(plain, bool | int | float | str) else str(plain)


def _commit(git: dict[str, Any] | None) -> str:
    return "" if git is None else git["commit"] + "+" * git["dirty"]
