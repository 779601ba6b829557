"""The interface of every quantizer, and its spec string."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cached_property
from math import inf
from typing import ClassVar, Self

import torch
from torch import Tensor

from fl_sim.coding.cell import Cell
from fl_sim.coding.payload import Payload, PayloadError
from fl_sim.privacy.accountant import Guarantee
from fl_sim.specs import parse_parameters, print_parameters
from fl_sim.updates.local_update import Layout, Update, all_finite


@dataclass(frozen=True)
class QuantizerFacts:
    """What the catalogue says about a quantizer (``run_simulation.py quantizers``)."""

    bits: str
    unbiased: bool
    error: str
    source: str


class Quantizer(ABC):
    """Base of all quantizers: frozen dataclasses whose fields are their parameters.

    A subclass gives ``name``, ``facts``, `body_size`, `encode_body`, `decode_body` and
    `body_cell`. These work on the flat vector of a whole update, without loops over elements.
    The public methods `encode`, `decode` and `cell` check what they are given first; one quantizer
    that wraps another calls the methods of the body.
    """

    name: ClassVar[str]
    facts: ClassVar[QuantizerFacts]
    checks_finite: ClassVar[bool] = False
    """Whether `encode_body` itself refuses updates that are not finite, while it reads them."""
    carries_residual: ClassVar[bool] = False
    """Whether a client adds to each update what its earlier payloads lost (error feedback).

    A payload then encodes that sum, not the update alone.
    """
    sent_by_clients: ClassVar[bool] = True
    """Whether a client can use it; False for what a server makes of several payloads."""

    @classmethod
    def from_parameters(cls, text: str) -> Self:
        """Parse the part of a spec after its colon, ``name=value,...``; raise `ValueError`."""
        return cls(**parse_parameters(cls, text))

    @property
    def noise_deviation(self) -> float | None:
        """Deviation of the Gaussian noise that payloads are made of; None if there is none."""
        return None

    @property
    def parameters(self) -> str:
        """The part of the spec after its colon."""
        return print_parameters(self)

    @property
    def version(self) -> int:
        """Version of the payload's format; it rises when a body changes its meaning."""
        return 1

    @cached_property
    def spec(self) -> str:
        """Spec string that parses back to an equal quantizer, e.g. ``uniform:bits=4``."""
        return self.name + (f":{self.parameters}" if self.parameters else "")

    @cached_property
    def modules(self) -> set[str]:
        """Names of the modules that define this quantizer and those it wraps."""
        wrapped = (value for value in vars(self).values() if isinstance(value, Quantizer))
        return {type(self).__module__}.union(*(one.modules for one in wrapped))

    def encode(self, update: Update, generator: torch.Generator) -> Payload:
        """Encode an update.

        Parameters
        ----------
        update : Update
            What the client computed; every element finite.
        generator : torch.Generator
            Source of randomness of randomized quantizers, on the update's device.

        Raises
        ------
        ValueError
            If an element is NaN or infinite; the message names the tensor.
        """
        if not self.checks_finite:
            refuse_nonfinite(update)
        body = self.encode_body(update, generator) if update.layout.size else b""
        return Payload(self.spec, body, update.layout, self.version)

    def decode(self, payload: Payload) -> Update:
        """Decode a payload to a float32 update on the CPU.

        Raises
        ------
        PayloadError
            If the payload is another quantizer's, or its body does not have the exact size.
        """
        self._check(payload)
        if not payload.layout.size:
            return Update(torch.zeros(0), payload.layout)
        return Update(self.decode_body(payload.body, payload.layout), payload.layout)

    def cell(self, payload: Payload) -> Cell:
        """Return what ``payload`` reveals about the update; see `Cell`.

        Raises
        ------
        PayloadError
            As `decode`.
        """
        self._check(payload)
        return self.body_cell(payload.body, payload.layout)

    def misfit(self, payload: Payload, candidate: Tensor) -> Tensor:
        """Penalty per element of a candidate update ``(..., n)``; zero inside the cell."""
        return self.cell(payload).misfit(candidate)

    def step(self, payload: Payload) -> Tensor:
        """Resolution per element in the code domain."""
        return self.cell(payload).step

    def transmit(
        self, update: Update, residual: Tensor | None, generator: torch.Generator
    ) -> tuple[Payload, Tensor | None]:
        """Encode one round's update, with the residual that a client keeps between rounds, if any.

        Only error feedback returns a residual; the quantizing mod stores what is returned.
        """
        del residual
        return self.encode(update, generator), None

    def symbols(self, payload: Payload) -> bytes:
        """Return the body with its codes unpacked to whole bytes, for an entropy coder to read."""
        self._check(payload)
        return self.body_symbols(payload.body, payload.layout)

    def guarantee(self, size: int, norm: float = inf) -> Guarantee | None:
        """Return what one payload guarantees against any attacker; None if it guarantees nothing.

        Parameters
        ----------
        size : int
            Elements of an update.
        norm : float
            Bound on the L2 norm of updates, by an earlier step of the pipeline.
        """
        del size, norm
        return None

    @abstractmethod
    def body_size(self, layout: Layout) -> int:
        """Return the exact bytes of every body for ``layout``; no length on the wire is trusted."""

    @abstractmethod
    def encode_body(self, update: Update, generator: torch.Generator) -> bytes:
        """Return the body: side information, then packed codes."""

    @abstractmethod
    def decode_body(self, body: bytes, layout: Layout) -> Tensor:
        """Return the ``(layout.size,)`` vector of a body of the right size."""

    @abstractmethod
    def body_cell(self, body: bytes, layout: Layout) -> Cell:
        """Return what a body of the right size reveals."""

    def body_symbols(self, body: bytes, layout: Layout) -> bytes:
        """Return a body of the right size with its codes unpacked to whole bytes."""
        del layout
        return body

    def _check(self, payload: Payload) -> None:
        if payload.spec != self.spec:
            raise PayloadError(f"A payload of {payload.spec!r} reached quantizer {self.spec!r}.")
        if payload.version != self.version:
            raise PayloadError(
                f"The payload of {self.spec!r} has format version {payload.version}; "
                f"this code reads version {self.version}."
            )
        try:
            expected = self.body_size(payload.layout) if payload.layout.size else 0
        except ValueError as error:  # a quantizer of other tensors than the model has
            raise PayloadError(str(error)) from error
        if len(payload.body) != expected:
            raise PayloadError(
                f"The body of {self.spec!r} has {len(payload.body)} bytes, not {expected}."
            )


def refuse_nonfinite(update: Update) -> None:
    """Raise `ValueError`, with the tensor's name, if an element is NaN or infinite."""
    if all_finite(update.vector):
        return
    pieces = update.layout.split(update.vector)
    for segment, piece in zip(update.layout.segments, pieces, strict=True):
        if not all_finite(piece):
            raise ValueError(f"The update of tensor {segment.name!r} is not finite.")
