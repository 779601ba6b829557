"""What secure aggregation shows of the payloads of several clients: their sum, as a mean."""

from dataclasses import dataclass
from math import sqrt
from typing import ClassVar, Self

import torch
from torch import Tensor

from fl_sim.coding.cell import Cell
from fl_sim.coding.wire import FLOAT, Reader, to_bytes
from fl_sim.quantizers.base import Quantizer, QuantizerFacts
from fl_sim.quantizers.noise import Gaussian
from fl_sim.specs import parse_parameters, positive, within
from fl_sim.updates.local_update import Layout, Update


@dataclass(frozen=True)
class Sum(Quantizer):
    """The mean of what ``clients`` payloads of a quantizer decode to, in fixed point.

    No client sends it: the server computes it from masked integers. Each client rounds its decoded
    update at random to multiples of ``step``, so that the mean is less than one step away.
    """

    name: ClassVar[str] = "sum"
    facts: ClassVar[QuantizerFacts] = QuantizerFacts(
        "as the integers that are masked",
        True,
        "abs < step, Var <= step^2 / (4 n), beside the errors of Q",
        "Bell et al. 2020, IACR ePrint 2020/704",
    )
    sent_by_clients: ClassVar[bool] = False

    clients: int
    step_size: float
    inner: Quantizer

    def __post_init__(self) -> None:
        within("clients", self.clients, 1, 1 << 20)
        positive("step", self.step_size)

    @classmethod
    def parse(cls, parameters: str, inner: Quantizer) -> Self:
        """Return the sum that ``sum:clients=8,step=0.001(spec)`` names."""
        known = parse_parameters(_Parameters, parameters)
        return cls(known["clients"], known["step"], inner)

    @property
    def spec(self) -> str:
        """``sum:clients=8,step=0.001(...)`` around the spec of the clients' quantizer."""
        return f"{self.name}:clients={self.clients},step={self.step_size!r}({self.inner.spec})"

    @property
    def noise_deviation(self) -> float | None:
        """Of Gaussian noise that each client adds, the deviation of the mean."""
        own = self.inner.noise_deviation
        return None if own is None else own / sqrt(self.clients)

    @property
    def carries_residual(self) -> bool:  # type: ignore[override]
        """Whether clients add what earlier payloads lost."""
        return self.inner.carries_residual

    def body_size(self, layout: Layout) -> int:
        """Return 4 bytes per element: the server keeps the mean as float32."""
        return layout.size * FLOAT

    def encode_body(self, update: Update, generator: torch.Generator) -> bytes:
        """Return the elements of a mean."""
        del generator
        return to_bytes(update.vector)

    def decode_body(self, body: bytes, layout: Layout) -> Tensor:
        """Return the elements."""
        return Reader(body).floats(layout.size)

    def body_cell(self, body: bytes, layout: Layout) -> Cell:
        """Return the bounds of the rounding or, with Gaussian noise, the noise.

        What other quantizers do to the updates that are added up is not modelled: the true mean of
        the updates then lies outside of the cell, which the gates notice.
        """
        center = self.decode_body(body, layout)
        rounding = self.step_size / sqrt(6 * self.clients)
        if isinstance(self.inner, Gaussian):
            anything = torch.full_like(center, torch.inf)
            deviation = sqrt(self.inner.sigma**2 / self.clients + rounding**2)
            step = torch.full_like(center, deviation)
            return Cell(center, -anything, anything, step, layout.sizes, noise="gaussian")
        step = torch.full_like(center, rounding)
        reach = self.step_size
        return Cell(center, center - reach, center + reach, step, layout.sizes, noise="gaussian")


@dataclass(frozen=True)
class _Parameters:
    clients: int
    step: float
