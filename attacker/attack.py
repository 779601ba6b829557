"""What an attack is: whatever tells where it applies, and reconstructs private batches."""

from collections.abc import Callable, Sequence
from typing import Protocol

from fl_sim.data.public_images import PublicImages
from fl_sim.observed.observations import Observation
from fl_sim.observed.reconstructions import Reconstruction

Progress = Callable[[int, int], None]
"""Called with the number of observations done, and of all."""


class Attack(Protocol):
    """An attack of a server: it sees observations and public images, never the truth."""

    @property
    def name(self) -> str:
        """The name its reconstructions bear."""

    @property
    def needs_public(self) -> bool:
        """Whether the attack needs public images."""

    @property
    def uses_public(self) -> bool:
        """Whether public images make a difference."""

    def applies(self, observations: Sequence[Observation]) -> bool:
        """Tell whether the attack can be run on these observations."""

    def reconstruct(
        self,
        observations: Sequence[Observation],
        *,
        seed: int,
        public: PublicImages | None = None,
        progress: Progress | None = None,
        device: str = "cpu",
    ) -> list[Reconstruction]:
        """Reconstruct the private batch behind every observation.

        Parameters
        ----------
        observations : sequence of Observation
            Of any clients and rounds.
        seed : int
            Every random draw is a function of it and of the observation's round and partition.
        public : PublicImages, optional
            Images that anyone has.
        progress : callable, optional
            Called with the observations done and their total.
        device : str
            ``cpu`` or ``cuda``. What is returned is on the CPU.

        Returns
        -------
        list of Reconstruction
            One per observation, in their order. An attack on several rounds of a client may return
            one for all of them, of the last round.
        """
