"""What every data set and every partitioner promises."""

from pathlib import Path

import numpy as np

from fl_sim.data import load_federation, load_splits
from fl_sim.registry import resolve
from fl_sim.study.settings import DataSettings, SettingsError
from fl_sim.testing.contract import ContractError, make_twice, require


def check_dataset(spec: str, data_dir: Path | None = None) -> None:
    """Check that a data set keeps what every data set promises.

    It is a `DataSet` of images as bytes, with one label below the number of classes for each, the
    same in every process. Training and test images have one shape, and there are enough of them.

    Parameters
    ----------
    spec : str
        Spec of a data set that is registered.
    data_dir : Path, optional
        Folder of its images, as in the setting of this name.

    Raises
    ------
    ContractError
        If a promise is not kept.
    ValueError
        If there is no such data set.

    Examples
    --------
    >>> from fl_sim.testing import check_dataset
    >>> check_dataset("digits")
    """
    load = resolve("dataset", spec)
    loaded, again = make_twice(f"{spec}: loading", lambda: load(data_dir))
    try:
        load_splits.__wrapped__(DataSettings(dataset=spec, data_dir=data_dir), 0)
    except SettingsError as error:
        raise ContractError(str(error)) from error
    require(loaded.digest == again.digest, f"{spec}: other images when it is loaded again")


def check_partitioner(spec: str, clients: int = 10) -> None:
    """Check that a partitioner keeps what every partitioner promises.

    It deals each training image of the digits to one client, at least one image to each client, and
    deals them the same again for the same seed.

    Parameters
    ----------
    spec : str
        Spec of a partitioner that is registered.
    clients : int
        Number of clients to deal to.

    Raises
    ------
    ContractError
        If a promise is not kept.
    ValueError
        If there is no such partitioner.

    Examples
    --------
    >>> from fl_sim.testing import check_partitioner
    >>> check_partitioner("iid")
    """
    settings = DataSettings(partition=spec, clients=clients)
    deal = load_federation.__wrapped__  # not from the cache: is it dealt the same again?
    try:
        federation, again = make_twice(f"{spec}: dealing", lambda: deal(settings, 0, 0))
    except SettingsError as error:
        raise ContractError(str(error)) from error
    partitions = federation.partitions
    require(
        all(map(np.array_equal, partitions, again.partitions)),
        f"{spec}: the same seed deals images differently",
    )
    require(min(map(len, partitions)), f"{spec}: a client gets no image")
    rows, counts = np.unique(np.concatenate(partitions), return_counts=True)
    require(counts.max() == 1, f"{spec}: an image belongs to several clients")
    lost = len(federation.splits.train) - len(rows)
    require(not lost, f"{spec}: {lost} training images belong to no client")
