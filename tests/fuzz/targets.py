"""What bytes of strangers reach: each target must answer any bytes with a value or a refusal.

It tells which: True if the bytes were accepted, and what they gave was sound.
"""

import json
import struct
import tempfile
from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import dataclass
from math import prod
from pathlib import Path

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp.strategy import FedAvg

from fl_sim.coding.payload import Payload, PayloadError
from fl_sim.engines.grids import LocalGrid
from fl_sim.exchange.messages import payload_array
from fl_sim.models import ModelSpec
from fl_sim.observed.observations import load_observations
from fl_sim.observed.reconstructions import load_reconstructions
from fl_sim.quantizers import parse_quantizer
from fl_sim.storage.files import StoreError
from fl_sim.updates.local_update import Layout, Segment, Update, layout_of_model
from server.strategies.dequantize import Dequantize
from server.strategies.reception import RoundFailedError
from tests.fl_sim.quantizers.quantizer_cases import SPECS

Target = Callable[[bytes], bool]

_MEMORY = "/dev/shm" if Path("/dev/shm").is_dir() else None
LAYOUT = Layout(
    (Segment("t0.weight", (3, 4)), Segment("t1.weight", (3,)), Segment("t2.weight", (2, 3)))
)
_UPDATE = Update(torch.linspace(-1, 1, LAYOUT.size), LAYOUT)
_SCRATCH = Path(tempfile.mkdtemp(prefix="fl-sim-fuzz-", dir=_MEMORY)) / "file"


def payload(data: bytes) -> bool:
    """Parse, decode and make the cell of a payload; its checksum is forged, or it would end there.

    Byte 0 chooses the quantizer, byte 1 how bytes become a payload.
    """
    chosen, mode, rest = data[:1], data[1:2], data[2:]
    if not mode:
        return False
    try:
        if mode[0] % 8 == 0:
            parsed = Payload.from_bytes(rest, LAYOUT)
        else:
            spec, body = SPECS[chosen[0] % len(SPECS)], rest
            if mode[0] % 8 == 1:
                text, _, body = rest.partition(b"\n")
                spec = text.decode("ascii", "replace").replace("�", "?")[:255]
            size, version = _size_and_version(spec)
            if mode[0] % 8 != 2:
                body = (body + bytes(size))[:size]
            parsed = Payload.from_bytes(Payload(spec, body, LAYOUT, version).to_bytes(), LAYOUT)
        _open(parsed)
    except PayloadError:
        return False
    return True


def _size_and_version(spec: str) -> tuple[int, int]:
    try:
        quantizer = parse_quantizer(spec)
        return min(quantizer.body_size(LAYOUT), 4096), quantizer.version
    except ValueError as error:
        raise PayloadError(str(error)) from error


def _open(parsed: Payload) -> None:
    try:
        quantizer = parse_quantizer(parsed.spec)
    except ValueError as error:
        raise PayloadError(str(error)) from error
    vector = quantizer.decode(parsed).vector
    assert vector.shape == (LAYOUT.size,)
    assert vector.dtype == torch.float32
    assert bool(torch.isfinite(vector).all())
    misfit = quantizer.cell(parsed).misfit(vector)
    assert not bool(misfit.isnan().any())


class _Draw:
    """Reads choices from bytes; zeros when they are used up."""

    def __init__(self, data: bytes) -> None:
        self.data, self.at = data, 0

    def bytes(self, count: int) -> bytes:
        piece = self.data[self.at : self.at + count]
        self.at += count
        return piece + bytes(count - len(piece))

    def number(self, below: int) -> int:
        return int.from_bytes(self.bytes(2), "little") % below

    def integer(self) -> int:
        return int(struct.unpack("<q", self.bytes(8))[0])

    def real(self) -> float:
        return float(struct.unpack("<d", self.bytes(8))[0])

    def text(self) -> str:
        return self.bytes(self.number(24)).decode("utf-8", "replace")


_DTYPES = ("float32", "uint8", "int64", "bool", "float16", "object", "V8", "float32,", "")
_STYPES = ("fl_sim.payload", "fl_sim.raw", "numpy.ndarray", "fl_sim.float32", "")
_NAMES = ("payload", "bn.running_mean", "t0.weight", "t1.weight", "")


def _array(draw: _Draw) -> Array:
    kind = draw.number(4)
    if kind == 0:
        spec = SPECS[draw.number(len(SPECS))]
        quantizer = parse_quantizer(spec)
        body = draw.bytes(quantizer.body_size(LAYOUT))
        return payload_array(Payload(spec, body, LAYOUT, quantizer.version))
    shape = (3,) if kind == 1 else tuple(abs(draw.integer()) for _ in range(draw.number(4)))
    dtype, stype = _DTYPES[draw.number(len(_DTYPES))], _STYPES[draw.number(len(_STYPES))]
    size = 12 if kind == 1 else draw.number(64)
    return Array(dtype, shape, stype, draw.bytes(size))


