"""Error feedback: the quantization error of one round is added to the next round's update."""

from dataclasses import dataclass
from math import inf
from typing import ClassVar, Self

import torch
from torch import Tensor

from fl_sim.coding.cell import Cell
from fl_sim.coding.payload import Payload
from fl_sim.privacy.accountant import Guarantee
from fl_sim.quantizers.base import Quantizer, QuantizerFacts
from fl_sim.updates.local_update import Layout, Update


@dataclass(frozen=True)
class ErrorFeedback(Quantizer):
    """Send ``Q(p)``, ``p = update + e``, and keep ``e = p - decode(Q(p))`` for the next round.

    Only the client knows the residual ``e``, so a payload's cell is that of ``p``, not of the
    update. The server knows the sum of the updates of all rounds up to the last residual.
    """

    name: ClassVar[str] = "error_feedback"
    facts: ClassVar[QuantizerFacts] = QuantizerFacts(
        "as Q",
        False,
        "sum sent = sum of updates - last residual, exactly",
        "Karimireddy et al. 2019, arXiv 1901.09847",
    )
    carries_residual: ClassVar[bool] = True

    inner: Quantizer

    @classmethod
    def from_parameters(cls, text: str) -> Self:
        """Raise `ValueError`: error feedback has a quantizer in parentheses, no parameters."""
        del text
        raise ValueError("write error_feedback(spec), outermost, e.g. error_feedback(sign).")

    @property
    def spec(self) -> str:
        """``error_feedback(...)`` around the inner spec."""
        return f"{self.name}({self.inner.spec})"

    @property
    def version(self) -> int:
        """The inner format's version."""
        return self.inner.version

    def transmit(
        self, update: Update, residual: Tensor | None, generator: torch.Generator
    ) -> tuple[Payload, Tensor | None]:
        """Encode the update plus the residual; return the payload and the new residual."""
        vector = update.vector
        corrected = vector if residual is None else vector + residual.to(vector.device)
        payload = self.encode(Update(corrected, update.layout), generator)
        return payload, corrected - self.decode(payload).vector.to(vector.device)

    def guarantee(self, size: int, norm: float = inf) -> Guarantee | None:
        """Return the inner guarantee: a client's residual follows from its data and payloads.

        What bounds an update before does not bound the residual, so only inner clipping counts.
        """
        del norm
        return self.inner.guarantee(size)

    def body_size(self, layout: Layout) -> int:
        """Return the inner body's bytes."""
        return self.inner.body_size(layout)

    def encode_body(self, update: Update, generator: torch.Generator) -> bytes:
        """Return the inner body."""
        return self.inner.encode_body(update, generator)

    def decode_body(self, body: bytes, layout: Layout) -> Tensor:
        """Return what the inner quantizer reads."""
        return self.inner.decode_body(body, layout)

    def body_cell(self, body: bytes, layout: Layout) -> Cell:
        """Return the inner cell, which is that of update plus residual."""
        return self.inner.body_cell(body, layout)

    def body_symbols(self, body: bytes, layout: Layout) -> bytes:
        """Return the inner symbols."""
        return self.inner.body_symbols(body, layout)
