"""A trial: one quantizer and one seed of a study; what a client must be told of it."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

from torch import Tensor

from fl_sim.data import Federation, load_federation, load_splits
from fl_sim.exchange.secure import PLAIN, SecAggPlus, parse_aggregation
from fl_sim.models import ModelSpec
from fl_sim.plans import Curious, ServerPlan, parse_plan, plants_in
from fl_sim.registry import load_plugins
from fl_sim.seeding import Purpose, torch_rng
from fl_sim.storage.files import folder_name
from fl_sim.study.settings import DataSettings, Settings
from fl_sim.updates.local_update import weights_may_differ
from fl_sim.updates.local_work import LocalWork, draw_orders


def trial_name(quantizer: str, seed: int) -> str:
    """Return what a quantizer with a seed is called: ``uniform-bits-4_seed-0``."""
    return f"{folder_name(quantizer)}_seed-{seed}"


@dataclass(frozen=True)
class Trial:
    """One quantizer x one seed, with all a client needs to compute its update.

    Attributes
    ----------
    quantizer : str
        Spec of the quantizer, canonical.
    seed : int
        Seed of everything random in this trial.
    model : str
        Name of the model.
    data : DataSettings
        Data set and partition.
    work : LocalWork
        What a client does in a round.
    server : str
        Spec of the server's plan.
    aggregated : str
        How updates are aggregated, by spec; see `aggregation`.
    plugin : tuple of str
        Modules that register parts; imported wherever a trial arrives.
    """

    quantizer: str
    seed: int
    model: str
    data: DataSettings
    work: LocalWork
    server: str = "curious"
    aggregated: str = PLAIN
    plugin: tuple[str, ...] = ()

    def __reduce__(self) -> tuple[Any, ...]:
        return Trial.from_json, (self.to_json(),)

    @cached_property
    def name(self) -> str:
        """Name that is also a folder: ``uniform-bits-4_seed-0``."""
        return trial_name(self.quantizer, self.seed)

    @property
    def aggregation(self) -> SecAggPlus | None:
        """Parameters of secure aggregation; None where the server sees every payload."""
        return parse_aggregation(self.aggregated)

    @property
    def federation(self) -> Federation:
        """The images and who holds them (cached in each process)."""
        return load_federation(self.data, self.seed, self.work.images)

    @property
    def plan(self) -> ServerPlan:
        """What the server does to its clients, suited to their quantizer."""
        return parse_plan(self.server).for_quantizer(self.quantizer)

    def plants_in(self, server_round: int, every: int) -> bool:
        """Tell whether the server plants in a round, if it does in the first of every so many."""
        return self.server != Curious.name and plants_in(server_round, every)

    @cached_property
    def model_spec(self) -> ModelSpec:
        """The architecture that clients are given, sized to the data."""
        splits = load_splits(self.data, self.seed)
        name = self.plan.model(self.model)
        return ModelSpec(name, splits.shape, len(splits.classes))

    @property
    def statistics_quantizer(self) -> str:
        """Spec of what encodes the running statistics of BatchNorm layers."""
        return self.quantizer if self.work.quantized_statistics else "none"

    def order(self, partition: int, server_round: int) -> Tensor | None:
        """Return the order in which a client uses its images, which nobody else is told."""
        rng = torch_rng(self.seed, Purpose.ORDER, server_round, partition)
        return draw_orders(self.work, rng)

    def to_json(self) -> str:
        """Return the trial as one line of JSON, as it travels to clients."""
        added = {} if self.aggregation is None else {"aggregated": self.aggregated}
        return json.dumps(
            {
                "quantizer": self.quantizer,
                "seed": self.seed,
                "model": self.model,
                "data": self.data.model_dump(mode="json"),
                "work": self.work.facts,
                "server": self.server,
                "plugin": self.plugin,
                **added,
            },
            sort_keys=True,
        )

    @staticmethod
    @lru_cache(maxsize=64)
    def from_json(text: str) -> "Trial":
        """Parse what `to_json` returned (cached: every message of a trial carries it)."""
        tree = json.loads(text)
        load_plugins(tree["plugin"])
        return Trial(
            tree["quantizer"],
            tree["seed"],
            tree["model"],
            DataSettings.model_validate(tree["data"]),
            LocalWork(**tree["work"]),
            tree["server"],
            tree.get("aggregated", PLAIN),
            tuple(tree["plugin"]),
        )


def trials_of(settings: Settings) -> list[Trial]:
    """Return the trials of a run: every quantizer with every seed that no rule excludes."""
    return [
        Trial(
            quantizer,
            seed,
            settings.model,
            settings.data,
            settings.training.work,
            settings.server,
            settings.training.aggregation,
            settings.plugin,
        )
        for quantizer, seed in settings.combinations
    ]


_BATCH = 64  # victims of several rounds that are attacked together, at most


def attack_groups(trial: Trial, settings: Settings) -> tuple[tuple[int, ...], ...]:
    """Return the observed rounds as they are attacked: those of one step, and of one file.

    All of a fixed batch; or as many as fill a batch, where updates at different weights can be
    computed together; or one. Sums are attacked one by one: other clients may be in each. Rounds
    that are planted are attacked apart from the others.
    """
    every = settings.training.plant_every
    planted: dict[bool, list[int]] = {}
    for one in settings.observed_rounds:
        planted.setdefault(trial.plants_in(one, every), []).append(one)
    return tuple(group for own in planted.values() for group in _split(own, trial, settings))


def _split(rounds: Sequence[int], trial: Trial, settings: Settings) -> Iterator[tuple[int, ...]]:
    count = 1
    if trial.aggregation is not None:
        pass
    elif trial.work.fixed_batch:
        count = len(rounds)
    elif weights_may_differ(trial.model_spec, trial.work):
        count = max(1, _BATCH // min(settings.audit.victims, settings.data.clients))
    for first in range(0, len(rounds), count):
        yield tuple(rounds[first : first + count])
