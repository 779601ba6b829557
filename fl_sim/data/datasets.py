"""Data sets by name: the bundled digits, torchvision's, and any folder of images."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from fl_sim.data.folders import Pixels, class_names, read_classes, warn_of_others
from fl_sim.data.idx import find_idx, read_idx
from fl_sim.registry import one_line, register, resolve
from fl_sim.seeding import Purpose, numpy_rng
from fl_sim.study.settings import DataSettings, SettingsError


@dataclass(frozen=True, eq=False)
class Images:
    """Images and their labels, kept as bytes and read as pixels in [0, 1].

    Attributes
    ----------
    data : Tensor
        ``(N, C, H, W)`` uint8.
    labels : Tensor
        ``(N,)`` int64.
    """

    data: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def pixels(self, index: "np.ndarray[Any, np.dtype[np.int64]] | slice" = slice(None)) -> Tensor:
        """Return the chosen images as float32 ``(n, C, H, W)`` in [0, 1]."""
        return self.data[index].float() / 255

    def take(self, index: "np.ndarray[Any, np.dtype[np.int64]]") -> "Images":
        """Return the chosen images and labels."""
        return Images(self.data[index], self.labels[index])


@dataclass(frozen=True, eq=False)
class Splits:
    """Three disjoint sets: clients draw from ``train``, accuracy is measured on ``test``.

    ``public`` holds the auxiliary images an attacker may own and the gallery of identifiability.
    ``digest`` stands for what was loaded: a folder whose pictures were replaced has another one.
    """

    train: Images
    test: Images
    public: Images
    classes: tuple[str, ...]
    digest: str

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height and width of one image."""
        channels, height, width = self.train.data.shape[1:]
        return channels, height, width


@lru_cache(maxsize=2)
def load_splits(settings: DataSettings, seed: int) -> Splits:
    """Load a data set and split it, as a pure function of settings and seed.

    Raises
    ------
    SettingsError
        If the folder is missing, holds no images, or the split leaves a part empty; or if the
        function of another module raised, or returned what is not a data set.
    """
    loaded = _load(settings.dataset, settings.data_dir)
    known, test, classes = loaded
    rng = numpy_rng(seed, Purpose.SPLIT)
    if test is None:
        order = rng.permutation(len(known))
        cut = round(settings.test_fraction * len(known))
        known, test = known.take(order[cut:]), known.take(order[:cut])
    order = rng.permutation(len(known))[: settings.limit]
    if settings.limit is not None:
        test = test.take(rng.permutation(len(test))[: settings.limit])
    cut = round(settings.public_fraction * len(order))
    if min(len(test), cut, len(order) - cut) < 1:
        raise SettingsError(
            "dataset", settings.dataset, f"{len(known)} images are too few to split in three"
        )
    return Splits(known.take(order[cut:]), test, known.take(order[:cut]), classes, loaded.digest)


class DataSet(NamedTuple):
    """Training images, test images if the set has them, and the names of its classes.

    A data set of another module is a function that is registered under the kind ``dataset``, is
    called with the setting ``data_dir`` (a `Path`, or None) and returns this.
    """

    train: Images
    test: Images | None
    classes: tuple[str, ...]

    @property
    def digest(self) -> str:
        """16 hexadecimal digits that stand for all of it, wherever it was read from."""
        digest = hashlib.sha256(repr(self.classes).encode())
        for images in (self.train, self.test):
            if images is not None:
                for values in (images.data, images.labels):
                    digest.update(repr(tuple(values.shape)).encode())
                    digest.update(values.contiguous().numpy().data)
        return digest.hexdigest()[:16]


@lru_cache(maxsize=1)
def _load(spec: str, folder: Path | None) -> DataSet:
    loaded = call_part("dataset", spec, resolve("dataset", spec), folder)
    fault = _fault_of(loaded)
    if fault:
        raise SettingsError("dataset", spec, fault)
    return loaded  # type: ignore[no-any-return]


def call_part(setting: str, spec: str, part: Callable[..., Any], *given: object) -> Any:
    """Call the function of a data set or partitioner.

    Raises
    ------
    SettingsError
        If it raises anything; one line names the setting and the error.
    """
    try:
        return part(*given)
    except SettingsError:
        raise
    except ValueError as error:
        raise SettingsError(setting, spec, str(error)) from error
    except Exception as error:
        raise SettingsError(setting, spec, f"it raised {one_line(error)}") from error


def _fault_of(loaded: Any) -> str:
    """Return what is wrong with what the function of a data set returned; empty if nothing is."""
    if not isinstance(loaded, DataSet):
        return f"it returned a {type(loaded).__name__}, not a DataSet"
    if len(set(loaded.classes)) < 2 or not all(isinstance(name, str) for name in loaded.classes):
        return f"its classes {loaded.classes!r} are not two different names or more"
    parts = [images for images in (loaded.train, loaded.test) if images is not None]
    fault = next(filter(None, (_fault_of_images(one, len(loaded.classes)) for one in parts)), "")
    shapes = {tuple(images.data.shape[1:]) for images in parts}
    if not fault and len(shapes) > 1:
        return f"its training and test images have the shapes {sorted(shapes)}"
    return fault


def _fault_of_images(images: Images, classes: int) -> str:
    data, labels = images.data, images.labels
    if data.dtype != torch.uint8 or data.dim() != 4:
        return f"its images are {data.dtype} {tuple(data.shape)}, not uint8 (N, C, H, W)"
    if labels.dtype != torch.int64 or labels.shape != data.shape[:1]:
        return f"its labels are {labels.dtype} {tuple(labels.shape)}, not int64 ({len(data)},)"
    if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < classes:
        return f"its labels are not from 0 to {classes - 1}"
    return ""


