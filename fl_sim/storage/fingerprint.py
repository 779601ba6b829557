"""Fingerprints of the code that makes a result, so that work of other code is never reused."""

import ast
import hashlib
import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from functools import cache, lru_cache
from importlib.metadata import distribution, packages_distributions
from importlib.util import find_spec, resolve_name
from pathlib import Path
from sysconfig import get_path
from types import CodeType
from typing import Any

from fl_sim.floors import PREFIX

# What these decide stands in the keys already: resolved settings, paths, how work is spread.
_IN_KEYS = {
    f"{PREFIX}fl_sim.study.settings",
    f"{PREFIX}fl_sim.study.plan",
    f"{PREFIX}fl_sim.study.runs",
    f"{PREFIX}fl_sim.storage.fingerprint",
    f"{PREFIX}fl_sim.engines.tasks",
}
# These show, spread and guard work; no result depends on them.
_BESIDE = {"adjustText", "filelock", "matplotlib", "psutil", "ray", "rich", "tomli_w"}
_ROOT = Path(__file__).parents[__name__.count(".")]


def fingerprint(tree: Mapping[str, Any]) -> str:
    """Return 16 hexadecimal digits that stand for a plain tree."""
    return hashlib.sha256(json.dumps(tree, sort_keys=True).encode()).hexdigest()[:16]


@lru_cache
def code_version(entries: tuple[str, ...]) -> str:
    """Fingerprint what runs when the modules ``entries`` do.

    Hashed is the compiled code of these modules and of all that they import, be it directly or not,
    of this project or of code that nobody installed: comments, docstrings and layout do not count.
    Of an installed package its version counts.
    """
    code = hashlib.sha256()
    names = modules_of(entries) - _IN_KEYS
    for name in sorted(names):
        code.update(_digest(name))
    imported = {_top(module) for name in names for module in _imports(name)} - _BESIDE
    imported.update(map(_top, entries))
    versions = {top: _versions(top) for top in sorted(imported) if _versions(top)}
    return fingerprint({"code": code.hexdigest(), "versions": versions})


def modules_of(entries: Iterable[str]) -> set[str]:
    """Return the modules that ``entries`` import, directly or not, and they, but none installed.

    Raises
    ------
    ModuleNotFoundError
        If an entry is not there: the key of its results would hold nothing of its code.
    """
    found: set[str] = set()
    waiting = [entry for entry in entries if _versions(_top(entry)) or _source(entry)]
    while waiting:
        name = waiting.pop()
        if name not in found and _file(name) is not None:
            found.add(name)
            waiting += _imports(name)
            waiting += [name.rpartition(".")[0]] if "." in name else []
    return found


@cache
def _imports(module: str) -> frozenset[str]:
    """Return what a module imports; ``from a import b`` is ``a`` and ``a.b``, which may be one.

    What a package loads when first used is found in what it gives `lazy_loader`.
    """
    path = _source(module)
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_bytes())):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            name = resolve_name("." * node.level + (node.module or ""), package)
            lazy = _lazy(name)
            found.update([name, *(lazy.get(a.name, f"{name}.{a.name}") for a in node.names)])
    return frozenset(found)


@cache
def _lazy(package: str) -> Mapping[str, str]:
    """Return the module of each name that a package loads with `lazy_loader.attach`."""
    path = _file(package)
    if path is None or path.name != "__init__.py":
        return {}
    modules: dict[str, Sequence[str]] = {}
    for node in ast.walk(ast.parse(path.read_bytes())):
        if isinstance(node, ast.keyword) and node.arg == "submod_attrs":
            modules |= ast.literal_eval(node.value)
    return {name: f"{package}.{module}" for module, names in modules.items() for name in names}


def _top(module: str) -> str:
    return module.partition(".")[0]


def _source(module: str) -> Path:
    path = _file(module)
    if path is None:
        raise ModuleNotFoundError(f"No module named {module!r}: no key can hold its code.")
    return path


def _file(module: str) -> Path | None:
    """Return the file of a module; None if it is installed, or is none in Python."""
    top = _top(module)
    folder = _folder(top)
    if folder is None or top in _BESIDE or _versions(top) or _lies_with_packages(top, folder):
        return None
    path = folder.joinpath(*module.split("."))
    path = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    return path if path.is_file() else None


@cache
def _folder(top: str) -> Path | None:
    """Return the folder that a package is imported from; None for the standard library's."""
    if top in sys.stdlib_module_names:
        return None
    if (_ROOT / top).is_dir() or (_ROOT / f"{top}.py").is_file():
        return _ROOT
    spec = find_spec(top)
    places = [] if spec is None else [*(spec.submodule_search_locations or []), spec.origin]
    return next((Path(place).parent for place in places if place), None)


@cache
def _lies_with_packages(top: str, folder: Path) -> bool:
    """Tell whether code lies where packages are installed and is none of this project.

    So does what a package brings along: Ray has copies of others, and puts them on the path.
    """
    installed = {Path(get_path(name)).resolve() for name in ("purelib", "platlib")}
    with_ours = set(_packages().get(top, [])) & set(_packages().get("fl_sim", []))
    ours = top == _top(__name__) or with_ours
    return not ours and not installed.isdisjoint([folder.resolve(), *folder.resolve().parents])


@cache
def _versions(top: str) -> list[str]:
    """Return names and versions of what was installed as a package, from where it is imported."""
    folder = _folder(top)
    found = {name for name in _packages().get(top, []) if name not in _packages().get("fl_sim", [])}
    return [
        f"{name} {one.version}"
        for name in sorted(found)
        for one in [distribution(name)]
        if folder is not None and Path(str(one.locate_file(""))).resolve() == folder.resolve()
    ]


@cache
def _packages() -> Mapping[str, list[str]]:
    return packages_distributions()


@cache
def _digest(module: str) -> bytes:
    """Hash what a module does; optimization drops its docstrings."""
    digest = hashlib.sha256()
    source = _source(module).read_bytes()
    _hash_code(digest, compile(source, module, "exec", dont_inherit=True, optimize=2))
    return digest.digest()


def _hash_code(digest: Any, code: CodeType) -> None:
    digest.update(code.co_code)
    digest.update(repr((code.co_names, code.co_varnames, code.co_freevars)).encode())
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            _hash_code(digest, constant)
        elif isinstance(constant, frozenset):  # its order changes from process to process
            digest.update(repr(sorted(map(repr, constant))).encode())
        else:
            digest.update(repr(constant).encode())
