"""Mixed precision: bits per layer or tensor, given in the spec."""

from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import ClassVar, NamedTuple, Self

import torch
from torch import Tensor

from fl_sim.coding.cell import Cell
from fl_sim.quantizers.absmax import Absmax
from fl_sim.quantizers.base import Quantizer, QuantizerFacts
from fl_sim.quantizers.uniform import Stochastic, Uniform
from fl_sim.specs import within
from fl_sim.suggestions import one_of
from fl_sim.updates.local_update import Layout, Update

_FAMILIES: dict[str, type[Uniform | Absmax]] = {
    kind.name: kind for kind in (Uniform, Stochastic, Absmax)
}


class Part(NamedTuple):
    """Tensors that share a bit width: their quantizer, layout and places in the whole vector."""

    quantizer: Quantizer
    layout: Layout
    places: Tensor


@dataclass(frozen=True)
class Mixed(Quantizer):
    """Bits per layer or tensor by rules like ``first=8,*.bias=16,rest=2``; the first match counts.

    ``first`` and ``last`` are the first and last layer (weight and bias). Any other name is a
    shell pattern of tensor names. ``rest`` is required and comes last. ``of=absmax`` chooses
    another family than ``uniform``.
    """

    name: ClassVar[str] = "mixed"
    facts: ClassVar[QuantizerFacts] = QuantizerFacts(
        "sum of b d + side information over the parts",
        False,
        "as its family at each tensor's bits (unbiased with of=stochastic)",
        "e.g. Dong et al. 2019, arXiv 1905.03696",
    )

    rules: tuple[tuple[str, int], ...]
    of: str = "uniform"

    def __post_init__(self) -> None:
        if self.of not in _FAMILIES:
            raise ValueError(f"of={self.of} is not allowed; {one_of(self.of, _FAMILIES)}")
        names = [name for name, _ in self.rules]
        if not names or names[-1] != "rest" or len(set(names)) < len(names):
            raise ValueError("give each rule once and rest=bits last, e.g. mixed:first=8,rest=2.")
        for name, bits in self.rules:
            within(name, bits, 2 if self.of == "absmax" else 1, 16)

    @classmethod
    def from_parameters(cls, text: str) -> Self:
        """Parse ``[of=family,]rule=bits,...,rest=bits``."""
        pairs = [item.partition("=")[::2] for item in text.split(",")]
        rules = [(name, bits) for name, bits in pairs if name != "of"]
        for name, bits in rules:
            if not name or not bits.isdecimal():
                raise ValueError("write layer=bits,...,rest=bits, e.g. mixed:first=8,rest=2.")
        family = dict(pairs).get("of", "uniform")
        return cls(tuple((name, int(bits)) for name, bits in rules), family)

    @property
    def parameters(self) -> str:
        """The rules in order, after the family unless it is the default."""
        family = "" if self.of == "uniform" else f"of={self.of},"
        return family + ",".join(f"{name}={bits}" for name, bits in self.rules)

    def body_size(self, layout: Layout) -> int:
        """Return the bodies of all parts, in bytes."""
        return sum(part.quantizer.body_size(part.layout) for part in self._parts(layout))

    def bits_of(self, layout: Layout) -> list[int]:
        """Return the bits of each tensor of a layout.

        Raises
        ------
        ValueError
            If a pattern matches no tensor.
        """
        layers = [segment.name.rpartition(".")[0] or segment.name for segment in layout.segments]
        special = {"first": layers[0], "last": layers[-1]} if layers else {}

        def matches(rule: str, index: int) -> bool:
            if rule in special:
                return layers[index] == special[rule]
            return rule == "rest" or fnmatchcase(layout.segments[index].name, rule)

        tensors = range(len(layers))
        for rule, _ in self.rules[:-1]:
            if layers and not any(matches(rule, index) for index in tensors):
                names = [segment.name for segment in layout.segments]
                raise ValueError(f"{self.spec}: no tensor {rule!r}; {one_of(rule, names)}")
        return [next(b for rule, b in self.rules if matches(rule, i)) for i in tensors]

    def _parts(self, layout: Layout) -> list[Part]:
        bits_of = self.bits_of(layout)
        places = torch.split(torch.arange(layout.size), list(layout.sizes))
        parts = []
        for bits in sorted(set(bits_of), reverse=True):
            chosen = [index for index, own in enumerate(bits_of) if own == bits]
            parts.append(
                Part(
                    _FAMILIES[self.of](bits=bits),
                    Layout(tuple(layout.segments[index] for index in chosen)),
                    torch.cat([places[index] for index in chosen]),
                )
            )
        return parts

    def _bodies(self, body: bytes, layout: Layout) -> list[tuple[Part, bytes]]:
        bodies = []
        for part in self._parts(layout):
            size = part.quantizer.body_size(part.layout)
            bodies.append((part, body[:size]))
            body = body[size:]
        return bodies

    def encode_body(self, update: Update, generator: torch.Generator) -> bytes:
        """Return the bodies of the parts."""
        bodies = []
        for part in self._parts(update.layout):
            values = update.vector[part.places.to(update.vector.device)]
            bodies.append(part.quantizer.encode_body(Update(values, part.layout), generator))
        return b"".join(bodies)

    def decode_body(self, body: bytes, layout: Layout) -> Tensor:
        """Return the elements of all parts in their places."""
        vector = torch.empty(layout.size)
        for part, own in self._bodies(body, layout):
            vector[part.places] = part.quantizer.decode_body(own, part.layout)
        return vector

    def body_cell(self, body: bytes, layout: Layout) -> Cell:
        """Return the cells of the parts, their elements in their places."""
        bodies = self._bodies(body, layout)
        cells = [part.quantizer.body_cell(own, part.layout) for part, own in bodies]
        order = torch.cat([part.places for part, _ in bodies]).argsort()
        return Cell(
            center=torch.cat([cell.center for cell in cells])[order],
            lower=torch.cat([cell.lower for cell in cells])[order],
            upper=torch.cat([cell.upper for cell in cells])[order],
            step=torch.cat([cell.step for cell in cells])[order],
            sizes=layout.sizes,
            noise=cells[0].noise,
        )

    def body_symbols(self, body: bytes, layout: Layout) -> bytes:
        """Return the symbols of the parts."""
        bodies = self._bodies(body, layout)
        return b"".join(part.quantizer.body_symbols(own, part.layout) for part, own in bodies)
