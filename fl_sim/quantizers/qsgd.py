"""Stochastic rounding between zero and a norm: QSGD and its three-level special case."""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from fl_sim.coding.groups import Groups, Scope
from fl_sim.coding.packing import pack_trits, packed_trits_size
from fl_sim.coding.wire import Reader
from fl_sim.quantizers.base import QuantizerFacts
from fl_sim.quantizers.lattice import MAX_BITS, Symmetric
from fl_sim.specs import within
from fl_sim.updates.local_update import Layout


@dataclass(frozen=True)
class QSGD(Symmetric):
    """Round ``levels * abs(x) / norm`` up or down at random, keep the sign; one norm per tensor."""

    name: ClassVar[str] = "qsgd"
    facts: ClassVar[QuantizerFacts] = QuantizerFacts(
        bits="ceil(log2(2 s + 1)) d + 32 per tensor",
        unbiased=True,
        error="E L2(e)^2 <= min(d/s^2, sqrt(d)/s) L2(x)^2; exactly sum of D^2 u (1 - u)",
        source="Alistarh et al. 2017, arXiv 1610.02132",
    )
    stochastic: ClassVar[bool] = True

    levels: int
    norm: Literal["l2", "inf"]
    scope: Scope = "tensor"

    def __post_init__(self) -> None:
        within("levels", self.levels, 1, (1 << (MAX_BITS - 1)) - 1)

    @property
    def shift(self) -> int:
        """Lattice points on either side of zero."""
        return self.levels

    def _groups(self, layout: Layout) -> Groups:
        return Groups.of(layout, self.scope)

    def _measure(self, vector: Tensor, groups: Groups) -> Tensor:
        largest = groups.largest_magnitude(vector)
        if self.norm == "inf":
            return largest[:, None]
        norms = [torch.linalg.vector_norm(view, dim=-1) for view in groups.views(vector)]
        # The norm of one element may round to just below it.
        return torch.maximum(torch.cat(norms), largest)[:, None]


@dataclass(frozen=True)
class TernGrad(Symmetric):
    """-1, 0 or 1 times the largest magnitude, chosen at random; five codes per byte."""

    name: ClassVar[str] = "terngrad"
    facts: ClassVar[QuantizerFacts] = QuantizerFacts(
        bits="1.6 d + 32 per tensor",
        unbiased=True,
        error="E L2(e)^2 = m L1(x) - L2(x)^2, m = max abs(x)",
        source="Wen et al. 2017, arXiv 1705.07878 (no clipping)",
    )
    stochastic: ClassVar[bool] = True

    scope: Scope = "tensor"

    @property
    def shift(self) -> int:
        """Lattice points on either side of zero."""
        return 1

    def _groups(self, layout: Layout) -> Groups:
        return Groups.of(layout, self.scope)

    def _measure(self, vector: Tensor, groups: Groups) -> Tensor:
        return groups.largest_magnitude(vector)[:, None]

    def _codes_size(self, count: int) -> int:
        return packed_trits_size(count)

    def _pack(self, codes: Tensor) -> Tensor:
        return pack_trits(codes)

    def _unpack(self, reader: Reader, count: int) -> Tensor:
        return reader.trits(count)
