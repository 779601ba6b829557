"""Secure aggregation by Flower's SecAgg+: its parameters, and what a client hands to it.

Flower's mod and workflow do the cryptography: key agreement, Shamir shares, masks, unmasking.
"""

from dataclasses import dataclass
from functools import lru_cache
from math import ceil
from typing import ClassVar

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from torch import Tensor

from fl_sim.specs import parse_parameters, positive, print_parameters

PLAIN = "plain"
PROTOCOL = "secaggplus_configs"
"""Name of the record in which the messages of Flower's protocol are."""


@dataclass(frozen=True)
class SecAggPlus:
    """Parameters of SecAgg+ (Bell et al. 2020, IACR ePrint 2020/704), as Flower has it.

    Attributes
    ----------
    clip : float
        Elements of an update are clipped to [-clip, clip], then rounded at random to multiples of
        `step`.
    threshold : float
        Share of the clients of a round, above one half, that must stay to the end: so many shares
        recover a mask.
    """

    name: ClassVar[str] = "secagg+"
    levels: ClassVar[int] = 1 << 22

    clip: float = 8.0
    threshold: float = 0.7

    def __post_init__(self) -> None:
        positive("clip", self.clip)
        if not 0.5 < self.threshold <= 1:
            allowed = "give a number above 0.5, up to 1"
            raise ValueError(f"threshold={self.threshold:g} is not allowed; {allowed}.")

    @property
    def spec(self) -> str:
        """Spec string that parses back to equal parameters."""
        parameters = print_parameters(self)
        return self.name + (f":{parameters}" if parameters else "")

    @property
    def step(self) -> float:
        """Distance of two fixed-point numbers."""
        return 2 * self.clip / self.levels

    def needed(self, clients: int) -> int:
        """Return how many of the clients of a round must stay to the end; two at least."""
        return max(2, ceil(self.threshold * clients - 1e-9))


@lru_cache(maxsize=16)
def parse_aggregation(spec: str) -> SecAggPlus | None:
    """Return the parameters that a spec names; None for ``plain``, where every payload is seen.

    Raises
    ------
    ValueError
        If there is no such aggregation, or a parameter is not allowed.

    Examples
    --------
    >>> from fl_sim.exchange.secure import parse_aggregation
    >>> parse_aggregation("secagg+:clip=0.5").needed(clients=8)
    6
    """
    name, _, parameters = spec.strip().partition(":")
    if name == PLAIN and not parameters:
        return None
    if name != SecAggPlus.name:
        raise ValueError(f"give {PLAIN} or {SecAggPlus.name}, as in {SecAggPlus.name}:clip=0.5.")
    return SecAggPlus(**parse_parameters(SecAggPlus, parameters))


def is_protocol(message: Message) -> bool:
    """Return whether a message belongs to the protocol."""
    return message.has_content() and PROTOCOL in message.content


def with_protocol(message: Message, task: RecordDict | None = None) -> Message:
    """Give a message of Flower's workflow a protocol record of its own, and a client's task.

    The workflow gives all clients the same record, from which the mod takes entries out: a grid
    that passes messages on as they are would give them an emptied one.
    """
    own = ConfigRecord(dict(message.content[PROTOCOL]))  # type: ignore[arg-type]
    message.content = RecordDict({**(task or {}), PROTOCOL: own})
    return message


def to_be_masked(reply: Message, update: Tensor, plan: SecAggPlus) -> Message:
    """Replace the payload of a reply by the values that Flower's mod masks.

    One element is appended whose mean is known: where masks do not cancel it is anything else.
    """
    values = np.append(update.numpy().astype(np.float64), plan.clip)
    # What the mod looks for, in the names of Flower's former messages.
    content: dict[str, ArrayRecord | MetricRecord | ConfigRecord] = {
        "fitres.parameters": ArrayRecord({"0": Array(values)}),
        "fitres.num_examples": MetricRecord({"num_examples": 1}),
        "fitres.metrics": ConfigRecord(),
        "fitres.status": ConfigRecord({"code": 0, "message": ""}),
    }
    for name, record in reply.content.items():
        if not isinstance(record, ArrayRecord):
            content[name] = record
    reply.content = RecordDict(content)
    return reply


def unmasked(values: np.ndarray, plan: SecAggPlus) -> Tensor | None:
    """Return the ``(size,)`` mean of the updates; None if masks were left over."""
    if not np.isclose(values[-1], plan.clip, rtol=1e-9, atol=0):
        return None
    return torch.from_numpy(values[:-1]).float()
