"""Repeatable client sampling for any of Flower's strategies."""

import random
from collections.abc import Iterable, Mapping
from typing import Any, cast

from flwr.app import ArrayRecord, ConfigRecord, Message
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy

from fl_sim.seeding import Purpose, numpy_rng
from server.strategies.wrapper import Wrapper

_TRAIN, _EVALUATE = 0, 1


class SampleBySeed(Wrapper):
    """Makes the strategy it wraps sample the same partitions in every run with this seed.

    Flower's node ids are random, and so is the order in which nodes connect. This wrapper lists
    nodes in the order of their partitions; it seeds Python's generator, which strategies draw
    from, for each round, and restores its state afterwards.

    Parameters
    ----------
    strategy : Strategy
        Any that samples as Flower's own strategies do.
    nodes : Mapping[int, int]
        Node id of each partition, see `server.training.find_nodes`.
    seed : int
        Determines, with the round, which clients are sampled.

    Examples
    --------
    >>> from flwr.serverapp.strategy import FedAvg
    >>> from server import SampleBySeed
    >>> strategy = SampleBySeed(FedAvg(fraction_train=0.5), nodes={0: 17, 1: 4}, seed=0)
    """

    def __init__(self, strategy: Strategy, nodes: Mapping[int, int], seed: int) -> None:
        super().__init__(strategy)
        self.nodes = [nodes[partition] for partition in sorted(nodes)]
        self.seed = seed

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Delegate with a seeded generator."""
        with _Seeded(self.seed, server_round, _TRAIN):
            ordered = cast(Grid, _Ordered(grid, self.nodes))
            return list(super().configure_train(server_round, arrays, config, ordered))

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Delegate with a seeded generator."""
        with _Seeded(self.seed, server_round, _EVALUATE):
            ordered = cast(Grid, _Ordered(grid, self.nodes))
            return list(super().configure_evaluate(server_round, arrays, config, ordered))


class _Ordered:
    """A grid that lists its nodes in the order of their partitions."""

    def __init__(self, grid: Grid, nodes: list[int]) -> None:
        self._grid = grid
        self._nodes = nodes

    def get_node_ids(self) -> list[int]:
        up = set(self._grid.get_node_ids())
        return [node for node in self._nodes if node in up]

    def __getattr__(self, name: str) -> Any:
        return getattr(self._grid, name)


class _Seeded:
    """Seeds Python's generator within a block, then restores its state."""

    def __init__(self, seed: int, *keys: int) -> None:
        self._seed = int(numpy_rng(seed, Purpose.CLIENT_SAMPLING, *keys).integers(2**63))

    def __enter__(self) -> None:
        self._state = random.getstate()
        random.seed(self._seed)

    def __exit__(self, *_: object) -> None:
        random.setstate(self._state)
