"""MNIST and its kin as they are published: four IDX files, gzipped or not."""

import gzip
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from fl_sim.study.settings import SettingsError

Bytes = np.ndarray[Any, np.dtype[np.uint8]]
_FAMILY = {"MNIST", "FashionMNIST", "KMNIST", "QMNIST", "EMNIST"}
_KINDS = {"images": 3, "labels": 1}  # and their dimensions


def find_idx(root: Path, name: str) -> Path | None:
    """Return the folder with the files of ``name``, e.g. ``MNIST``, or None.

    It is ``root/<name>/raw``, as torchvision has it, or one that is near: ``root``, if it holds the
    files itself, the ``raw`` in it, or one folder further down. The files of other sets have the
    same names: a folder named after one of those is not taken.
    """
    places = (root / name / "raw", root / name, root / "raw", root, *root.glob(f"*/{name}/raw"))
    return next((p for p in places if _owner(p) not in _FAMILY - {name} and _is_whole(p)), None)


def read_idx(folder: Path, split: str) -> tuple[Bytes, Bytes]:
    """Return images ``(N, H, W)`` and labels ``(N,)`` of a split, ``train`` or ``t10k``.

    Raises
    ------
    SettingsError
        If a file is broken, or there are not as many labels as images.
    """
    images, labels = (_read(_file(folder, split, kind), _KINDS[kind]) for kind in _KINDS)
    if len(images) != len(labels):
        raise SettingsError(
            "data_dir", str(folder), f"{len(labels)} labels of {len(images)} {split} images"
        )
    return images, labels


def _owner(folder: Path) -> str:
    folder = folder.absolute()
    return folder.parent.name if folder.name == "raw" else folder.name


def _is_whole(folder: Path) -> bool:
    return all(any(_files(folder, split, k)) for split in ("train", "t10k") for k in _KINDS)


def _file(folder: Path, split: str, kind: str) -> Path:
    return next(_files(folder, split, kind))


def _files(folder: Path, split: str, kind: str) -> Iterator[Path]:
    for dash in "-.":
        for end in ("", ".gz"):
            path = folder / f"{split}-{kind}{dash}idx{_KINDS[kind]}-ubyte{end}"
            if path.is_file():
                yield path


def _read(path: Path, dimensions: int) -> Bytes:
    try:
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        magic, *shape = np.frombuffer(content, ">i4", 1 + dimensions).tolist()
        if magic != 0x800 + dimensions:
            raise ValueError("another kind of file")
        return np.frombuffer(content, np.uint8, offset=4 * (1 + dimensions)).reshape(shape)
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise SettingsError("data_dir", str(path), f"is not a whole IDX file ({error})") from error
