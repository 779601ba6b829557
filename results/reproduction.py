"""Compare two runs, and name the first difference in each file."""

import csv
from itertools import zip_longest
from pathlib import Path

from fl_sim.storage.files import StoreError, read_tensors

TABLES = ("results.csv", "scores.csv", "history.csv")
STORES = ("observations", "reconstructions")


def differences(root: Path, again: Path) -> list[str]:
    """Return the differences between two folders of runs or studies, one line per file.

    Tables are compared byte by byte, observations and reconstructions tensor by tensor. The keys
    of the code are not compared.
    """
    found = []
    for name in outputs(root, again):
        difference = _difference(root / name, again / name)
        if difference:
            found.append(f"{name}: {difference}")
    return found


def outputs(*roots: Path) -> list[Path]:
    """Return the paths of the outputs to compare, relative to their root."""
    patterns = [*TABLES, *(f"{store}/**/*.safetensors" for store in STORES)]
    every = (
        path.relative_to(root)
        for root in roots
        for pattern in patterns
        for place in (pattern, f"*=*/{pattern}")  # in a run; in the points of a study
        for path in root.glob(place)
    )
    return sorted(path for path in set(every) if not path.name.startswith("."))


def _difference(path: Path, other: Path) -> str:
    """Return what differs in a file; empty if nothing does."""
    if not path.exists() or not other.exists():
        return f"only in {(path if path.exists() else other).parent}"
    if path.read_bytes() == other.read_bytes():
        return ""
    return _cell(path, other) if path.suffix == ".csv" else _tensor(path, other)


def _cell(path: Path, other: Path) -> str:
    with path.open(newline="") as mine, other.open(newline="") as theirs:
        none: list[str] = []
        rows = list(zip_longest(csv.reader(mine), csv.reader(theirs), fillvalue=none))
    header = rows[0][0]
    for number, (one, two) in enumerate(rows):
        for column, (value, again) in enumerate(zip_longest(one, two, fillvalue="nothing")):
            if value != again:
                name = header[column] if column < len(header) else column
                return f"row {number}, column {name}: {value} became {again}"
    return "the same cells in other bytes"


def _tensor(path: Path, other: Path) -> str:
    try:
        (tensors, facts), (others, other_facts) = read_tensors(path), read_tensors(other)
    except StoreError as error:
        return str(error)
    if tensors.keys() != others.keys():
        return f"it holds {sorted(tensors)}, and {sorted(others)}"
    for name, tensor in tensors.items():
        if tensor.numpy().tobytes() != others[name].numpy().tobytes():
            return f"tensor {name}"
    facts.pop("key", None)
    other_facts.pop("key", None)
    changed = [key for key in facts | other_facts if facts.get(key) != other_facts.get(key)]
    return f"facts {', '.join(changed)}" if changed else ""