def _metric(draw: _Draw) -> object:
    options = (draw.integer, draw.real, lambda: [draw.real()], lambda: [], lambda: draw.number(9))
    return options[draw.number(len(options))]()


def _fact(draw: _Draw, nonce: str) -> object:
    options = (lambda: nonce, lambda: draw.number(3), draw.integer, draw.text, draw.real)
    return options[draw.number(len(options))]()


def _content(draw: _Draw, nonce: str) -> RecordDict:
    content = RecordDict()
    for number in range(draw.number(3)):
        names = [_NAMES[draw.number(len(_NAMES))] for _ in range(draw.number(4))]
        content[f"arrays{number or ''}"] = ArrayRecord({name: _array(draw) for name in names})
    for number in range(draw.number(3)):
        names = [
            ("num-examples", "loss", draw.text())[draw.number(3)] for _ in range(draw.number(3))
        ]
        content[f"metrics{number or ''}"] = MetricRecord({n: _metric(draw) for n in names})
    if draw.number(2):
        content["facts"] = ConfigRecord(
            {"nonce": _fact(draw, nonce), "partition-id": _fact(draw, nonce)}
        )
    return content


def replies(data: bytes) -> bool:
    """Receive three replies of one round, one of them honest, as a server with FedAvg does."""
    draw = _Draw(data)
    given = ArrayRecord(
        {s.name: Array(np.zeros(s.shape, np.float32)) for s in LAYOUT.segments}
        | {"bn.running_mean": Array(np.zeros(3, np.float32))}
    )
    strategy, config = Dequantize(FedAvg()), ConfigRecord()
    messages = list(strategy.configure_train(1, given, config, LocalGrid(None, 3)))  # type: ignore[arg-type]
    nonce = str(config["nonce"])
    contents = [_honest(nonce), _content(draw, nonce), _content(draw, nonce)]
    answers = []
    for message, content in zip(messages, contents, strict=True):
        message.metadata.__dict__["_message_id"] = str(len(answers))
        answers.append(Message(content, reply_to=message))
    try:
        arrays, _ = strategy.aggregate_train(1, answers)
    except RoundFailedError:
        return False
    assert arrays is not None
    assert all(np.isfinite(array.numpy()).all() for array in arrays.values())
    return True


def _honest(nonce: str) -> RecordDict:
    sent = payload_array(parse_quantizer("none").encode(_UPDATE, torch.Generator()))
    statistics = Array("float32", (3,), "fl_sim.raw", bytes(12))
    return RecordDict(
        {
            "arrays": ArrayRecord({"payload": sent, "bn.running_mean": statistics}),
            "metrics": MetricRecord({"num-examples": 3, "loss": 0.5}),
            "facts": ConfigRecord({"nonce": nonce, "partition-id": 0}),
            "changes": ConfigRecord({"quantized": list(range(len(LAYOUT.segments))), "same": []}),
        }
    )


def observations(data: bytes) -> bool:
    """Read an observation file."""
    return _read(data, load_observations, _OBSERVATIONS)


def reconstructions(data: bytes) -> bool:
    """Read a reconstruction file."""
    return _read(data, load_reconstructions, _RECONSTRUCTIONS)


def _read(data: bytes, load: Callable[[Path], object], valid: "_File") -> bool:
    """Read a file; the first byte says how it is made of the others.

    It is a valid file with values exchanged, or they are its header (JSON, followed by as many
    bytes as it declares, at most 64 KiB: those of the valid file, then zeros), or they are all.
    """
    mode, rest = data[:1], data[1:]
    if mode and mode[0] % 3 == 0:
        rest = valid.spoiled(_Draw(rest))
    if mode and mode[0] % 3 != 2:
        size = _declared(rest)
        rest = struct.pack("<Q", len(rest)) + rest + (valid.content + bytes(size))[:size]
    _SCRATCH.write_bytes(rest)
    try:
        load(_SCRATCH)
    except StoreError:
        return False
    return True