@register("dataset", "digits")
def digits(folder: Path | None) -> DataSet:
    """Load scikit-learn's 1,797 digits of 8x8 pixels, which come along with it."""
    del folder
    from sklearn.datasets import load_digits  # noqa: PLC0415 - one second, only where needed

    found = load_digits()
    data = torch.from_numpy(np.rint(found.images * (255 / 16)).astype(np.uint8)).unsqueeze(1)
    labels = torch.from_numpy(found.target.astype(np.int64))
    return DataSet(Images(data, labels), None, tuple(map(str, found.target_names)))


def _load_torchvision(name: str, root: Path | None) -> DataSet:
    """Load a data set of torchvision; download to ``root`` what is not there."""
    from torchvision import datasets as tv  # noqa: PLC0415 - 130 MB, only where needed

    kind: Any = getattr(tv, name)
    root = root or Path.home() / ".cache" / "fl_sim"
    folder = find_idx(root, kind.__name__) if issubclass(kind, tv.MNIST) else None
    if folder is not None:
        train, test = (_from_idx(folder, split) for split in ("train", "t10k"))
        return DataSet(train, test, tuple(kind.classes))
    try:
        if name == "SVHN":
            train, test = (kind(str(root), split, download=True) for split in ("train", "test"))
        else:
            train, test = (_open(kind, _home(root, kind), train) for train in (True, False))
    except (OSError, RuntimeError) as error:
        raise SettingsError(
            "data_dir",
            str(root),
            f"has no {_expected(kind)} and it could not be downloaded ({error})",
        ) from error
    classes = tuple(getattr(train, "classes", map(str, range(10))))
    return DataSet(_from_torchvision(train), _from_torchvision(test), classes)


for _name, _own in (
    ("mnist", "MNIST"),
    ("fashion_mnist", "FashionMNIST"),
    ("cifar10", "CIFAR10"),
    ("cifar100", "CIFAR100"),
    ("svhn", "SVHN"),
):
    register("dataset", _name)(partial(_load_torchvision, _own))


def _expected(kind: Any) -> str:
    """Return what torchvision looks for in the folder of its data."""
    if kind.__name__ == "SVHN":
        return "train_32x32.mat"
    return str(getattr(kind, "base_folder", f"{kind.__name__}/raw/train-images-idx3-ubyte"))


def _home(root: Path, kind: Any) -> Path:
    """Return the folder that holds torchvision's own, if ``root`` is one too low or too high."""
    own, root = _expected(kind), root.absolute()
    if root.name == own:
        return root.parent
    above = None if (root / own).exists() else next(root.glob(f"*/{own}"), None)
    return root if above is None else above.parent


def _open(kind: Any, root: Path, train: bool) -> Any:
    """Open what is there; download only what is not."""
    try:
        return kind(str(root), train=train, download=False)
    except RuntimeError:
        return kind(str(root), train=train, download=True)


def _from_idx(folder: Path, split: str) -> Images:
    images, labels = (torch.tensor(values) for values in read_idx(folder, split))
    return Images(images.unsqueeze(1), labels.long())


def _from_torchvision(dataset: Any) -> Images:
    data = torch.as_tensor(np.asarray(dataset.data))
    if data.ndim == 3:  # grey: (N, H, W)
        data = data.unsqueeze(1)
    elif data.shape[-1] == 3:  # CIFAR: (N, H, W, C)
        data = data.permute(0, 3, 1, 2)
    labels = dataset.labels if hasattr(dataset, "labels") else dataset.targets
    return Images(data.contiguous(), torch.as_tensor(np.asarray(labels), dtype=torch.int64))


@register("dataset", "folder")
def folder(root: Path | None) -> DataSet:
    """Load ``root/<class>/*`` or, where both exist, ``root/train/...`` and ``root/test/...``.

    The two may also be named ``Train`` and ``Test``, or ``Training`` and ``Testing``.
    """
    if root is None:
        raise SettingsError("data_dir", None, "dataset 'folder' needs the folder of its images")
    if not root.is_dir():
        raise SettingsError("data_dir", str(root), "is not a folder")
    parts = {name.lower().removesuffix("ing"): root / name for name in class_names(root)}
    train_root, test_root = (parts.get(name, root / name) for name in ("train", "test"))
    if not (train_root.is_dir() and test_root.is_dir()):
        if train_root.is_dir() and class_names(train_root):
            raise SettingsError(
                "data_dir", str(root), f"has a folder {train_root.name!r}, but no 'test'"
            )
        classes = _classes(root)
        return DataSet(_images(*read_classes(root, classes)), None, classes)
    warn_of_others(root, (train_root.name, test_root.name))
    classes = _classes(train_root)
    differing = sorted(set(classes) ^ set(class_names(test_root)))
    if differing:
        where = "train" if differing[0] in classes else "test"
        raise SettingsError(
            "data_dir", str(root), f"has the class {differing[0]!r} in {where!r} only"
        )
    train, test = (_images(*read_classes(part, classes)) for part in (train_root, test_root))
    if train.data.shape[1:] != test.data.shape[1:]:
        shapes = " and ".join("x".join(map(str, images.data.shape[1:])) for images in (train, test))
        raise SettingsError(
            "data_dir",
            str(root),
            f"train and test must share channels, height, width, not {shapes}",
        )
    return DataSet(train, test, classes)


def _classes(root: Path) -> tuple[str, ...]:
    classes = class_names(root)
    if len(classes) < 2:
        raise SettingsError("data_dir", str(root), "needs one sub-folder for each class")
    return classes


def _images(pictures: Pixels, labels: list[int]) -> Images:
    data = torch.from_numpy(pictures).permute(0, 3, 1, 2).contiguous()
    return Images(data, torch.tensor(labels))
