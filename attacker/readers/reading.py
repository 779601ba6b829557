"""An attack that reads the images off the payload and searches no further."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from attacker.attack import Progress
from attacker.batches import Batches
from attacker.matching.labels import recover_labels
from attacker.matching.problems import ClientGroup, Problems, client_groups
from attacker.matching.starts import (
    STARTS,
    ReadingName,
    StartContext,
    label_logits,
    start_images,
)
from attacker.solutions import Solution, mean_misfit
from fl_sim.data.public_images import PublicImages
from fl_sim.observed.attack_loss import AttackLoss
from fl_sim.observed.observations import Observation
from fl_sim.observed.reconstructions import Reconstruction
from fl_sim.specs import NOT_A_PARAMETER, positive
from fl_sim.updates.layers import find_head
from fl_sim.updates.local_update import one_hot

_LOSS = AttackLoss()
"""Says how well the images explain the payload; a reading minimises nothing."""


@dataclass(frozen=True)
class Reading:
    """An attack that reads the images off the payload: a closed form, or a regression.

    Attributes
    ----------
    name : str
        Name of the preset it was built from.
    start : str
        What reads: a key of `attacker.matching.starts.STARTS` from which a search may also start.
    batch : int
        Most problems solved together; bounds the memory.
    """

    name: str = field(metadata=NOT_A_PARAMETER)
    start: ReadingName = "linear_layer"
    batch: int = 64

    def __post_init__(self) -> None:
        positive("batch", self.batch)

    @property
    def needs_public(self) -> bool:
        """Whether the attack needs public images."""
        return STARTS[self.start].needs_public

    @property
    def uses_public(self) -> bool:
        """Whether public images make a difference."""
        return self.needs_public

    def applies(self, observations: Sequence[Observation]) -> bool:
        """Tell whether the images can be read off these observations."""
        return all(STARTS[self.start].applies(o) for o in observations)

    def reconstruct(
        self,
        observations: Sequence[Observation],
        *,
        seed: int,
        public: PublicImages | None = None,
        progress: Progress | None = None,
        device: str = "cpu",
    ) -> list[Reconstruction]:
        """Read the private batch behind every observation, on the CPU; see `Attack.reconstruct`.

        Returns
        -------
        list of Reconstruction
            One per observation, in their order. It is ``converged`` if it explains its payload.
        """
        del device
        context = StartContext(seed, 0, public)

        def solve(groups: Sequence[ClientGroup]) -> Solution:
            return self._read(Problems.of(groups), context)

        groups = client_groups(observations, "single")
        return Batches(self.batch).solve(groups, solve, self.name, _LOSS.spec, progress)

    def _read(self, problems: Problems, context: StartContext) -> Solution:
        images = start_images(self.start, problems, context)
        if find_head(problems.model) is None:
            labels = label_logits(problems, context).argmax(dim=-1)
        else:
            labels = recover_labels(problems)
        targets = one_hot(labels, problems.model.classes)
        with torch.no_grad():
            update, change = problems.reply(images, targets)
            told = problems.statistics_cell
            statistics = None if told is None else (change, told)
            losses = _LOSS(images, update, problems.cell, statistics)
            misfits = mean_misfit(problems, images, targets)
        return Solution(images, labels, losses, misfits, torch.zeros_like(labels[:, 0]))
