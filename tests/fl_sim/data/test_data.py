import gzip
import pickle
from urllib.error import URLError

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import ExifTags, Image, PngImagePlugin

from fl_sim.data import load_federation, load_splits, private_batch
from fl_sim.data.folders import read_classes
from fl_sim.study.settings import DataSettings, SettingsError
from fl_sim.testing import check_partitioner
from fl_sim.updates.local_update import LocalWork


def rows_of(images):
    return {row.numpy().tobytes() for row in images.data}


def test_splits_are_fixed_by_the_seed_and_disjoint():
    first, again = load_splits(DataSettings(), 0), load_splits(DataSettings(), 0)
    other = load_splits(DataSettings(), 1)
    assert torch.equal(first.train.data, again.train.data)
    assert not torch.equal(first.train.data, other.train.data)
    assert len(first.train) + len(first.test) + len(first.public) == 1797
    # Digits holds a handful of identical 8x8 pictures; beyond those, no row is in two splits.
    assert len(rows_of(first.train) & rows_of(first.test)) <= 2
    assert len(rows_of(first.train) & rows_of(first.public)) <= 2


def test_pixels_are_floats_in_the_unit_interval():
    pixels = load_splits(DataSettings(), 0).train.pixels()
    assert pixels.dtype == torch.float32
    assert (float(pixels.min()), float(pixels.max())) == (0.0, 1.0)


@pytest.mark.parametrize("partition", ["iid", "dirichlet"])
def test_every_training_image_belongs_to_one_client(partition):
    check_partitioner(partition, clients=5)


def test_no_image_belongs_to_two_pathological_clients():
    federation = load_federation(DataSettings(partition="pathological", clients=10), 0, 1)
    rows = np.concatenate(federation.partitions)
    assert len(set(rows.tolist())) == len(rows) > 1000


def test_pathological_clients_hold_the_classes_asked_for():
    settings = DataSettings(partition="pathological", clients=5, classes_per_client=2)
    federation = load_federation(settings, 0, 1)
    labels = federation.splits.train.labels.numpy()
    assert [len(set(labels[rows])) for rows in federation.partitions] == [2] * 5


def test_dirichlet_with_a_small_alpha_is_more_skewed_than_iid():
    def skew(partition, alpha=0.1):
        settings = DataSettings(partition=partition, clients=5, alpha=alpha)
        federation = load_federation(settings, 0, 1)
        labels = federation.splits.train.labels.numpy()
        shares = [np.bincount(labels[rows], minlength=10) for rows in federation.partitions]
        return float(np.mean([share.max() / share.sum() for share in shares]))

    assert skew("dirichlet") > 2 * skew("iid")


def test_a_private_batch_is_a_pure_function_of_seed_partition_and_round():
    federation = load_federation(DataSettings(), 0, 4)
    work = LocalWork(batch_size=4)
    images, labels = private_batch(federation, work, 3, 7)
    again, _ = private_batch(federation, work, 3, 7)
    assert images.shape == (4, 1, 8, 8)
    assert labels.shape == (4,)
    assert torch.equal(images, again)
    assert not torch.equal(images, private_batch(federation, work, 3, 8)[0])
    own = {federation.splits.train.pixels()[r].numpy().tobytes() for r in federation.partitions[3]}
    assert {image.numpy().tobytes() for image in images} <= own


def test_more_clients_than_images_and_batches_larger_than_a_partition_are_refused():
    with pytest.raises(SettingsError, match="clients = 5000: at most 1294"):
        load_federation(DataSettings(clients=5000), 0, 1)
    with pytest.raises(SettingsError, match="batch_size = 500"):
        load_federation(DataSettings(), 0, 500)


def make_tree(root, classes=("cat", "dog"), count=6, size=(6, 5), mode="RGB"):
    rng = np.random.default_rng(0)
    for label, name in enumerate(classes):
        (root / name).mkdir(parents=True)
        for number in range(count):
            shape = (*size, 3) if mode == "RGB" else size
            pixels = rng.integers(0, 100, shape, dtype=np.uint8) + np.uint8(100 * label)
            Image.fromarray(pixels).save(root / name / f"{number}.png")


