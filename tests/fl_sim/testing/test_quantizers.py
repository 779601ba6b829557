"""The check of quantizers finds what is broken."""

from dataclasses import dataclass, replace
from itertools import count
from typing import ClassVar

import pytest
import torch

from fl_sim import register
from fl_sim.coding.cell import Cell, nonzero_step
from fl_sim.coding.payload import PayloadError
from fl_sim.coding.wire import Reader, refuse_nonfinite, to_bytes
from fl_sim.quantizers.base import Quantizer, QuantizerFacts
from fl_sim.testing import ContractError, check_quantizer

_numbers = count()


@dataclass(frozen=True)
class Int8(Quantizer):
    """A quantizer that keeps all promises."""

    facts: ClassVar[QuantizerFacts] = QuantizerFacts("8 d + 32", False, "half a step", "textbook")

    def body_size(self, layout):
        return 4 + layout.size

    def encode_body(self, update, generator):
        step = update.vector.abs().max().reshape(1) / 127
        codes = (update.vector / nonzero_step(step)).round().clamp(-127, 127)
        return to_bytes(step, codes.to(torch.int8))

    def decode_body(self, body, layout):
        reader = Reader(body)
        step = reader.magnitudes(1)
        return refuse_nonfinite(reader.take(layout.size).view(torch.int8).float() * step)

    def body_cell(self, body, layout):
        step = nonzero_step(Reader(body).magnitudes(1))
        center, half = self.decode_body(body, layout), step / 2
        return Cell(center, center - half, center + half, step.expand_as(center), layout.sizes)


class OtherSize(Int8):
    def body_size(self, layout):
        return 5 + layout.size


class GlobalNoise(Int8):
    def encode_body(self, update, generator):
        noise = torch.rand(update.layout.size)
        return super().encode_body(replace(update, vector=update.vector + noise), generator)


class Seeds(Int8):
    def encode_body(self, update, generator):
        torch.manual_seed(0)
        return super().encode_body(update, generator)


class InPlace(Int8):
    def encode_body(self, update, generator):
        update.vector.mul_(2)
        return super().encode_body(update, generator)


class NoFloats(Int8):
    def decode_body(self, body, layout):
        return super().decode_body(body, layout).double()


class WrongDecode(Int8):
    """Decodes one code too high, in its cell as elsewhere."""

    def decode_body(self, body, layout):
        return super().decode_body(body, layout) + Reader(body).magnitudes(1)


class ForeignCell(Int8):
    """Has a cell around other values than those that are decoded."""

    def body_cell(self, body, layout):
        cell = super().body_cell(body, layout)
        far = 10 * cell.step
        return replace(
            cell, center=cell.center + far, lower=cell.lower + far, upper=cell.upper + far
        )


class NarrowCell(Int8):
    def body_cell(self, body, layout):
        cell = super().body_cell(body, layout)
        return replace(cell, lower=cell.center - cell.step / 9, upper=cell.center + cell.step / 9)


class EmptyCell(Int8):
    def body_cell(self, body, layout):
        cell = super().body_cell(body, layout)
        return replace(cell, lower=cell.upper, upper=cell.lower)


class NoStep(Int8):
    def body_cell(self, body, layout):
        cell = super().body_cell(body, layout)
        return replace(cell, step=torch.zeros_like(cell.step))


class ShortStep(Int8):
    def body_cell(self, body, layout):
        cell = super().body_cell(body, layout)
        return replace(cell, step=cell.step[:1])


class ConstantMisfit(Int8):
    """Says that nothing was learned."""

    def body_cell(self, body, layout):
        cell = super().body_cell(body, layout)
        everything = torch.full_like(cell.center, torch.inf)
        return replace(cell, lower=-everything, upper=everything)


class TrustsBytes(Int8):
    """Reads a step that is not a number as one."""

    def decode_body(self, body, layout):
        step = torch.frombuffer(bytearray(body[:4]), dtype=torch.float32)
        return Reader(body[4:]).take(layout.size).view(torch.int8).float() * step

    def body_cell(self, body, layout):
        center = self.decode_body(body, layout)
        step = nonzero_step(torch.frombuffer(bytearray(body[:4]), dtype=torch.float32).abs())
        cell = (center, center - step / 2, center + step / 2, step.expand_as(center))
        return Cell(*cell, layout.sizes)


class AnySize(Int8):
    """Takes bytes of any length, and those of other quantizers."""

    def _check(self, payload): ...


class SendsNaN(Int8):
    checks_finite = True  # but does not


class Forgets(Int8):
    """Is not equal to another of the same spec."""

    def __eq__(self, other):
        return self is other

    def __hash__(self):
        return id(self)


BROKEN = {
    OtherSize: "a body has .* bytes; body_size says",
    GlobalNoise: "changes the global random state of PyTorch",
    Seeds: "changes the global random state of PyTorch",
    InPlace: "encoding changes the update",
    NoFloats: "decodes to torch.float64, not to float32",
    WrongDecode: "the cell does not hold the update that was encoded",
    ForeignCell: "the cell is around other values than those decoded",
    NarrowCell: "the cell does not hold the update that was encoded",
    EmptyCell: "a center of the cell is not within its bounds",
    NoStep: "a step of the cell is not positive",
    ShortStep: "do not have as many elements as its sizes",
    ConstantMisfit: "another update fits the bytes as well",
    TrustsBytes: "a forged body decodes to an update that is not finite",
    AnySize: "the payload of another quantizer is decoded",
    SendsNaN: "an update with nan is encoded",
    Forgets: "parses to another quantizer",
}


def registered(kind):
    """Register a quantizer under a name of its own, and return the name."""
    name = f"broken{next(_numbers)}"
    register("quantizer", name)(kind)
    return name


def test_a_quantizer_that_keeps_all_promises_passes():
    check_quantizer(registered(Int8))
    check_quantizer(Int8())


@pytest.mark.parametrize("kind", BROKEN, ids=lambda kind: kind.__name__)
def test_what_is_broken_is_named(kind):
    name = registered(kind)
    with pytest.raises(ContractError, match=BROKEN[kind]) as caught:
        check_quantizer(name)
    assert name in str(caught.value)


def test_a_body_of_another_length_is_found():
    class Lenient(Int8):
        def _check(self, payload):
            if payload.spec != self.spec:
                raise PayloadError

    with pytest.raises(ContractError, match=r"a body of \d+ bytes is read, not 101"):
        check_quantizer(registered(Lenient))


def test_a_draw_that_no_generator_tells_is_found():
    """A source of numbers beside the global states: a counter."""

    class Counts(Int8):
        def encode_body(self, update, generator):
            body = super().encode_body(update, generator)
            return body[:-1] + bytes([next(_numbers) % 128])

    with pytest.raises(ContractError, match="the same update and seed give other bytes"):
        check_quantizer(registered(Counts))


def test_an_unknown_quantizer_is_no_broken_one():
    with pytest.raises(ValueError, match="did you mean 'uniform'"):
        check_quantizer("unifrom:bits=4")
