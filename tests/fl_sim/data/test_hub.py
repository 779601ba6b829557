"""Data sets of the hub's layout: by name (here a folder laid out as the hub is), and as files."""

from io import BytesIO

import datasets
import numpy as np
import pytest
from PIL import Image

from fl_sim.data import load_federation, load_splits
from fl_sim.data.datasets import _load
from fl_sim.study.settings import SettingsError, load_settings

NAMES = ("bird", "cat", "dog")


def picture(seed, size=(8, 8), mode="RGB"):
    channels = 3 if mode == "RGB" else 1
    values = np.random.default_rng(seed).integers(0, 256, (*size, channels), dtype=np.uint8)
    stream = BytesIO()
    Image.fromarray(values if channels == 3 else values[..., 0]).save(stream, "png")
    return {"bytes": stream.getvalue(), "path": None}


def table(count, image="img", label="label", size=(8, 8), mode="RGB", names=NAMES, first=0):
    features = {
        image: datasets.Image(),
        label: datasets.ClassLabel(names=list(names)),
    }
    columns = {
        image: [picture(first + n, size, mode) for n in range(count)],
        label: [n % len(names) for n in range(count)],
    }
    return datasets.Dataset.from_dict(columns, features=datasets.Features(features))


def lay_out(root, train, test=None, split="test"):
    """Write the files of a data set as the hub names them."""
    (root / "data").mkdir(parents=True)
    train.to_parquet(root / "data" / "train-00000-of-00001.parquet")
    if test is not None:
        test.to_parquet(root / "data" / f"{split}-00000-of-00001.parquet")
    return root


def settings(dataset, folder=None, **given):
    values = {"dataset": dataset, "clients": "3", "public_fraction": "0.2", **given}
    if folder is not None:
        values["data_dir"] = str(folder)
    return load_settings(None, values).data


@pytest.fixture(autouse=True)
def forget():
    yield
    _load.cache_clear()
    load_splits.cache_clear()
    load_federation.cache_clear()


def test_the_hub_and_local_files_give_the_same_partitions(tmp_path):
    root = lay_out(tmp_path / "set", table(30), table(9, first=100))
    by_name, local = (
        load_federation(one, 3, 1)
        for one in (
            settings(f"hub:name={root}", tmp_path / "cache", partition="dirichlet"),
            settings("parquet", root, partition="dirichlet"),
        )
    )
    assert by_name.splits.digest == local.splits.digest
    assert by_name.splits.classes == NAMES
    assert by_name.splits.shape == (3, 8, 8)
    for mine, theirs in zip(by_name.partitions, local.partitions, strict=True):
        assert np.array_equal(mine, theirs)


def test_files_may_lie_in_the_folder_itself_and_need_no_test_images(tmp_path):
    table(30).to_parquet(tmp_path / "train.parquet")
    splits = load_splits(settings("parquet", tmp_path), 0)
    assert (len(splits.train), len(splits.public), len(splits.test)) == (19, 5, 6)


def test_pixels_and_labels_are_those_of_the_files(tmp_path):
    lay_out(tmp_path / "set", table(12), table(3, first=50))
    test = load_splits(settings("parquet", tmp_path / "set"), 0).test
    expected = np.asarray(Image.open(BytesIO(picture(51)["bytes"])))
    assert np.array_equal(test.data[1].permute(1, 2, 0).numpy(), expected)
    assert test.labels.tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    ("image", "label", "split"),
    [("image", "fine_label", "valid"), ("picture", "species", "validation")],
)
@pytest.mark.parametrize("by_name", [True, False])
def test_columns_and_splits_are_found_whatever_they_are_called(
    tmp_path, image, label, split, by_name
):
    columns = {"image": image, "label": label}
    root = lay_out(tmp_path / "set", table(12, **columns), table(3, **columns), split)
    dataset = f"hub:name={root}" if by_name else "parquet"
    splits = load_splits(settings(dataset, tmp_path / "cache" if by_name else root), 0)
    assert len(splits.test) == 3


