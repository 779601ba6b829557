"""Fingerprints of the code that makes a result, so that work of other code is never reused."""

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from functools import cache, lru_cache
from importlib.metadata import version
from pathlib import Path
from types import CodeType
from typing import Any

# What these decide stands in the keys already: resolved settings, paths, how work is spread.
_IN_KEYS = {"fl_sim.settings", "fl_sim.runs", "fl_sim.fingerprint", "server.workers"}
_ROOT = Path(__file__).parent.parent
_IMPORT = re.compile(r"^\s*(?:from ([\w.]+) import (\([^)]*\)|.*)|import ([\w.]+))", re.MULTILINE)


def fingerprint(tree: Mapping[str, Any]) -> str:
    """Return 16 hexadecimal digits that stand for a plain tree."""
    return hashlib.sha256(json.dumps(tree, sort_keys=True).encode()).hexdigest()[:16]


@lru_cache
def code_version(entries: tuple[str, ...], packages: tuple[str, ...]) -> str:
    """Fingerprint what runs when the modules ``entries`` do, and the versions of ``packages``.

    Hashed is the compiled code of these modules and of all that they import of this project, be it
    directly or not: comments, docstrings and layout do not count.
    """
    code = hashlib.sha256()
    for name in sorted(modules_of(entries) - _IN_KEYS):
        code.update(_digest(name))
    versions = {package: version(package) for package in packages}
    return fingerprint({"code": code.hexdigest(), "versions": versions})


def modules_of(entries: Iterable[str]) -> set[str]:
    """Return the modules of this project that ``entries`` import, directly or not, and they.

    Raises
    ------
    ModuleNotFoundError
        If an entry is not there: the key of its results would hold nothing of its code.
    """
    found: set[str] = set()
    waiting = list(entries)
    for entry in waiting:
        if not _file(entry).is_file():
            raise ModuleNotFoundError(f"No module named {entry!r}: no key can hold its code.")
    while waiting:
        name = waiting.pop()
        if name not in found and _file(name).is_file():
            found.add(name)
            waiting += _imports(_file(name).read_text(encoding="utf-8"))
            waiting += [name.rpartition(".")[0]] if "." in name else []
    return found


def _imports(source: str) -> Iterator[str]:
    for package, names, module in _IMPORT.findall(source):
        yield package or module
        yield from (f"{package}.{name}" for name in re.findall(r"\w+", names))


def _file(module: str) -> Path:
    path = _ROOT.joinpath(*module.split("."))
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


@cache
def _digest(module: str) -> bytes:
    """Hash what a module does; optimization drops its docstrings."""
    digest = hashlib.sha256()
    source = _file(module).read_bytes()
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
