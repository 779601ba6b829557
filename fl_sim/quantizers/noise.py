"""Additive noise: the control beside quantizers, and the Gaussian mechanism with its accountant."""

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import ClassVar

import torch
from torch import Tensor

from fl_sim.coding.cell import Cell, Noise, Transform
from fl_sim.coding.wire import FLOAT, Reader, to_bytes
from fl_sim.quantizers.base import Facts, Quantizer
from fl_sim.specs import positive
from fl_sim.updates.local_update import Layout, Update


class Noisy(Quantizer):
    """Sends float32 elements with noise added; a subclass says which."""

    noise_kind: ClassVar[Noise]

    def body_size(self, layout: Layout) -> int:
        """Return 4 bytes an element."""
        return layout.size * FLOAT

    @property
    @abstractmethod
    def noise_scale(self) -> float:
        """Scale parameter of the noise of one element."""

    def _transform(self) -> Transform | None:
        return None

    def _encode(self, update: Update, generator: torch.Generator) -> bytes:
        transform = self._transform()
        vector = update.vector if transform is None else transform(update.vector)
        return to_bytes(vector + self.noise_scale * self._draw(vector, generator))

    def _draw(self, like: Tensor, generator: torch.Generator) -> Tensor:
        return torch.randn(like.shape, generator=generator, device=like.device)

    def _decode(self, body: bytes, layout: Layout) -> Tensor:
        return Reader(body).floats(layout.size)

    def _cell(self, body: bytes, layout: Layout) -> Cell:
        center = self._decode(body, layout)
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
    facts: ClassVar[Facts] = Facts("32 d", True, "Var = sigma^2", "the control, not a quantizer")
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
    facts: ClassVar[Facts] = Facts("32 d", True, "Var = 2 s^2", "the control, not a quantizer")
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
    """Clip the update to L2 norm ``clip``, then add Gaussian noise of ``noise * clip``."""

    name: ClassVar[str] = "dp_gaussian"
    facts: ClassVar[Facts] = Facts(
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

    def epsilon(self, rounds: int, sample_rate: float, delta: float) -> float:
        """Return epsilon of the (epsilon, delta)-privacy of one client's whole contribution.

        Neighbouring runs differ in whether the client's clipped update is there or zero. Towards
        a server that sees who takes part in a round, subsampling gives nothing: pass 1.

        Parameters
        ----------
        rounds : int
            Rounds of training.
        sample_rate : float
            Probability with which the client takes part in a round, unseen by the adversary.
        delta : float
            The delta to account for.

        Raises
        ------
        ImportError
            If the optional package ``opacus`` is not installed.
        """
        try:
            accountants = import_module("opacus.accountants")
        except ImportError as error:
            raise ImportError(
                "The epsilon of dp_gaussian needs the package opacus; install it with pip."
            ) from error
        accountant = accountants.RDPAccountant()
        accountant.history = [(self.noise, sample_rate, rounds)]
        return float(accountant.get_epsilon(delta))


@dataclass(frozen=True)
class Clip:
    """Scale an update down to an L2 norm of at most ``norm``; public, so candidates are too."""

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