@pytest.mark.parametrize(("size", "mode"), [((64, 64), "RGB"), ((96, 96), "L"), ((28, 20), "L")])
def test_pictures_of_other_sizes_and_grey_ones_are_read(tmp_path, size, mode):
    lay_out(tmp_path / "set", table(6, size=size, mode=mode), table(3, size=size, mode=mode))
    shape = load_splits(settings("parquet", tmp_path / "set"), 0).shape
    assert shape == (3 if mode == "RGB" else 1, *size)


def test_labels_may_be_numbers_or_names_without_the_hubs_features(tmp_path):
    images = [picture(n) for n in range(12)]
    plain = datasets.Dataset.from_dict({"image": images, "label": ["b", "a", "c"] * 4})
    lay_out(tmp_path / "set", plain)
    splits = load_splits(settings("parquet", tmp_path / "set"), 0)
    assert splits.classes == ("a", "b", "c")
    both = sorted([*splits.train.labels, *splits.test.labels, *splits.public.labels])
    assert both == sorted([0, 1, 2] * 4)


def broken(tmp_path, kind):
    root = tmp_path / "set"
    if kind == "sizes":
        rows = datasets.concatenate_datasets([table(3), table(3, size=(9, 8))])
        return lay_out(root, rows)
    if kind == "column":
        images = [picture(n) for n in range(6)]
        rows = {"a": images, "b": images, "label": [0, 1] * 3}
        return lay_out(root, datasets.Dataset.from_dict(rows))
    if kind == "bytes":
        rows = datasets.Dataset.from_dict(
            {"img": [{"bytes": b"no picture", "path": None}] * 4, "label": [0, 1, 0, 1]}
        )
        return lay_out(root, rows)
    if kind == "new label":
        return lay_out(
            root,
            table(6).cast_column("label", datasets.Value("int64")),
            table(4, names=("a", "b", "c", "d")).cast_column("label", datasets.Value("int64")),
        )
    root.mkdir()
    if kind == "no parquet":
        (root / "train.parquet").write_bytes(b"nothing")
    return root


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("sizes", "images must share one size, not 8x8, 8x9"),
        ("column", "its image column is none or any of a, b, label; add image=NAME"),
        ("bytes", "row 0 is not an image that can be read"),
        ("new label", "has the label 3, which no training image has"),
        ("no parquet", "cannot be read as parquet"),
        ("empty", "has no file train"),
    ],
)
def test_what_cannot_be_read_is_refused_in_one_line(tmp_path, kind, message):
    root = broken(tmp_path, kind)
    with pytest.raises(SettingsError, match=message) as caught:
        load_splits(settings("parquet", root), 0)
    assert "\n" not in str(caught.value)
    assert str(root) in str(caught.value)


def test_a_name_that_is_not_there_and_a_column_that_is_not_are_refused(tmp_path):
    with pytest.raises(SettingsError, match="hub:name=.*nowhere.*cannot be loaded"):
        load_splits(settings(f"hub:name={tmp_path / 'nowhere'}", tmp_path), 0)
    root = lay_out(tmp_path / "set", table(6))
    with pytest.raises(SettingsError, match="has no column 'imag'; one of img, label; did"):
        load_splits(settings("parquet:image=imag", root), 0)
    with pytest.raises(SettingsError, match="parameter name is missing"):
        settings("hub")
    with pytest.raises(SettingsError, match="dataset 'parquet' needs the folder"):
        settings("parquet")


def test_a_class_label_of_nothing_is_a_fault_of_the_set(tmp_path):
    rows = table(6)
    lay_out(tmp_path / "set", rows.map(lambda row: {"label": -1}))
    with pytest.raises(SettingsError, match="label"):
        load_splits(settings("parquet", tmp_path / "set"), 0)
