"""The sign of the clipped update plus Gaussian noise: the Gaussian mechanism in one bit."""

from dataclasses import dataclass
from math import inf, pi, sqrt
from typing import ClassVar

import torch
from torch import Tensor

from fl_sim.coding.cell import Cell
from fl_sim.coding.likelihoods import SignLikelihood
from fl_sim.coding.packing import packed_size
from fl_sim.coding.transforms import ClipToNorm
from fl_sim.coding.wire import Reader
from fl_sim.privacy.accountant import GaussianGuarantee, Guarantee
from fl_sim.quantizers.base import Quantizer, QuantizerFacts
from fl_sim.quantizers.sign import pack_signs, read_signs
from fl_sim.specs import positive
from fl_sim.updates.local_update import Layout, Update


@dataclass(frozen=True)
class NoisySign(Quantizer):
    """Clip to L2 norm ``clip``, add Gaussian noise of ``noise * clip``, send the sign alone.

    It is decoded to plus and minus ``sqrt(pi / 2)`` deviations of the noise, which is unbiased for
    values far below the noise. Its guarantee is that of the Gaussian mechanism.
    """

    name: ClassVar[str] = "noisy_sign"
    facts: ClassVar[QuantizerFacts] = QuantizerFacts(
        "d",
        False,
        "E decoded = s sqrt(pi/2) erf(x / (s sqrt 2)), s = z C",
        "Jin et al. 2020, arXiv 2002.10940",
    )

    clip: float
    noise: float

    def __post_init__(self) -> None:
        positive("clip", self.clip)
        positive("noise", self.noise)
        positive("clip * noise", self.sigma)

    @property
    def sigma(self) -> float:
        """Standard deviation of the noise of one element."""
        return self.noise * self.clip

    @property
    def noise_deviation(self) -> float:
        """Standard deviation of the noise before the sign."""
        return self.sigma

    def guarantee(self, size: int, norm: float = inf) -> Guarantee | None:
        """Return that of the Gaussian mechanism, of which the sign is post-processing."""
        del size
        return GaussianGuarantee(min(norm, self.clip) / self.sigma)

    def body_size(self, layout: Layout) -> int:
        """Return the size of one bit per element."""
        return packed_size(layout.size, 1)

    def encode_body(self, update: Update, generator: torch.Generator) -> bytes:
        """Return one bit per element."""
        clipped = ClipToNorm(self.clip)(update.vector)
        noise = torch.randn(clipped.shape, generator=generator, device=clipped.device)
        return pack_signs(clipped + self.sigma * noise)[0]

    def decode_body(self, body: bytes, layout: Layout) -> Tensor:
        """Return plus and minus the scale."""
        return read_signs(Reader(body), layout.size).mul_(self._scale)

    @property
    def _scale(self) -> float:
        return self.sigma * sqrt(pi / 2)

    def body_cell(self, body: bytes, layout: Layout) -> Cell:
        """Return the probability of each sign, after clipping."""
        center = self.decode_body(body, layout)
        anything = torch.full_like(center, torch.inf)
        return Cell(
            center,
            -anything,
            anything,
            torch.full_like(center, self._scale),
            layout.sizes,
            noise="discrete",
            transform=ClipToNorm(self.clip),
            likelihood=SignLikelihood(center.sign(), self.sigma),
        )
