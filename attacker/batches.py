"""Split what was observed into batches of a size that fits the memory, and solve each batch."""

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod

import torch

from attacker.attack import Progress
from attacker.matching.problems import ClientGroup, batchable, by_weights
from attacker.solutions import Solution, failed_reconstruction
from fl_sim.observed.reconstructions import Reconstruction

# Bytes one batch may take on a CPU; about so many copies of an update and of pairs of points
# are held at once.
_BUDGET, _COPIES, _PAIRS = 2 * 2**30, 24, 10

_GPU_BATCHES = 16  # a GPU is hardly busy with one batch of a CPU


@dataclass(frozen=True)
class Batches:
    """How an attack splits its problems into batches.

    Attributes
    ----------
    most : int
        Most problems solved together on a CPU.
    device : str
        ``cpu``, or ``cuda`` with larger batches.
    """

    most: int
    device: str = "cpu"

    def size(self, group: ClientGroup) -> int:
        """Return how many problems like this one are solved together."""
        most = self.most if self.device == "cpu" else _GPU_BATCHES * self.most
        return min(most, self._affordable(group))

    def solve(
        self,
        groups: Sequence[ClientGroup],
        solve: Callable[[Sequence[ClientGroup]], Solution],
        attack: str,
        objective: str,
        progress: Progress | None,
    ) -> list[Reconstruction]:
        """Return one reconstruction for each group, in their order.

        Parameters
        ----------
        groups : sequence of ClientGroup
            Each is one problem.
        solve : callable
            Solves groups that can be solved as one batch. If it raises, it is called for each of
            them alone; where it raises again, a warning says so, and the images are grey.
        attack, objective : str
            Name and loss of the attack, as reconstructions name them.
        progress : callable, optional
            Called with the number of groups done, and of all.
        """

        def attempt(chosen: Sequence[ClientGroup]) -> list[Reconstruction]:
            try:
                with _full_precision():
                    found = solve(chosen)
            except (RuntimeError, ValueError, ArithmeticError) as error:
                if len(chosen) > 1:
                    return [r for group in chosen for r in attempt([group])]
                warnings.warn(f"Attack {attack!r} failed: {error}", RuntimeWarning, stacklevel=2)
                return [failed_reconstruction(chosen[0][-1], attack, objective)]
            sources = [group[-1] for group in chosen]
            return [
                found.reconstruction(row, s, attack, objective) for row, s in enumerate(sources)
            ]

        made: dict[int, Reconstruction] = {}
        for members in self._split(groups):
            solved = attempt([groups[index] for index in members])
            made.update(zip(members, solved, strict=True))
            if progress is not None:
                progress(len(made), len(groups))
        return [made[index] for index in range(len(groups))]

    def _split(self, groups: Sequence[ClientGroup]) -> Iterator[list[int]]:
        for members in batchable(groups):
            size = self.size(groups[members[0]])
            for first in range(0, len(members), size):
                yield members[first : first + size]

    def _affordable(self, group: ClientGroup) -> int:
        """Return how many problems like this one fit the memory budget, at least one."""
        last, rounds = group[-1], len(by_weights(group))
        pixels = last.work.images * prod(last.model.shape)
        floats = _COPIES * (rounds * last.weights.numel() + _PAIRS * pixels)
        on_cpu = self.device == "cpu"
        budget = _BUDGET if on_cpu else torch.cuda.mem_get_info(self.device)[0] // 2
        return max(1, budget // (4 * floats))


@contextmanager
def _full_precision() -> Iterator[None]:
    """Let a GPU's convolutions be exact float32, and the same every time."""
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False, deterministic=True):
        yield
