"""Parts by name: quantizers, models, attacks and so on; those of this project and other people's.

A part of another module is found once that module was imported: as a plug-in (`load_plugins`, the
setting ``plugin``), or because an installed package names it in the entry-point group
``fl_sim.<kind>``.
"""

import sys
from collections.abc import Callable, Iterable
from functools import lru_cache, partial
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from fl_sim.specs import Spec, parse_parameters
from fl_sim.suggestions import one_of

Part = TypeVar("Part")

KINDS = ("quantizer", "attack", "model", "dataset", "partitioner", "server", "metric")
"""What can be registered."""

_BUILT_IN = {
    "quantizer": ".quantizers",
    "model": ".models",
    "dataset": ".data",
    "partitioner": ".data",
    "server": ".plans",
}
"""Modules of this floor that register parts when they are imported."""


class PartError(RuntimeError):
    """A part that raised or returned what it must not; one line names the setting and the part."""


class _Registered(NamedTuple):
    part: Any
    module: str


_registered: dict[str, dict[str, _Registered]] = {kind: {} for kind in KINDS}


def register(kind: str, name: str) -> Callable[[Part], Part]:
    """Register a class or function under a name that a spec can start with.

    Parameters
    ----------
    kind : str
        One of `KINDS`.
    name : str
        The name; a class gets it as its attribute ``name``.

    Returns
    -------
    callable
        A decorator that returns what it is given.

    Raises
    ------
    ValueError
        If there is no such kind, or another part has the name already.

    Examples
    --------
    >>> from torch import nn
    >>> from fl_sim import register
    >>> @register("model", "linear")
    ... def linear(spec):
    ...     return nn.Sequential(nn.Flatten(), nn.LazyLinear(spec.classes))
    """
    if kind not in KINDS:
        raise ValueError(f"no kind of part {kind!r}; {one_of(kind, KINDS)}")

    # Of the caller: not every part knows its module.
    module = sys._getframe(1).f_globals.get("__name__", "")

    def add(part: Part) -> Part:
        _add(kind, name, part, module)
        return part

    return add


def find(kind: str, name: str) -> Any:
    """Return the part with a name.

    Raises
    ------
    ValueError
        If nobody registered it; the message names what there is, and the nearest name.
    """
    return _find(kind, name).part


def resolve(kind: str, spec: str) -> Callable[..., Any]:
    """Return the part that a spec names, with its parameters filled in: call it to use it.

    Raises
    ------
    ValueError
        If there is no such part, or a parameter is unknown, missing or not of its type.
    """
    parsed = Spec.parse(spec)
    part: Callable[..., Any] = find(kind, parsed.name)
    values = parse_parameters(part, parsed.parameters, parsed.inner)
    return partial(part, **values) if values else part


def make(kind: str, spec: str, *given: object) -> Any:
    """Return what the part that a spec names makes when it is called: an attack, a plan, a model.

    Raises
    ------
    ValueError
        As of `resolve`; or in one line if the part raises anything.
    """
    part = resolve(kind, spec)
    try:
        return part(*given)
    except ValueError:
        raise
    except Exception as error:
        raise ValueError(f"the {kind} {spec!r} raised {one_line(error)}") from error


def names(kind: str) -> tuple[str, ...]:
    """Return every name there is, those of this project first."""
    _import_built_in(kind)
    return tuple(dict.fromkeys([*_registered[kind], *_entry_points(kind)]))


def module_of(kind: str, name: str) -> str:
    """Return the module that registered a part."""
    return _find(kind, name).module


def load_plugins(plugins: Iterable[str]) -> None:
    """Import modules, each by its name or by the path of its file, so that they register parts.

    Raises
    ------
    ValueError
        If a module is not there, fails while it is imported, or a file has the name of a module
        that was imported from elsewhere.
    """
    for plugin in plugins:
        try:
            _import(plugin)
        except ValueError:
            raise
        except Exception as error:
            raise ValueError(f"{plugin} cannot be imported ({one_line(error)})") from error


def _add(kind: str, name: str, part: Any, module: str) -> None:
    known = _registered[kind].get(name)
    if known is not None and known.module != module:
        raise ValueError(f"the {kind} {name!r} of {known.module!r} exists already")
    if isinstance(part, type):
        part.name = name  # type: ignore[attr-defined]
    _registered[kind][name] = _Registered(part, module)


def _import(plugin: str) -> None:
    if not plugin.endswith(".py"):
        import_module(plugin)
        return
    path = Path(plugin).resolve()
    if not path.is_file():
        raise ValueError(f"there is no file {plugin}")
    if str(path.parent) not in sys.path:
        sys.path.insert(0, str(path.parent))
    module = import_module(path.stem)
    if Path(str(module.__file__)).resolve() != path:
        raise ValueError(f"{plugin} has the name of another module, {module.__file__}; rename it")


def _find(kind: str, name: str) -> _Registered:
    if name not in _registered[kind]:
        _import_built_in(kind)
    if name not in _registered[kind] and (point := _entry_points(kind).get(name)) is not None:
        _add(kind, name, point.load(), point.module)
    if name not in _registered[kind]:
        raise ValueError(f"no {kind} {name!r}; {one_of(name, names(kind))}")
    return _registered[kind][name]


def _import_built_in(kind: str) -> None:
    if kind in _BUILT_IN:
        import_module(_BUILT_IN[kind], __package__)


@lru_cache
def _entry_points(kind: str) -> dict[str, EntryPoint]:
    return {point.name: point for point in entry_points(group=f"fl_sim.{kind}")}


def one_line(error: Exception) -> str:
    """Return the class and the words of an error without line breaks."""
    return " ".join(f"{type(error).__name__}: {error}".split())
