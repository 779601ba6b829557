"""Files that are whole or absent: atomic writes of bytes, text and tensors; names of folders."""

import hashlib
import json
import os
import re
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError, safe_open

if TYPE_CHECKING:
    from torch import Tensor

# ``name:key=value,key=value``, also within ``wrapper(...)``: folded, no two of these are the same.
_PAIR = r"[a-z]+=[a-z0-9.]+(?:e-\d+)?"
_PLAIN = re.compile(rf"(?:[a-z_]+\()*[a-z0-9_]+(?::{_PAIR}(?:,{_PAIR})*)?\)*")
_LONGEST = 150  # characters of a spec in a name; file systems allow 255 for all of it


class StoreError(RuntimeError):
    """A stored file that is missing, truncated, altered or not what it should be."""


def write_bytes(path: Path, data: bytes, *, private: bool = False) -> None:
    """Write a file whole: to a temporary neighbour, flushed to disk, then renamed over ``path``.

    A private file can be read by its owner only; others follow the process's umask.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    temporary = Path(name)
    try:
        with os.fdopen(handle, "wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        if not private:
            temporary.chmod(0o666 & ~_umask())
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise OSError(error.errno, error.strerror, str(path)) from error
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def folder_name(spec: str) -> str:
    """Return a spec as the name of a folder: ``uniform:bits=4`` becomes ``uniform-bits-4``.

    A digest follows where what is folded or left out may be all that two specs differ in.
    """
    name = re.sub(r"[^A-Za-z0-9.]+", "-", spec).strip("-")
    if _PLAIN.fullmatch(spec) and len(name) <= _LONGEST:
        return name
    return f"{name[:_LONGEST]}-{short_digest(spec)}"


def short_digest(text: str) -> str:
    """Return 8 hexadecimal digits that stand for a text."""
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text whole."""
    write_bytes(path, text.encode())


def write_tensors(path: Path, tensors: "dict[str, Tensor]", facts: Mapping[str, Any]) -> None:
    """Write tensors as safetensors, with plain facts as JSON in the same file's header.

    The file is private: tensors are what a server saw of somebody, or what it made of that.
    """
    from safetensors.torch import save  # noqa: PLC0415 - PyTorch, not for --help

    contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    data = save(contiguous, metadata={"facts": json.dumps(facts, sort_keys=True)})
    write_bytes(path, data, private=True)


def read_tensors(path: Path) -> "tuple[dict[str, Tensor], dict[str, Any]]":
    """Read what `write_tensors` wrote; raise `StoreError` where it is not readable."""
    with _opened(path) as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        return tensors, _facts(file)


def read_facts(path: Path) -> dict[str, Any]:
    """Read the facts alone; raise `StoreError` where the file is truncated or not readable."""
    with _opened(path) as file:
        return _facts(file)


def check_format(path: Path, facts: Any, reads: int) -> None:
    """Raise `StoreError` unless the facts of a file name the format version that is read."""
    found = facts.get("format") if isinstance(facts, dict) else None
    if found != reads:
        has = "no format version" if found is None else f"format version {found!r}"
        raise StoreError(f"{path.name} in {path.parent} has {has}; this code reads {reads}.")


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except (OSError, SafetensorError, KeyError, ValueError, RecursionError) as error:
        raise StoreError(f"{path.name} in {path.parent} cannot be read: {error}") from error


def _facts(file: Any) -> dict[str, Any]:
    facts: dict[str, Any] = json.loads((file.metadata() or {})["facts"])
    return facts
