"""Additive noise: the control beside quantizers, and the Gaussian mechanism."""

from abc import abstractmethod
from dataclasses import dataclass
from math import inf, sqrt
from typing import ClassVar

import torch
from torch import Tensor

from fl_sim.coding.cell import Cell, Noise, Transform
from fl_sim.coding.transforms import ClipToNorm
from fl_sim.coding.wire import FLOAT, Reader, to_bytes
from fl_sim.privacy.accountant import GaussianGuarantee, Guarantee, pure_guarantee
from fl_sim.quantizers.base import Quantizer, QuantizerFacts
from fl_sim.specs import positive
from fl_sim.updates.local_update import Layout, Update


class Noisy(Quantizer):
    """Send float32 elements with added noise; a subclass says which noise."""

    noise_kind: ClassVar[Noise]

    def body_size(self, layout: Layout) -> int:
        """Return 4 bytes per element."""
        return layout.size * FLOAT

    @property
    @abstractmethod
    def noise_scale(self) -> float:
        """Scale parameter of the noise of one element."""

    def _transform(self) -> Transform | None:
        return None

    def encode_body(self, update: Update, generator: torch.Generator) -> bytes:
        """Return the elements with noise added."""
        transform = self._transform()
        vector = update.vector if transform is None else transform(update.vector)
        return to_bytes(vector + self.noise_scale * self._draw(vector, generator))

    def _draw(self, like: Tensor, generator: torch.Generator) -> Tensor:
        return torch.randn(like.shape, generator=generator, device=like.device)

    def decode_body(self, body: bytes, layout: Layout) -> Tensor:
        """Return the noisy elements."""
        return Reader(body).floats(layout.size)

    def body_cell(self, body: bytes, layout: Layout) -> Cell:
        """Return the noise around each element; nothing bounds it."""
        center = self.decode_body(body, layout)
        anything = torch.full_like(center, torch.inf)
        return Cell(
            center=center,
            lower=-anything,
            upper=anything,
            step=torch.full_like(center, self.noise_scale),
            sizes=layout.sizes,
            noise=self.noise_kind,
            transform=self._transform(),
        )


@dataclass(frozen=True)
class Gaussian(Noisy):
    """Add Gaussian noise of standard deviation ``sigma``; a guarantee needs clipping before it."""

    name: ClassVar[str] = "gaussian"
    facts: ClassVar[QuantizerFacts] = QuantizerFacts(
        "32 d", True, "Var = sigma^2", "the control, not a quantizer"
    )
    noise_kind: ClassVar[Noise] = "gaussian"

    sigma: float

    def __post_init__(self) -> None:
        positive("sigma", self.sigma)

    @property
    def noise_scale(self) -> float:
        """Standard deviation."""
        return self.sigma

    @property
    def noise_deviation(self) -> float:
        """Standard deviation."""
        return self.noise_scale

    def guarantee(self, size: int, norm: float = inf) -> Guarantee | None:
        """Return that of the Gaussian mechanism, if the norm is bounded."""
        del size
        return GaussianGuarantee(norm / self.sigma) if norm < inf else None


@dataclass(frozen=True)
class Laplace(Noisy):
    """Add Laplace noise of scale ``scale``; a guarantee needs clipping before it."""

    name: ClassVar[str] = "laplace"
    facts: ClassVar[QuantizerFacts] = QuantizerFacts(
        "32 d", True, "Var = 2 s^2", "the control, not a quantizer"
    )
    noise_kind: ClassVar[Noise] = "laplace"

    scale: float

    def __post_init__(self) -> None:
        positive("scale", self.scale)

    @property
    def noise_scale(self) -> float:
        """Mean absolute deviation."""
        return self.scale

    def guarantee(self, size: int, norm: float = inf) -> Guarantee | None:
        """Return that of the Laplace mechanism, if the norm is bounded.

        The L1 norm is at most sqrt(size) times the L2 norm.
        """
        reach = norm * sqrt(size) / self.scale
        return pure_guarantee(2 * reach, reach) if reach < inf else None

    def _draw(self, like: Tensor, generator: torch.Generator) -> Tensor:
        # The difference of two exponential variables is Laplace distributed, and always finite.
        first = torch.empty_like(like).exponential_(generator=generator)
        return first - torch.empty_like(like).exponential_(generator=generator)


@dataclass(frozen=True)
class DpGaussian(Noisy):
    """Clip the update to L2 norm ``clip``, then add Gaussian noise of ``noise * clip``.

    The same as ``clip:norm=C+gaussian:sigma=zC``.
    """

    name: ClassVar[str] = "dp_gaussian"
    facts: ClassVar[QuantizerFacts] = QuantizerFacts(
        "32 d",
        False,
        "clipping bias, then Var = (z C)^2",
        "Abadi et al. 2016, arXiv 1607.00133",
    )
    noise_kind: ClassVar[Noise] = "gaussian"

    clip: float
    noise: float

    def __post_init__(self) -> None:
        positive("clip", self.clip)
        positive("noise", self.noise)
        positive("clip * noise", self.noise_scale)

    @property
    def noise_scale(self) -> float:
        """Standard deviation."""
        return self.noise * self.clip

    @property
    def noise_deviation(self) -> float:
        """Standard deviation."""
        return self.noise_scale

    def guarantee(self, size: int, norm: float = inf) -> Guarantee | None:
        """Return that of the Gaussian mechanism."""
        del size
        return GaussianGuarantee(min(norm, self.clip) / self.noise_scale)

    def _transform(self) -> Transform:
        return ClipToNorm(self.clip)
