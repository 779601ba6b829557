"""Base of private quantizers that draw each code from a few levels, element by element."""

from abc import abstractmethod
from math import inf

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fl_sim.coding.cell import Cell
from fl_sim.coding.likelihoods import Likelihood
from fl_sim.coding.packing import code_bits, pack, packed_size
from fl_sim.coding.wire import Reader, byte_planes, to_bytes
from fl_sim.privacy.accountant import Guarantee, RenyiGuarantee
from fl_sim.quantizers.base import Quantizer
from fl_sim.updates.local_update import Layout, Update

Array = NDArray[np.float64]


class RandomLevels(Quantizer):
    """Clip each element to ``[-clip, clip]`` and draw its code; nothing else is sent."""

    clip: float

    @property
    @abstractmethod
    def code_levels(self) -> int:
        """Number of codes."""

    @abstractmethod
    def _draw(self, clipped: Tensor, generator: torch.Generator) -> Tensor:
        """Return the code of each element."""

    @abstractmethod
    def _value(self, codes: Tensor) -> Tensor:
        """Return the value that each code stands for, float32."""

    @abstractmethod
    def _likelihood(self, codes: Tensor) -> Likelihood:
        """Return the probability of the codes, given the values."""

    @property
    @abstractmethod
    def _deviation(self) -> float:
        """Standard deviation of the value that 0 is decoded to."""

    @abstractmethod
    def _extremes(self) -> tuple[Array, Array]:
        """Return the distributions of the codes at 0, and at the values that may be the worst.

        ``(levels,)`` and ``(values, levels)``. Between two of these values the distribution is
        linear. exp((a - 1) D_a) is convex in both distributions, so that no two other values have
        a larger divergence.
        """

    def guarantee(self, size: int, norm: float = inf) -> Guarantee | None:
        """Return that of all elements: each may be any value up to ``clip``.

        A bound on the norm of the whole update is not used.
        """
        del norm
        zero, worst = (np.log(one) for one in self._extremes())

        def divergence(first: Array, second: Array, order: float) -> float:
            exponents = order * first + (1 - order) * second
            return float(np.logaddexp.reduce(exponents, axis=-1).max()) / (order - 1) * size

        return RenyiGuarantee(
            lambda order: divergence(worst[:, None], worst[None], order),
            lambda order: divergence(worst, zero, order),
        )

    def body_size(self, layout: Layout) -> int:
        """Return the size of the codes."""
        return packed_size(layout.size, code_bits(self.code_levels))

    def encode_body(self, update: Update, generator: torch.Generator) -> bytes:
        """Return the codes."""
        codes = self._draw(update.vector.clamp(-self.clip, self.clip), generator)
        kind = torch.uint8 if self.code_levels <= 256 else torch.int32
        return to_bytes(pack(codes.to(kind), code_bits(self.code_levels)))

    def _codes(self, body: bytes, layout: Layout) -> Tensor:
        return Reader(body).codes(layout.size, self.code_levels)

    def decode_body(self, body: bytes, layout: Layout) -> Tensor:
        """Return the value of each code."""
        return self._value(self._codes(body, layout))

    def body_cell(self, body: bytes, layout: Layout) -> Cell:
        """Return the probability of each code."""
        codes = self._codes(body, layout)
        center = self._value(codes)
        anything = torch.full_like(center, torch.inf)
        return Cell(
            center,
            -anything,
            anything,
            torch.full_like(center, self._deviation),
            layout.sizes,
            noise="discrete",
            likelihood=self._likelihood(codes.long()),
        )

    def body_symbols(self, body: bytes, layout: Layout) -> bytes:
        """Return the codes as bytes."""
        return to_bytes(*byte_planes(self._codes(body, layout), self.code_levels))
