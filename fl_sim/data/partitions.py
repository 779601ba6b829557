"""Who holds which images, and which of them a client uses in a round."""

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor

from fl_sim.data.datasets import Splits, call_part, load_splits
from fl_sim.registry import register, resolve
from fl_sim.seeding import Purpose, numpy_rng
from fl_sim.study.settings import DataSettings, SettingsError
from fl_sim.updates.local_update import LocalWork

Indices = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Federation:
    """The splits of a data set and, for each client, its rows of ``splits.train``."""

    splits: Splits
    partitions: tuple[Indices, ...]
    seed: int


@lru_cache(maxsize=2)
def load_federation(settings: DataSettings, seed: int, images_per_round: int) -> Federation:
    """Deal the training images to clients, as a pure function of settings and seed.

    Parameters
    ----------
    settings : DataSettings
        Data set, number of clients, kind of partition.
    seed : int
        Seed of the trial.
    images_per_round : int
        Distinct images a client uses in one round; each partition must hold as many.

    Raises
    ------
    SettingsError
        If there are more clients than images, or a partition holds too few; or if the partitioner
        of another module raised, or is none.
    """
    splits = load_splits(settings, seed)
    if settings.clients > len(splits.train):
        raise SettingsError(
            "clients", settings.clients, f"at most {len(splits.train)}, one training image each"
        )
    partitions = _partition(settings, splits, seed)
    smallest = min(len(partition) for partition in partitions)
    if smallest < images_per_round:
        raise SettingsError(
            "batch_size",
            images_per_round,
            f"the smallest of {settings.clients} partitions holds only {smallest} images",
        )
    return Federation(splits, partitions, seed)


def private_batch(
    federation: Federation, work: LocalWork, partition: int, server_round: int
) -> tuple[Tensor, Tensor]:
    """Return the private batch of a client: a pure function of seed, partition and round.

    With ``work.fixed_batch`` it is the same in every round.

    Returns
    -------
    images : Tensor
        ``(work.images, C, H, W)`` float32 in [0, 1].
    labels : Tensor
        ``(work.images,)`` int64.
    """
    rows = private_rows(federation, work, partition, server_round)
    train = federation.splits.train
    return train.pixels(rows), train.labels[rows]


def private_rows(
    federation: Federation, work: LocalWork, partition: int, server_round: int
) -> Indices:
    """Return which rows of ``splits.train`` a `private_batch` is, ``(work.images,)``."""
    draw = 0 if work.fixed_batch else server_round
    rng = numpy_rng(federation.seed, Purpose.BATCH, draw, partition)
    return rng.choice(federation.partitions[partition], size=work.images, replace=False)


def _partition(settings: DataSettings, splits: Splits, seed: int) -> tuple[Indices, ...]:
    """Partition the rows of the training set with a partitioner of Flower Datasets.

    A partitioner of another module is a function that is registered under the kind
    ``partitioner``, is called with `DataSettings`, the number of classes and the seed, and returns
    a `flwr_datasets.partitioner.Partitioner`.
    """
    from datasets import Dataset  # noqa: PLC0415 - two seconds, only where needed
    from flwr_datasets.partitioner import Partitioner  # noqa: PLC0415

    labels = splits.train.labels.numpy()
    order = numpy_rng(seed, Purpose.PARTITION).permutation(len(labels))
    deal = resolve("partitioner", settings.partition)
    given = (settings, len(splits.classes), seed)
    partitioner = call_part("partition", settings.partition, deal, *given)
    if not isinstance(partitioner, Partitioner):
        returned = type(partitioner).__name__
        allowed = f"it returned a {returned}, no partitioner"
        raise SettingsError("partition", settings.partition, allowed)
    partitioner.dataset = Dataset.from_dict({"row": order, "label": labels[order]})

    def dealt(client: int) -> Indices:
        rows = partitioner.load_partition(client)["row"]
        return np.asarray(rows, dtype=np.int64)

    return tuple(
        call_part("partition", settings.partition, dealt, client)
        for client in range(settings.clients)
    )


@register("partitioner", "iid")
def iid(settings: DataSettings, classes: int, seed: int) -> Any:
    """Deal the images evenly, in random order."""
    from flwr_datasets import partitioner  # noqa: PLC0415 - two seconds, only where needed

    del classes, seed
    return partitioner.IidPartitioner(num_partitions=settings.clients)


@register("partitioner", "dirichlet")
def dirichlet(settings: DataSettings, classes: int, seed: int) -> Any:
    """Draw each client's shares of the classes from Dirichlet(alpha) (Hsu et al. 2019)."""
    from flwr_datasets import partitioner  # noqa: PLC0415

    del classes
    return partitioner.DirichletPartitioner(
        num_partitions=settings.clients,
        partition_by="label",
        alpha=settings.alpha,
        min_partition_size=1,
        seed=seed,
    )


@register("partitioner", "pathological")
def pathological(settings: DataSettings, classes: int, seed: int) -> Any:
    """Give each client images of a few classes only (McMahan et al. 2017)."""
    from flwr_datasets import partitioner  # noqa: PLC0415

    if settings.classes_per_client > classes:
        raise SettingsError("classes_per_client", settings.classes_per_client, f"at most {classes}")
    return partitioner.PathologicalPartitioner(
        num_partitions=settings.clients,
        partition_by="label",
        num_classes_per_partition=settings.classes_per_client,
        class_assignment_mode="first-deterministic",
        shuffle=True,
        seed=seed,
    )
