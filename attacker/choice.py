"""A suite of attacks keeps, per observation, the reconstruction that explains the payload best."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from attacker.attack import Attack, Progress
from attacker.matching.problems import (
    ClientGroup,
    Problems,
    batchable,
    client_groups,
    repeats_images,
)
from fl_sim.data.public_images import PublicImages
from fl_sim.observed.attack_loss import YARDSTICK
from fl_sim.observed.observations import Observation
from fl_sim.observed.reconstructions import Reconstruction
from fl_sim.updates.local_update import one_hot

_Key = tuple[str, int, int]


@dataclass(frozen=True)
class Suite:
    """Several attacks; for each victim the strongest counts, chosen without the truth.

    The losses of different attacks are in different units. Attacks are therefore compared by
    `YARDSTICK` of `fl_sim.observed.attack_loss`: by consistency with the payload, and among equally
    consistent images by how natural they look. Where clients use the same images in every round, a
    guess from one round counts for all, and is compared with the payloads of all.

    Attributes
    ----------
    name : str
        Name of the suite.
    members : tuple[Attack, ...]
        Members that do not apply are left out.
    """

    name: str
    members: tuple[Attack, ...]

    @property
    def needs_public(self) -> bool:
        """Whether no member can be run without public images."""
        return all(member.needs_public for member in self.members)

    @property
    def uses_public(self) -> bool:
        """Whether public images make a difference to any member."""
        return any(member.uses_public for member in self.members)

    def applies(self, observations: Sequence[Observation]) -> bool:
        """Tell whether any member applies."""
        return any(member.applies(observations) for member in self.members)

    def reconstruct(
        self,
        observations: Sequence[Observation],
        *,
        seed: int,
        public: PublicImages | None = None,
        progress: Progress | None = None,
        device: str = "cpu",
    ) -> list[Reconstruction]:
        """Run every member that applies; see `Attack.reconstruct`.

        Returns
        -------
        list of Reconstruction
            One per observation, in their order, with the loss of the yardstick.
        """
        members = [member for member in self.members if self._usable(member, observations, public)]
        tried: dict[_Key, list[Reconstruction]] = {}
        for done, member in enumerate(members, 1):
            for one in member.reconstruct(observations, seed=seed, public=public, device=device):
                tried.setdefault(_key(one), []).append(one)
            if progress is not None:
                progress(done * len(observations), len(members) * len(observations))
        found: dict[_Key, Reconstruction] = {}
        together = all(map(repeats_images, observations))
        sources = client_groups(observations, "joint" if together else "single")
        for group in batchable(sources):
            members_of_group = [sources[index] for index in group]
            chosen = self._strongest(members_of_group, tried)
            for source, one in zip(members_of_group, chosen, strict=True):
                found.update({_key(o): replace(one, round=o.round) for o in source})
        return [found[_key(o)] for o in observations]

    @staticmethod
    def _usable(
        member: Attack, observations: Sequence[Observation], public: PublicImages | None
    ) -> bool:
        return member.applies(observations) and (public is not None or not member.needs_public)

    def _strongest(
        self, sources: Sequence[ClientGroup], tried: dict[_Key, list[Reconstruction]]
    ) -> list[Reconstruction]:
        """Return the best guess at the images behind each of the sources.

        The weights of a round are those of all sources; a guess must explain every round.
        """
        rounds = [Problems.of([[o] for o in seen]) for seen in zip(*sources, strict=True)]
        guesses = [[one for o in source for one in tried.get(_key(o), ())] for source in sources]
        owners = torch.tensor([row for row, ones in enumerate(guesses) for _ in ones])
        flat = [one for ones in guesses for one in ones]
        each = [yardstick(problems.select(owners), flat) for problems in rounds]
        losses = torch.stack(each).mean(dim=0)
        chosen = []
        for row, ones in enumerate(guesses):
            mine = losses[owners == row]
            best = int(mine.argmin())
            spent = sum(one.evaluations for one in ones)
            chosen.append(
                replace(
                    ones[best],
                    attack=self.name,
                    loss=float(mine[best]),
                    objective=YARDSTICK.spec,
                    evaluations=spent,
                )
            )
        return chosen


def _key(one: Observation | Reconstruction) -> _Key:
    return one.trial, one.round, one.partition


def yardstick(problems: Problems, guesses: Sequence[Reconstruction]) -> Tensor:
    """Return the common loss ``(B,)`` of one guess for each problem; infinite if not finite."""
    images = torch.stack([guess.images for guess in guesses]).clamp(0, 1)
    labels = torch.stack([guess.labels for guess in guesses])
    with torch.no_grad():
        updates = problems.candidate(images, one_hot(labels, problems.model.classes))
        losses = YARDSTICK(images, updates, problems.cell)
    return losses.nan_to_num(torch.inf)
