"""Symmetric lattices scaled by the largest magnitude of a tensor or block; zero is exact."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from fl_sim.coding.groups import Groups, Scope
from fl_sim.quantizers.base import QuantizerFacts
from fl_sim.quantizers.lattice import MAX_BITS, Symmetric
from fl_sim.specs import within
from fl_sim.updates.local_update import Layout


@dataclass(frozen=True)
class Absmax(Symmetric):
    """Nearest of ``2**bits - 1`` evenly spaced values between plus and minus the largest."""

    name: ClassVar[str] = "absmax"
    facts: ClassVar[QuantizerFacts] = QuantizerFacts(
        bits="b d + 32 per tensor",
        unbiased=False,
        error="abs <= D/2, D = max abs(x) / (2^(b-1) - 1)",
        source="Jacob et al. 2018, arXiv 1712.05877 (symmetric form)",
    )

    bits: int
    scope: Scope = "tensor"

    def __post_init__(self) -> None:
        within("bits", self.bits, 2, MAX_BITS)

    @property
    def shift(self) -> int:
        """Lattice points on either side of zero."""
        return (1 << (self.bits - 1)) - 1

    def _groups(self, layout: Layout) -> Groups:
        return Groups.of(layout, self.scope)

    def _measure(self, vector: Tensor, groups: Groups) -> Tensor:
        return groups.largest_magnitude(vector)[:, None]


@dataclass(frozen=True)
class Blockwise(Symmetric):
    """The same lattice, one for each block of consecutive elements of the whole vector."""

    name: ClassVar[str] = "blockwise"
    facts: ClassVar[QuantizerFacts] = QuantizerFacts(
        bits="b d + 32 d/B",
        unbiased=False,
        error="abs <= D/2, D = max abs(x) of the block / (2^(b-1) - 1)",
        source="Dettmers et al. 2022, arXiv 2110.02861 (linear codes)",
    )

    bits: int
    block: int

    def __post_init__(self) -> None:
        within("bits", self.bits, 2, MAX_BITS)
        within("block", self.block, 1, 1 << 30)

    @property
    def shift(self) -> int:
        """Lattice points on either side of zero."""
        return (1 << (self.bits - 1)) - 1

    def _groups(self, layout: Layout) -> Groups:
        return Groups.blocks(layout, self.block)

    def _measure(self, vector: Tensor, groups: Groups) -> Tensor:
        return groups.largest_magnitude(vector)[:, None]