@dataclass
class _File:
    """A safetensors file: types and shapes of its tensors, its facts, and the tensors' bytes."""

    tensors: dict[str, tuple[str, tuple[int, ...]]]
    facts: dict[str, object]
    content: bytes = b""

    def header(self) -> bytes:
        entries: dict[str, object] = {"__metadata__": {"facts": json.dumps(self.facts)}}
        at = 0
        for name, (dtype, shape) in self.tensors.items():
            end = at + _WIDTHS[dtype] * prod(shape)
            entries[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [at, end]}
            at = end
        return json.dumps(entries).encode()

    def spoiled(self, draw: "_Draw") -> bytes:
        """Return the header with up to three values, types or shapes exchanged."""
        spoiled = _File(dict(self.tensors), json.loads(json.dumps(self.facts)), self.content)
        for _ in range(draw.number(4)):
            if draw.number(3) == 0:
                names = [*self.tensors, "payload.-1", "payload.x", "images.1"]
                dtype = tuple(_WIDTHS)[draw.number(len(_WIDTHS))]
                shape = tuple(draw.number(9) for _ in range(draw.number(6)))
                spoiled.tensors[names[draw.number(len(names))]] = (dtype, shape)
            else:
                _exchange(spoiled.facts, draw)
        return spoiled.header()


_WIDTHS = {"F32": 4, "U8": 1, "I64": 8, "BF16": 2, "F16": 2, "F64": 8, "BOOL": 1, "F8_E5M2": 1}
_ODD = (None, True, -1, 0, 1e308, 10**30, "", "mlp", "resnet18", [], {}, [[1]], 2**40, 4096, 0.5)


def _exchange(tree: dict[str, object] | list[object], draw: "_Draw") -> None:
    """Exchange one value of a tree for an odd one, or lose it."""
    keys = list(tree) if isinstance(tree, dict) else list(range(len(tree)))
    if not keys:
        return
    key = keys[draw.number(len(keys))]
    inner = tree[key]  # type: ignore[index]
    if isinstance(inner, dict | list) and draw.number(4):
        _exchange(inner, draw)
    elif draw.number(8) == 0:
        del tree[key]  # type: ignore[arg-type]
    else:
        odd = (*_ODD, draw.integer(), draw.text())
        tree[key] = deepcopy(odd[draw.number(len(odd))])  # type: ignore[index]


def _declared(header: bytes) -> int:
    try:
        entries = json.loads(header).values()
        ends = [entry["data_offsets"][1] for entry in entries if "data_offsets" in entry]
        return max(0, min(1 << 16, max(ends, default=0)))
    except (ValueError, AttributeError, KeyError, TypeError, IndexError, RecursionError):
        return 0


TARGETS: dict[str, Target] = {
    "payload": payload,
    "replies": replies,
    "observations": observations,
    "reconstructions": reconstructions,
}


def seeds(target: str) -> Iterator[bytes]:
    """Yield valid inputs of a target, from which a fuzzer starts."""
    if target == "payload":
        for number, spec in enumerate(SPECS):
            encoded = parse_quantizer(spec).encode(_UPDATE, torch.Generator().manual_seed(0))
            yield bytes((number, 3)) + encoded.body
            yield bytes((0, 0)) + encoded.to_bytes()
            yield bytes((0, 1)) + spec.encode() + b"\n" + encoded.body
    elif target == "replies":
        yield from (bytes([n]) * 200 for n in range(8))
    elif target == "observations":
        yield b"\1" + _OBSERVATIONS.header()
        yield from (bytes([0, n, 0]) * 40 for n in range(8))
    else:
        yield b"\1" + _RECONSTRUCTIONS.header()
        yield from (bytes([0, n, 0]) * 40 for n in range(8))


_SMALLEST = layout_of_model(ModelSpec("lenet", (1, 1, 1), 3))
_SENT = parse_quantizer("sign").encode(
    Update(torch.ones(_SMALLEST.size), _SMALLEST), torch.Generator()
)
_OBSERVATIONS = _File(
    {
        "weights": ("F32", (_SMALLEST.size,)),
        "payload.0": ("U8", (_SENT.nbytes,)),
        "payload.7": ("U8", (_SENT.nbytes,)),
    },
    {
        "format": 1,
        "trial": "sign_seed-0",
        "round": 1,
        "server": "curious",
        "model": {"name": "lenet", "shape": [1, 1, 1], "classes": 3},
        "work": {
            "kind": "delta",
            "batch_size": 1,
            "learning_rate": 0.1,
            "local_steps": 1,
            "local_batches": 1,
            "fixed_batch": False,
        },
    },
    bytes(4 * _SMALLEST.size) + 2 * _SENT.to_bytes(),
)
_RECONSTRUCTIONS = _File(
    {
        "images.0": ("F32", (1, 1, 2, 2)),
        "labels.0": ("I64", (1,)),
        "others.0": ("F32", (1, 1, 1, 2, 2)),
    },
    {
        "format": 2,
        "key": "k",
        "reconstructions": [
            {
                "trial": "t",
                "round": 1,
                "partition": 0,
                "attack": "cell",
                "loss": 0.5,
                "status": "stalled",
                "objective": "cell",
                "evaluations": 3,
                "evidence": [0.5],
            }
        ],
    },
)