@pytest.mark.parametrize(("mode", "channels"), [("RGB", 3), ("L", 1)])
def test_any_folder_of_images_is_a_data_set(tmp_path, mode, channels):
    make_tree(tmp_path, mode=mode)
    splits = load_splits(DataSettings(dataset="folder", data_dir=tmp_path), 0)
    assert splits.classes == ("cat", "dog")
    assert splits.shape == (channels, 6, 5)
    bright = splits.train.pixels().mean(dim=(1, 2, 3)) > 99.5 / 255
    assert torch.equal(bright.long(), splits.train.labels)


@pytest.mark.parametrize(
    ("train", "test"), [("train", "test"), ("Train", "TEST"), ("Training", "Testing")]
)
def test_a_folder_with_train_and_test_keeps_its_own_split(tmp_path, train, test):
    make_tree(tmp_path / train, count=10)
    make_tree(tmp_path / test, count=3)
    splits = load_splits(DataSettings(dataset="folder", data_dir=tmp_path), 0)
    assert splits.classes == ("cat", "dog")
    assert len(splits.test) == 6
    assert len(splits.train) + len(splits.public) == 20


def test_unusable_folders_are_refused_in_words(tmp_path):
    def load(folder):
        return load_splits(DataSettings(dataset="folder", data_dir=folder), 0)

    with pytest.raises(SettingsError, match="is not a folder"):
        load(tmp_path / "missing")
    (tmp_path / "empty").mkdir()
    with pytest.raises(SettingsError, match="one sub-folder for each class"):
        load(tmp_path / "empty")
    make_tree(tmp_path / "mixed")
    Image.new("RGB", (3, 3)).save(tmp_path / "mixed" / "cat" / "small.png")
    with pytest.raises(SettingsError, match="must share one size"):
        load(tmp_path / "mixed")
    make_tree(tmp_path / "broken")
    (tmp_path / "broken" / "cat" / "0.png").write_bytes(b"not a picture")
    with pytest.raises(SettingsError, match=r"0\.png.*not an image"):
        load(tmp_path / "broken")


def test_real_images_load(shared_data):
    digits = load_splits(DataSettings(dataset="mnist", data_dir=shared_data, limit=100), 0)
    assert digits.shape == (1, 28, 28)
    assert len(digits.test) == 100
    folder = shared_data / "cifar10"
    cifar = load_splits(DataSettings(dataset="folder", data_dir=folder, limit=100), 0)
    assert cifar.shape == (3, 32, 32)
    assert len(cifar.classes) == 10


def load_folder(folder):
    return load_splits(DataSettings(dataset="folder", data_dir=folder), 0)


def every_image(splits):
    return torch.cat([part.data for part in (splits.train, splits.test, splits.public)])


@given(st.lists(st.sampled_from(["L", "LA", "1", "I;16"]), min_size=20, max_size=20), st.booleans())
@settings(max_examples=8, deadline=None)
def test_every_file_is_read_by_its_own_depth_and_colour_by_any(tmp_path_factory, modes, colour):
    root = tmp_path_factory.mktemp("folder")
    for number, mode in enumerate(modes):
        path = root / "ab"[number % 2] / f"{number}.png"
        path.parent.mkdir(exist_ok=True)
        if mode == "I;16":
            Image.fromarray(np.full((4, 3), 255 * 257, np.uint16)).save(path)
        else:
            Image.new("L", (3, 4), 255).convert(mode).save(path)
    if colour:
        Image.new("RGB", (3, 4), (255, 255, 255)).save(root / "b" / "last.png")
    splits = load_folder(root)
    assert splits.shape == (3 if colour else 1, 4, 3)
    assert bool((every_image(splits) == 255).all())


