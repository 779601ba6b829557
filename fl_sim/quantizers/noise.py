"""Additive noise: the control beside quantizers, and the Gaussian mechanism."""

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from fl_sim.coding.cell import Cell, Noise, Transform
from fl_sim.coding.wire import FLOAT, Reader, to_bytes
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
    """Add Gaussian noise of standard deviation ``sigma``; no privacy claim is made."""

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


@dataclass(frozen=True)
class Laplace(Noisy):
    """Add Laplace noise of scale ``scale``; no privacy claim is made."""

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

    def _draw(self, like: Tensor, generator: torch.Generator) -> Tensor:
        # The difference of two exponential variables is Laplace distributed, and always finite.
        first = torch.empty_like(like).exponential_(generator=generator)
        return first - torch.empty_like(like).exponential_(generator=generator)


@dataclass(frozen=True)
class DpGaussian(Noisy):
    """Clip the update to L2 norm ``clip``, then add Gaussian noise of ``noise * clip``.

    The privacy this gives: `fl_sim.privacy.gaussian_epsilon`.
    """

    name: ClassVar[str] = "dp_gaussian"
    facts: ClassVar[QuantizerFacts] = QuantizerFacts(
        "32 d",
        False,
        "clipping bias, then Var = (z C)^2",
        "Abadi et al. 2016, arXiv 1607.00133; accountant: Opacus",
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

    def _transform(self) -> Transform:
        return Clip(self.clip)


@dataclass(frozen=True)
class Clip:
    """Scale an update to an L2 norm of at most ``norm``; public, so attackers apply it too."""

    norm: float

    def __call__(self, update: Tensor) -> Tensor:
        """Map ``(..., n)`` to ``(..., n)``."""
        length: Tensor = torch.linalg.vector_norm(update, dim=-1, keepdim=True)
        scale = self.norm / length.clamp_min(self.norm)
        return update * scale

    def invert(self, codes: Tensor) -> Tensor:
        """Return ``codes``: nothing is known of what was clipped."""
        return codes

    def stack(self, others: Sequence["Clip"]) -> "Clip":
        """Return itself: it is the same for every payload."""
        del others
        return self
