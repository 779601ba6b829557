"""Data sets as the Hugging Face hub has them: by name, or from parquet files of the same layout."""

from collections.abc import Callable, Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from fl_sim.data.datasets import DataSet, Images
from fl_sim.data.folders import Pixels, read_picture, stack_pictures
from fl_sim.registry import register
from fl_sim.study.settings import SettingsError
from fl_sim.suggestions import one_of

if TYPE_CHECKING:
    import datasets

_TRAIN, _TEST = ("train", "training"), ("test", "valid", "validation", "val")
_IMAGES, _LABELS = ("image", "img"), ("label", "labels", "fine_label")
"""Names of splits and columns that are taken before others, in this order."""


@register("dataset", "hub")
def hub(
    folder: Path | None,
    *,
    name: str,
    subset: str = "",
    image: str = "",
    label: str = "",
) -> DataSet:
    """Load a data set of the Hugging Face hub, with Flower Datasets' `FederatedDataset`.

    What is downloaded is kept below ``folder``, or in the hub's own cache. The images are dealt to
    clients by the setting ``partition``, as those of every data set.

    Parameters
    ----------
    folder : Path or None
        The setting ``data_dir``.
    name : str
        Owner and name, as in ``uoft-cs/cifar10``; or a folder on disk of the hub's layout.
    subset : str
        Name of the hub's configuration; empty for its only one.
    image, label : str
        Names of the columns; empty to find them.
    """
    from flwr_datasets import FederatedDataset  # noqa: PLC0415 - two seconds, only where needed

    cache = None if folder is None else str(folder)
    loader = FederatedDataset(
        dataset=name, subset=subset or None, partitioners={}, shuffle=False, cache_dir=cache
    )
    setting = ("dataset", f"hub:name={name}")
    try:
        train, test = (_first_split(loader, names) for names in (_TRAIN, _TEST))
        if train is None:
            loader.load_split(_TRAIN[0])  # which says what splits there are
    except Exception as error:  # of many packages: the hub's client, the network, file formats
        raise SettingsError(*setting, f"cannot be loaded ({error})") from error
    return _data_set(train, test, setting, image, label)


@register("dataset", "parquet")
def parquet(folder: Path | None, *, image: str = "", label: str = "") -> DataSet:
    """Load the parquet files of a folder: ``train*.parquet`` and, if there are, ``test*.parquet``.

    They are laid out as the hub lays image data sets out, and may lie in a folder ``data``.

    Parameters
    ----------
    folder : Path or None
        The setting ``data_dir``.
    image, label : str
        Names of the columns; empty to find them.
    """
    import datasets  # noqa: PLC0415 - two seconds, only where needed
    import pyarrow  # noqa: PLC0415
    from pyarrow import parquet as files  # noqa: PLC0415

    if folder is None:
        raise SettingsError("data_dir", None, "dataset 'parquet' needs the folder of its files")
    setting = ("data_dir", str(folder))
    splits: list[datasets.Dataset | None] = []
    for names in (_TRAIN, _TEST):
        found = _files(folder, names)
        try:
            tables = [files.read_table(path) for path in found]
        except (OSError, ValueError) as error:
            raise SettingsError(*setting, f"cannot be read as parquet ({error})") from error
        splits.append(datasets.Dataset(pyarrow.concat_tables(tables)) if tables else None)
    train, test = splits
    if train is None:
        raise SettingsError(*setting, "has no file train*.parquet, nor a folder data with one")
    return _data_set(train, test, setting, image, label)


def _first_split(loader: Any, names: Sequence[str]) -> "datasets.Dataset | None":
    """Return the first split there is of ``names``; None if there is none."""
    for name in names:
        try:
            return loader.load_split(name)
        except ValueError as error:
            if "is not present in the dataset's splits" not in str(error):
                raise
    return None


def _files(folder: Path, names: Sequence[str]) -> list[Path]:
    every = (
        [*place.glob(f"{name}*.parquet")] for name in names for place in (folder, folder / "data")
    )
    return sorted(next(filter(None, every), []))


def _data_set(
    train: "datasets.Dataset",
    test: "datasets.Dataset | None",
    setting: tuple[str, str],
    image: str,
    label: str,
) -> DataSet:
    """Return the images of splits; raise `SettingsError` for what is not a set of them."""
    try:
        image = _column(train.features, image or _find(train.features, "image", _IMAGES, _is_image))
        label = _column(train.features, label or _find(train.features, "label", _LABELS, _is_class))
        classes = _classes(train, label)
        pictures = [_images(one, image, label, classes) for one in (train, test) if one is not None]
    except ValueError as error:
        raise SettingsError(*setting, str(error)) from error
    return DataSet(
        pictures[0], pictures[1] if len(pictures) > 1 else None, tuple(map(str, classes))
    )


def _column(features: Mapping[str, Any], name: str) -> str:
    if name not in features:
        raise ValueError(f"has no column {name!r}; {one_of(name, features)}")
    return name


def _find(
    features: Mapping[str, Any], kind: str, known: Sequence[str], fits: Callable[[Any], bool]
) -> str:
    """Return the column with a known name, or the only one whose type fits."""
    named = [name for name in known if name in features]
    typed = [name for name, feature in features.items() if fits(feature)]
    if not named and len(typed) != 1:
        raise ValueError(
            f"its {kind} column is none or any of {', '.join(features)}; add {kind}=NAME"
        )
    return (named or typed)[0]


def _is_image(feature: Any) -> bool:
    """Tell whether a column holds images: as the hub says, or as bytes of files."""
    return type(feature).__name__ == "Image" or (isinstance(feature, dict) and "bytes" in feature)


def _is_class(feature: Any) -> bool:
    return type(feature).__name__ == "ClassLabel"


def _classes(split: "datasets.Dataset", label: str) -> list[Any]:
    """Return the classes: as the hub names them, or the values there are, in order."""
    if _is_class(split.features[label]):
        return list(split.features[label].names)
    values = split.unique(label)
    if not all(isinstance(value, str | int) for value in values):
        raise ValueError(f"its column {label!r} holds neither whole numbers nor names of classes")
    return sorted(values)


def _images(split: "datasets.Dataset", image: str, label: str, classes: Sequence[Any]) -> Images:
    import datasets  # noqa: PLC0415 - two seconds, only where needed

    if not _is_image(split.features.get(image)) or label not in split.features:
        raise ValueError(f"has a split without images in {image!r}, or without {label!r}")
    rows = split.cast_column(image, datasets.Image(decode=False)).select_columns([image, label])[:]
    pictures: list[Pixels] = []
    for number, row in enumerate(rows[image]):
        if row is None:
            raise ValueError(f"row {number} has no image")
        try:
            file = BytesIO(row["bytes"]) if row["bytes"] else row["path"]
            pictures.append(read_picture(file)[0])
        except ValueError as error:
            raise ValueError(f"row {number} {error}") from error
    values = range(len(classes)) if _is_class(split.features[label]) else classes
    number_of = {value: number for number, value in enumerate(values)}
    unknown = set(rows[label]) - number_of.keys()
    if unknown:
        raise ValueError(f"has the label {min(map(str, unknown))}, which no training image has")
    labels = torch.tensor([number_of[value] for value in rows[label]])
    return Images(
        torch.from_numpy(stack_pictures(pictures)).permute(0, 3, 1, 2).contiguous(), labels
    )