def test_sixteen_bits_keep_their_grey_levels(tmp_path):
    make_tree(tmp_path, mode="L")
    for path in tmp_path.rglob("*.png"):
        levels = np.asarray(Image.open(path)).astype(np.uint16) * 257
        Image.fromarray(levels).save(path)
    deep = load_folder(tmp_path)
    make_tree(tmp_path / "eight", mode="L")
    assert torch.equal(deep.train.data, load_folder(tmp_path / "eight").train.data)


def test_hidden_names_are_no_classes_and_no_images(tmp_path):
    make_tree(tmp_path)
    for name in (".ipynb_checkpoints", "__MACOSX", "cat/.ipynb_checkpoints"):
        (tmp_path / name).mkdir()
        Image.new("RGB", (1, 1)).save(tmp_path / name / "0.png")
    (tmp_path / "cat" / "._0.png").write_bytes(b"AppleDouble")
    splits = load_folder(tmp_path)
    assert splits.classes == ("cat", "dog")
    assert len(every_image(splits)) == 12


def test_deeper_folders_and_rarer_suffixes_are_read_and_what_is_skipped_is_named(tmp_path, caplog):
    make_tree(tmp_path)
    (tmp_path / "cat" / "deep").mkdir()
    for name in ("cat/deep/a.tif", "dog/b.JFIF"):
        target = tmp_path / name
        Image.new("RGB", (5, 6)).save(target, "TIFF" if name.endswith("tif") else "JPEG")
    (tmp_path / "dog" / "notes.txt").write_text("none")
    assert len(every_image(load_folder(tmp_path))) == 14
    assert "1 of .txt" in caplog.text


def test_classes_that_are_empty_or_in_one_split_only_are_refused(tmp_path):
    make_tree(tmp_path / "a")
    (tmp_path / "a" / "bird").mkdir()
    with pytest.raises(SettingsError, match="bird.*at least one image"):
        load_folder(tmp_path / "a")
    make_tree(tmp_path / "b" / "train")
    with pytest.raises(SettingsError, match="no 'test'"):
        load_folder(tmp_path / "b")
    make_tree(tmp_path / "b" / "test", classes=("cat", "dog", "eel"))
    with pytest.raises(SettingsError, match="'eel' in 'test' only"):
        load_folder(tmp_path / "b")


@pytest.mark.parametrize("other", [{"mode": "L"}, {"size": (7, 5)}])
def test_splits_of_different_shape_are_refused(tmp_path, other):
    make_tree(tmp_path / "train")
    make_tree(tmp_path / "test", **other)
    with pytest.raises(SettingsError, match="train and test must share"):
        load_folder(tmp_path)


def test_a_large_colour_profile_and_text_are_read(tmp_path):
    make_tree(tmp_path)
    text = PngImagePlugin.PngInfo()
    text.add_text("note", "x" * 2**21, zip=True)
    Image.new("RGB", (5, 6)).save(
        tmp_path / "cat" / "0.png", pnginfo=text, icc_profile=bytes(2**21)
    )
    assert len(every_image(load_folder(tmp_path))) == 12


@pytest.mark.parametrize("content", [b"", b"\x89PNG\r\n\x1a\n"])
def test_broken_files_are_refused_by_name(tmp_path, content):
    make_tree(tmp_path)
    (tmp_path / "cat" / "0.png").write_bytes(content)
    with pytest.raises(SettingsError, match=r"0\.png.*not an image"):
        load_folder(tmp_path)


def test_an_image_too_large_to_open_is_refused_by_name(tmp_path):
    make_tree(tmp_path)
    Image.new("1", (20_000, 20_000)).save(tmp_path / "cat" / "0.png")
    with pytest.raises(SettingsError, match=r"0\.png.*400000000 pixels"):
        load_folder(tmp_path)


