"""The checks of data sets and partitioners pass ours, and find what is broken."""

from itertools import count

import numpy as np
import pytest
import torch
from flwr_datasets.partitioner import IidPartitioner

from fl_sim import register
from fl_sim.choices import PARTITION_NAMES
from fl_sim.data import load_splits
from fl_sim.data.datasets import DataSet, Images
from fl_sim.data.partitions import load_federation
from fl_sim.study.settings import DataSettings, SettingsError
from fl_sim.testing import ContractError, check_dataset, check_partitioner

_numbers = count()


def images(size=40, side=8, classes=2):
    pixels = torch.arange(size * side**2).reshape(size, 1, side, side) % 256
    return Images(pixels.to(torch.uint8), torch.arange(size) % classes)


def data_set(*, data=None, labels=None, test=None, classes=("a", "b")):
    usual = images()
    train = Images(usual.data if data is None else data, usual.labels if labels is None else labels)
    return DataSet(train, test, classes)


def draw_globally():
    return data_set(data=torch.randint(256, (40, 1, 8, 8), dtype=torch.uint8))


def draw_with_no_seed():
    drawn = np.random.default_rng().integers(0, 256, (40, 1, 8, 8), dtype=np.uint8)
    return data_set(data=torch.from_numpy(drawn))


BROKEN_DATA = {
    "float pixels": (lambda: data_set(data=images().data / 255), "images are torch.float32"),
    "no channels": (lambda: data_set(data=images().data[:, 0]), r"uint8 \(40, 8, 8\), not uint8"),
    "few labels": (lambda: data_set(labels=torch.zeros(39).long()), r"\(39,\), not int64 \(40,\)"),
    "short labels": (lambda: data_set(labels=images().labels.int()), "labels are torch.int32"),
    "high labels": (lambda: data_set(labels=1 + images().labels), "not from 0 to 1"),
    "low labels": (lambda: data_set(labels=images().labels - 1), "not from 0 to 1"),
    "one class": (lambda: data_set(classes=("a",)), "are not two different names"),
    "same classes": (lambda: data_set(classes=("a", "a")), "are not two different names"),
    "numbers as classes": (lambda: data_set(classes=(0, 1)), "are not two different names"),
    "other test images": (lambda: data_set(test=images(side=9)), "have the shapes"),
    "broken test images": (
        lambda: data_set(test=Images(images().data / 255, images().labels)),
        "images are torch.float32",
    ),
    "too few": (lambda: DataSet(images(3), None, ("a", "b")), "too few to split"),
    "a tuple": (lambda: tuple(data_set()), "returned a tuple, not a DataSet"),
    "global state": (draw_globally, "changes the global random state of PyTorch"),
    "no seed": (draw_with_no_seed, "other images when it is loaded again"),
}


def registered(kind, part):
    name = f"broken{next(_numbers)}"
    register(kind, name)(part)
    return name


def test_our_data_sets_pass(shared_data_or_none):
    check_dataset("digits")
    if shared_data_or_none:
        check_dataset("mnist", shared_data_or_none)


@pytest.fixture
def shared_data_or_none(pytestconfig):
    folder = pytestconfig.rootpath.parent / "shared" / "data"
    return folder if folder.is_dir() else None


def test_a_data_set_that_keeps_all_promises_passes():
    check_dataset(registered("dataset", lambda folder: data_set()))
    check_dataset(registered("dataset", lambda folder: data_set(test=images(5))))


@pytest.mark.parametrize("fault", BROKEN_DATA)
def test_a_broken_data_set_is_named(fault):
    make, words = BROKEN_DATA[fault]
    name = registered("dataset", lambda folder: make())
    with pytest.raises(ContractError, match=words) as caught:
        check_dataset(name)
    assert name in str(caught.value)


def test_a_study_refuses_pixels_that_are_no_bytes():
    """It would take them for nearly black images."""
    name = registered("dataset", lambda folder: data_set(data=images().data / 255))
    with pytest.raises(SettingsError, match=f"dataset = '{name}': its images are torch.float32"):
        load_splits(DataSettings(dataset=name), 0)


def deal(change):
    """Return a partitioner that deals as the usual one does, then changes the rows of a client."""

    class Changed(IidPartitioner):
        def load_partition(self, partition_id):
            partition = super().load_partition(partition_id)
            return partition.select(list(change(partition_id, len(partition))))

    def part(settings, classes, seed):
        return Changed(num_partitions=settings.clients)

    return part


def lose(client, size):
    return range(size - 1)


def starve(client, size):
    return range(size if client else 0)


def repeat(client, size):
    return [*range(size), 0]


def reorder(client, size):
    return np.random.default_rng().permutation(size)


def reorder_globally(client, size):
    return np.random.permutation(size)


BROKEN_PARTITIONERS = {
    lose: "10 training images belong to no client",
    starve: "a client gets no image",
    repeat: "an image belongs to several clients",
    reorder: "the same seed deals images differently",
    reorder_globally: "changes the global random state of NumPy",
}


def test_a_partitioner_that_raises_or_is_none_is_named():
    def raises(settings, classes, seed):
        raise KeyError("no\nluck")

    for part, words in ((raises, "it raised KeyError: 'no"), (print, "returned a NoneType")):
        name = registered("partitioner", lambda *given, part=part: part(*given))
        with pytest.raises(ContractError, match=f"^partition = '{name}': .*{words}") as caught:
            check_partitioner(name)
        assert "\n" not in str(caught.value)


def test_a_study_names_a_data_set_that_raises():
    name = registered("dataset", lambda folder: {}["images"])
    with pytest.raises(SettingsError, match=f"^dataset = '{name}': it raised KeyError: 'images'$"):
        load_splits(DataSettings(dataset=name), 0)


@pytest.mark.parametrize("name", PARTITION_NAMES)
def test_our_partitioners_pass(name):
    check_partitioner(name)


@pytest.mark.parametrize("change", BROKEN_PARTITIONERS, ids=lambda change: change.__name__)
def test_a_broken_partitioner_is_named(change):
    check_partitioner(registered("partitioner", deal(lambda client, size: range(size))))
    name = registered("partitioner", deal(change))
    with pytest.raises(ContractError, match=BROKEN_PARTITIONERS[change]) as caught:
        check_partitioner(name)
    assert name in str(caught.value)


def test_a_partitioner_that_fails_to_deal_is_named():
    class Fails(IidPartitioner):
        def load_partition(self, partition_id):
            raise KeyError(partition_id)

    name = registered("partitioner", lambda settings, classes, seed: Fails(settings.clients))
    with pytest.raises(SettingsError, match=f"^partition = '{name}': it raised KeyError: 0$"):
        load_federation(DataSettings(partition=name), 0, 1)
