"""A suite of attacks: per observation, the reconstruction that explains the payload best."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from attacker.attack import Attack, Progress
from attacker.problems import Problems, alike
from fl_sim.attack_loss import YARDSTICK
from fl_sim.observations import Observation
from fl_sim.public_images import PublicImages
from fl_sim.reconstructions import Reconstruction
from fl_sim.updates import one_hot


@dataclass(frozen=True)
class Suite:
    """Attacks of which the strongest counts, chosen without the truth.

    The losses of different attacks are in different units; what they are compared by is
    `fl_sim.attack_loss.YARDSTICK`, which asks for consistency with the payload and, among pictures
    that are equally consistent, for the natural one.

    Attributes
    ----------
    name : str
        Name of the suite.
    members : tuple[Attack, ...]
        Those that do not apply are left out.
    """

    name: str
    members: tuple[Attack, ...]

    @property
    def needs_public(self) -> bool:
        """Never: members that need public images are left out where there are none."""
        return False

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
    ) -> list[Reconstruction]:
        """Run every member that applies; see `Attack.reconstruct`.

        Returns
        -------
        list of Reconstruction
            One per observation, in their order, with the loss of the yardstick.
        """
        members = [member for member in self.members if self._usable(member, observations, public)]
        tried: dict[tuple[str, int, int], list[Reconstruction]] = {}
        for done, member in enumerate(members, 1):
            for one in member.reconstruct(observations, seed=seed, public=public):
                tried.setdefault((one.trial, one.round, one.partition), []).append(one)
            if progress is not None:
                progress(done * len(observations), len(members) * len(observations))
        found: list[Reconstruction | None] = [None] * len(observations)
        for group in alike([[o] for o in observations]):
            same_weights = [observations[index] for index in group]
            chosen = self._strongest(same_weights, tried)
            for index, one in zip(group, chosen, strict=True):
                found[index] = one
        return [one for one in found if one is not None]

    @staticmethod
    def _usable(
        member: Attack, observations: Sequence[Observation], public: PublicImages | None
    ) -> bool:
        return member.applies(observations) and (public is not None or not member.needs_public)

    def _strongest(
        self,
        observations: Sequence[Observation],
        tried: dict[tuple[str, int, int], list[Reconstruction]],
    ) -> list[Reconstruction]:
        """Return the best guess at each of the observations, which share their weights."""
        problems = Problems.of([[o] for o in observations])
        guesses = [tried[(o.trial, o.round, o.partition)] for o in observations]
        owners = torch.tensor([row for row, ones in enumerate(guesses) for _ in ones])
        flat = [one for ones in guesses for one in ones]
        losses = yardstick(problems.select(owners), flat)
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


def yardstick(problems: Problems, guesses: Sequence[Reconstruction]) -> Tensor:
    """Return the common loss ``(B,)`` of one guess for each problem; infinite if not finite."""
    images = torch.stack([guess.images for guess in guesses]).clamp(0, 1)
    labels = torch.stack([guess.labels for guess in guesses])
    with torch.no_grad():
        updates = problems.candidate(images, one_hot(labels, problems.model.classes))
        losses = YARDSTICK(images, updates, problems.cell)
    return losses.nan_to_num(torch.inf)