@pytest.fixture
def no_download(monkeypatch):
    """Fail where a download is tried."""

    def fail(*_, **__):
        raise AssertionError("a download was tried")

    monkeypatch.setattr("torchvision.datasets.mnist.download_and_extract_archive", fail)
    monkeypatch.setattr("torchvision.datasets.cifar.download_and_extract_archive", fail)


def make_mnist(folder, *, dash="-", packed=False, count=20):
    """Write IDX files of 3 x 2 images: image ``i`` is all ``i``, of class ``i % 10``."""
    folder.mkdir(parents=True)
    numbers = np.arange(count, dtype=np.uint8)
    images = np.repeat(numbers, 6).tobytes()
    for split in ("train", "t10k"):
        for name, shape, content in (
            (f"{split}-images{dash}idx3-ubyte", (count, 3, 2), images),
            (f"{split}-labels{dash}idx1-ubyte", (count,), (numbers % 10).tobytes()),
        ):
            header = np.array([0x800 + len(shape), *shape], ">i4").tobytes()
            if packed:
                (folder / f"{name}.gz").write_bytes(gzip.compress(header + content))
            else:
                (folder / name).write_bytes(header + content)


@pytest.mark.parametrize("given", ["", "MNIST", "MNIST/raw", ".."])
@pytest.mark.parametrize(("packed", "dash"), [(False, "-"), (True, "-"), (False, ".")])
def test_mnist_is_read_packed_or_not_and_from_a_folder_near(
    tmp_path, no_download, given, packed, dash
):
    root = tmp_path / "data"
    make_mnist(root / "MNIST" / "raw", packed=packed, dash=dash)
    before = sorted(root.rglob("*"))
    splits = load_splits(DataSettings(dataset="mnist", data_dir=root / given), 0)
    assert splits.shape == (1, 3, 2)
    assert torch.equal(splits.train.data[:, 0, 0, 0] % 10, splits.train.labels)
    assert sorted(every_image(splits)[:, 0, 2, 1].tolist()) == sorted([*range(20)] * 2)
    assert sorted(root.rglob("*")) == before


def test_the_files_of_mnist_may_lie_in_any_folder(tmp_path, no_download):
    make_mnist(tmp_path / "some where", packed=True)
    splits = load_splits(DataSettings(dataset="mnist", data_dir=tmp_path / "some where"), 0)
    assert len(every_image(splits)) == 40


@pytest.mark.parametrize("given", ["", "MNIST", "MNIST/raw"])
def test_mnist_is_not_taken_for_fashion_mnist(tmp_path, no_download, given):
    make_mnist(tmp_path / "MNIST" / "raw")
    with pytest.raises(SettingsError, match="a download was tried"):
        load_splits(DataSettings(dataset="fashion_mnist", data_dir=tmp_path / given), 0)


@pytest.mark.parametrize("packed", [False, True])
def test_a_cut_off_idx_file_is_refused_by_name(tmp_path, no_download, packed):
    folder = tmp_path / "MNIST" / "raw"
    make_mnist(folder, packed=packed)
    (path,) = folder.glob("t10k-images*")
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(SettingsError, match=r"t10k-images.*is not a whole IDX file"):
        load_splits(DataSettings(dataset="mnist", data_dir=tmp_path), 0)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("mnist", "MNIST/raw/train-images-idx3-ubyte"),
        ("cifar10", "cifar-10-batches-py"),
        ("cifar100", "cifar-100-python"),
        ("svhn", "train_32x32.mat"),
    ],
)
def test_where_nothing_can_be_downloaded_what_was_expected_is_named(
    tmp_path, monkeypatch, name, expected
):
    def offline(*_, **__):
        raise URLError("no\nnetwork")

    monkeypatch.setattr("torchvision.datasets.utils.urllib.request.urlopen", offline)
    with pytest.raises(SettingsError, match=f"has no {expected} and") as caught:
        load_splits(DataSettings(dataset=name, data_dir=tmp_path), 0)
    assert "\n" not in str(caught.value)


