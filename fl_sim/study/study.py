"""A study: the product of the settings with several values; each of its points is a run."""

import re
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import tomli_w

from fl_sim.storage.files import short_digest, write_text
from fl_sim.storage.lock import locked
from fl_sim.study.runs import RunFolder
from fl_sim.study.settings import (
    Settings,
    SettingsError,
    axes_of,
    parse_settings,
    read_tree,
    set_leaf,
    settings_tree,
)


@dataclass(frozen=True)
class Point:
    """One combination of the values of a study's axes.

    Attributes
    ----------
    values : Mapping[str, object]
        Value of each axis; empty in a study without axes.
    settings : Settings
        Resolved, with one value each.
    """

    values: Mapping[str, object]
    settings: Settings

    @property
    def name(self) -> str:
        """Name that is also a folder, ``alpha=0.1,local_steps=5``; empty without axes."""
        return ",".join(f"{name}={_plain(value)}" for name, value in self.values.items())


@dataclass(frozen=True)
class Study:
    """All points of a study that its rules leave.

    Attributes
    ----------
    axes : Mapping[str, tuple]
        Values of each setting that has several, by leaf name.
    points : tuple of Point
        The product of the axes, but for points of which every trial is excluded.
    """

    axes: Mapping[str, tuple[object, ...]]
    points: tuple[Point, ...]

    @property
    def toml(self) -> str:
        """The resolved study as TOML that `load_study` reads back to an equal one."""
        tree = settings_tree(self.points[0].settings)
        for name, values in self.axes.items():
            plain = [str(value) if isinstance(value, Path) else value for value in values]
            set_leaf(tree, name, plain)
        return tomli_w.dumps(tree)

    def folders(self, root: Path) -> list[RunFolder]:
        """Return the folder of each point; ``root`` itself in a study without axes."""
        return [RunFolder(root / point.name) for point in self.points]

    def locked(self, root: Path) -> AbstractContextManager[None]:
        """Be the only writer below ``root`` and the folders of the points; see `locked`."""
        return locked(list(dict.fromkeys([root, *(f.root for f in self.folders(root))])))

    def create(self, root: Path) -> list[RunFolder]:
        """Make the folders, write the resolved settings into each, and return those of points."""
        folders = self.folders(root)
        if self.axes:
            write_text(RunFolder(root).settings_file, self.toml)
        for point, folder in zip(self.points, folders, strict=True):
            folder.create(point.settings)
        return folders


def load_study(path: Path | None, overrides: Mapping[str, object], *, smoke: bool = False) -> Study:
    """Build a study from its TOML file and overrides; `fl_sim.study.settings.read_tree` says how.

    Raises
    ------
    SettingsError
        If the file cannot be read or parsed, a key is unknown, a value is not allowed or there
        twice, or the rules leave no trial.
    """
    tree = read_tree(path, overrides, smoke=smoke)
    axes = axes_of(tree)
    every = [_point(tree, dict(zip(axes, v, strict=True))) for v in product(*axes.values())]
    points = tuple(point for point in every if point.settings.combinations)
    if not points:
        raise SettingsError("exclude", tree["exclude"], "the rules leave no trial of the study")
    names = [point.name for point in points]
    for name in names:
        if names.count(name) > 1:
            raise SettingsError(", ".join(axes), name, "each value only once")
    values = {name: tuple(dict.fromkeys(point.values[name] for point in every)) for name in axes}
    return Study(values, points)


def read_study(root: Path) -> Study:
    """Return the study whose folder this is; a run is a study without axes.

    Raises
    ------
    SettingsError
        If the folder is not that of a run or study.
    """
    folder = RunFolder(root)
    folder.require()
    return load_study(folder.settings_file, {})


def _point(tree: Mapping[str, Any], values: Mapping[str, object]) -> Point:
    own = {key: dict(value) if isinstance(value, dict) else value for key, value in tree.items()}
    for name, value in values.items():
        set_leaf(own, name, value)
    settings = parse_settings(own)
    return Point({name: _told(settings.value(name)) for name in values}, settings)


def _told(value: object) -> object:
    """Return the value of a setting, "" where it is absent: neither TOML nor tables have None."""
    return "" if value is None else value


def _plain(value: object) -> str:
    text = str(value).lower() if isinstance(value, bool) else str(value) or "none"
    shown = value.name if isinstance(value, Path) else text
    name = re.sub(r"[^A-Za-z0-9._+-]+", "-", shown)
    return name if name == text else f"{name}-{short_digest(text)}"