def make_cifar(folder):
    """Write a CIFAR-10 of 20 grey images a split as Python reads it; what `torchvision` checks."""
    folder.mkdir(parents=True)
    for name in [f"data_batch_{n}" for n in range(1, 6)] + ["test_batch"]:
        batch = {"data": np.full((20, 3072), 7, np.uint8), "labels": [n % 10 for n in range(20)]}
        (folder / name).write_bytes(pickle.dumps(batch))
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": list("abcdefghij")}))


@pytest.mark.parametrize("given", ["", "cifar-10-batches-py", ".."])
def test_cifar_is_read_from_a_folder_near(tmp_path, monkeypatch, no_download, given):
    monkeypatch.setattr("torchvision.datasets.cifar.check_integrity", lambda *_: True)
    make_cifar(tmp_path / "data" / "cifar-10-batches-py")
    splits = load_splits(DataSettings(dataset="cifar10", data_dir=tmp_path / "data" / given), 0)
    assert (len(every_image(splits)), splits.shape) == (120, (3, 32, 32))


def only_picture(tmp_path, name, image, **save):
    """Return the pixels ``(C, H, W)`` that are read of one picture."""
    folder = tmp_path / "class"
    folder.mkdir()
    image.save(folder / name, **save)
    (pixels,), _ = read_classes(tmp_path, ("class",))
    return pixels


def test_a_picture_turned_by_its_exif_data_is_read_upright(tmp_path):
    image = Image.fromarray(np.arange(6, dtype=np.uint8).reshape(2, 3) * 40)
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6  # to be turned by 90 degrees clockwise
    pixels = only_picture(tmp_path, "a.png", image, exif=exif)
    assert pixels[..., 0].tolist() == [[120, 0], [160, 40], [200, 80]]


def test_cmyk_is_read_as_colour(tmp_path):
    image = Image.new("CMYK", (3, 2), (255, 0, 0, 0))
    pixels = only_picture(tmp_path, "a.tif", image)
    assert pixels.shape == (2, 3, 3)
    assert (pixels == (0, 255, 255)).all()


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("transparency", [None, 1, bytes([255, 0])])
def test_a_palette_is_read_as_its_colours_whatever_is_transparent(tmp_path, transparency):
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 200, 100, 0])
    image.putpixel((1, 0), 1)
    save = {} if transparency is None else {"transparency": transparency}
    pixels = only_picture(tmp_path, "a.png", image, **save)
    assert pixels.tolist() == [[[10, 20, 30], [200, 100, 0]]]


@pytest.mark.parametrize("name", ["a.gif", "a.png", "a.tif", "a.webp"])
def test_the_first_frame_is_read_of_an_animation_and_a_warning_says_so(tmp_path, caplog, name):
    first, second = (Image.new("RGB", (3, 2), colour) for colour in ((255, 0, 0), (0, 255, 0)))
    options = {"lossless": True} if name == "a.webp" else {}
    pixels = only_picture(tmp_path, name, first, save_all=True, append_images=[second], **options)
    assert (pixels == (255, 0, 0)).all()
    assert (
        f"only the first frame is read of 1 file(s) with several frames, such as class/{name}"
        in (caplog.text)
    )


def test_one_frame_is_not_warned_of(tmp_path, caplog):
    make_tree(tmp_path)
    load_folder(tmp_path)
    assert caplog.text == ""


def test_what_lies_beside_the_folders_that_are_read_is_named(tmp_path, caplog):
    for part in ("train", "test", "val"):
        make_tree(tmp_path / part)
    (tmp_path / ".DS_Store").touch()
    Image.new("RGB", (5, 6)).save(tmp_path / "train" / "loose.png")
    load_folder(tmp_path)
    assert f"{tmp_path}: skipped val; the folders read are train, test" in caplog.text
    assert f"{tmp_path / 'train'}: skipped loose.png; the folders read are cat, dog" in caplog.text
    assert ".DS_Store" not in caplog.text
