"""Convert the named weights of any Flower app to a flat vector, to be quantized, and back."""

from collections.abc import Iterable
from dataclasses import dataclass
from hashlib import sha256
from math import prod
from typing import Any

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict
from torch import Tensor

from fl_sim.coding.payload import Payload, PayloadError
from fl_sim.exchange.messages import PAYLOAD, payload_array
from fl_sim.updates.local_update import Layout, Segment, Update

_RAW_TYPE = "fl_sim.raw"
_CHANGES, _QUANTIZED, _SAME = "changes", "quantized", "same"
_STATISTICS = ("running_mean", "running_var", "num_batches_tracked")
_DTYPES = ("float16", "float32", "float64", "int32", "int64", "uint8", "bool")
_Values = np.ndarray[tuple[int, ...], Any]


@dataclass(frozen=True)
class Changes:
    """How the arrays that a client changed are sent; unchanged arrays are not sent.

    Attributes
    ----------
    quantized : Layout
        Floating-point arrays, which the payload holds.
    same : dict[str, str]
        Tied arrays: maps the name of each to the name of the array that is sent for it.
    exact : tuple[str, ...]
        BatchNorm's statistics and arrays of other types, which are sent as they are.
    statistics : Update or None
        Change of BatchNorm's running means and variances, *old minus new*, layer by layer; None if
        none changed, or where it was not read.
    """

    quantized: Layout
    same: dict[str, str]
    exact: tuple[str, ...]
    statistics: Update | None = None


def layout_of(arrays: ArrayRecord) -> Layout:
    """Return the layout of what can be quantized: floating-point arrays except statistics."""
    return _layout(arrays, [name for name, array in arrays.items() if _is_quantized(name, array)])


def floats_of(arrays: ArrayRecord) -> Layout:
    """Return the layout of all floating-point arrays, statistics included."""
    return _layout(arrays, [n for n, array in arrays.items() if array.dtype.startswith("float")])


def flatten(arrays: ArrayRecord, layout: Layout) -> Tensor:
    """Return the ``(layout.size,)`` float32 vector of the arrays of ``layout``.

    Raises
    ------
    ValueError
        If an array is missing, or of another shape.
    """
    for name, shape in layout.segments:
        _check_shape(arrays, name, shape)
    parts = [torch.from_numpy(arrays[name].numpy()).float() for name, _ in layout.segments]
    return torch.cat([torch.zeros(0), *(part.reshape(-1) for part in parts)])


def with_floats(arrays: ArrayRecord, layout: Layout, vector: Tensor) -> ArrayRecord:
    """Replace the arrays of ``layout`` by the values of a flat vector; types stay the same."""
    new = {
        name: Array(np.asarray(tensor.numpy(), arrays[name].numpy().dtype))
        for name, tensor in layout.unflatten(vector).items()
    }
    return ArrayRecord({name: new.get(name, array) for name, array in arrays.items()})


def weight_change(instruction: Message, reply: Message) -> tuple[Update, Changes]:
    """Return the change of the weights by a client, *old minus new*, and which arrays changed.

    Arrays that are bit-identical to each other, before and after, are tied: they are sent once.
    """
    _, sent_weights = only_arrays(instruction.content)
    _, trained = only_arrays(reply.content)
    quantized, exact = list[str](), list[str]()
    same, seen = dict[str, str](), dict[tuple[object, ...], str]()
    for name, array in sent_weights.items():
        _check_shape(trained, name, tuple(array.shape))
        old, new = _identity(array), _identity(trained[name])
        if old == new:
            continue
        first = seen.setdefault((*old, *new), name)
        if first != name:
            same[name] = first
        else:
            (quantized if _is_quantized(name, array) else exact).append(name)
    layout = _layout(sent_weights, quantized)
    change = flatten(sent_weights, layout) - flatten(trained, layout)
    return Update(change, layout), Changes(layout, same, tuple(exact))


def pack_changes(
    instruction: Message, reply: Message, payload: Payload, changes: Changes
) -> Message:
    """Replace the trained weights of a reply by a payload and the names of what changed."""
    key, arrays = only_arrays(reply.content)
    place = {name: index for index, name in enumerate(only_arrays(instruction.content)[1])}
    exact = {name: _raw(arrays[name]) for name in changes.exact}
    reply.content[key] = ArrayRecord({PAYLOAD: payload_array(payload), **exact})
    reply.content[_CHANGES] = ConfigRecord(
        {
            _QUANTIZED: [place[name] for name, _ in changes.quantized.segments],
            _SAME: [place[name] for pair in changes.same.items() for name in pair],
        }
    )
    return reply


def read_changes(reply: Message, sent_weights: ArrayRecord) -> Changes:
    """Return which arrays of ``sent_weights`` the client changed, as its reply says.

    Raises
    ------
    PayloadError
        If the reply does not say it, or names arrays that ``sent_weights`` lacks.
    """
    _, arrays = only_arrays(reply.content)
    names, exact = list(sent_weights), tuple(name for name in arrays if name != PAYLOAD)
    quantized = [names[index] for index in _places(reply, _QUANTIZED, len(names))]
    pairs = [names[index] for index in _places(reply, _SAME, len(names))]
    same = dict(zip(pairs[::2], pairs[1::2], strict=False))
    changed = [*quantized, *same, *exact]
    known = len(set(changed)) == len(changed) and set(changed) <= set(names)
    if not known or not all(_is_quantized(name, sent_weights[name]) for name in quantized):
        raise PayloadError("its arrays are not those of the model")
    if any(_is_quantized(name, sent_weights[name]) for name in exact):
        raise PayloadError("its arrays are not those of the model: one is not quantized")
    sent = {*quantized, *exact}
    alike = all(
        first in sent and _type(sent_weights[n]) == _type(sent_weights[first])
        for n, first in same.items()
    )
    if len(pairs) != 2 * len(same) or not alike:
        raise PayloadError("its tied arrays are not alike")
    statistics = _statistics(arrays, sent_weights, same, exact)
    return Changes(_layout(sent_weights, quantized), same, exact, statistics)


def is_statistic(name: str) -> bool:
    """Tell whether an array is one of BatchNorm's statistics, by its name."""
    return name.rpartition(".")[2] in _STATISTICS


def _statistics(
    arrays: ArrayRecord, sent: ArrayRecord, same: dict[str, str], exact: tuple[str, ...]
) -> Update | None:
    """Return the change of the running statistics of layers that a client changed."""
    # Not by the count of batches: FedAvg makes a float of it, and clients an integer again.
    kinds = tuple(f".{kind}" for kind in _STATISTICS[:2])
    moved = {name.rpartition(".")[0] for name in (*exact, *same) if name.endswith(kinds)}
    names = [n for n in sent if n.endswith(kinds) and n.rpartition(".")[0] in moved]
    if not names:
        return None
    layout, change = _layout(sent, names), []
    for name, shape in layout.segments:
        source = same.get(name, name)
        old = np.asarray(sent[name].numpy(), np.float32)
        new = _from_raw(source, arrays[source], shape) if source in exact else old
        change.append(torch.from_numpy(np.asarray(old - new, np.float32)).reshape(-1))
    return Update(torch.cat(change), layout)


def unpack_changes(
    reply: Message, sent_weights: ArrayRecord, changes: Changes, delta: Update
) -> RecordDict:
    """Return the content of a reply as the client's app made it, with named weights.

    Parameters
    ----------
    reply : Message
        As `pack_changes` made it.
    sent_weights : ArrayRecord
        The weights the client was sent; unchanged ones are returned bit-identical.
    changes : Changes
        Of `read_changes`.
    delta : Update
        The decoded payload, *old minus new*.

    Raises
    ------
    PayloadError
        If an array of the reply is not that of ``sent_weights``, or not finite in its type.
    """
    key, arrays = only_arrays(reply.content)
    moved = delta.layout.unflatten(delta.vector)
    new = {
        name: _from_raw(name, arrays[name], tuple(sent_weights[name].shape))
        for name in changes.exact
    }
    new |= {name: _moved(name, sent_weights[name], change) for name, change in moved.items()}
    new |= {name: new[first] for name, first in changes.same.items()}
    records = {k: r for k, r in reply.content.items() if k in reply.content.metric_records}
    weights = {
        name: Array(new[name]) if name in new else sent_weights[name] for name in sent_weights
    }
    return RecordDict({key: ArrayRecord(weights), **records})


def only_arrays(content: RecordDict) -> tuple[str, ArrayRecord]:
    """Return name and record of a message's only ArrayRecord; else raise `PayloadError`."""
    records = list(content.array_records.items())
    if len(records) != 1:
        raise PayloadError(f"one record of arrays is expected, not {len(records)}")
    return records[0]


def _layout(arrays: ArrayRecord, names: Iterable[str]) -> Layout:
    return Layout(tuple(Segment(name, tuple(arrays[name].shape)) for name in names))


def _is_quantized(name: str, array: Array) -> bool:
    return array.dtype.startswith("float") and name.rpartition(".")[2] not in _STATISTICS


def _type(array: Array) -> tuple[str, tuple[int, ...]]:
    return array.dtype, tuple(array.shape)


def _identity(array: Array) -> tuple[object, ...]:
    """Return a value that only bit-identical arrays share."""
    values = array.numpy()
    return str(values.dtype), values.shape, sha256(values.tobytes()).digest()


def _check_shape(arrays: ArrayRecord, name: str, shape: tuple[int, ...]) -> None:
    if name not in arrays or tuple(arrays[name].shape) != shape:
        raise ValueError(f"An array {name!r} of shape {shape} is expected, as it was sent.")


def _places(reply: Message, key: str, count: int) -> list[int]:
    record = reply.content.get(_CHANGES)
    places = record.get(key) if isinstance(record, ConfigRecord) else None
    if not isinstance(places, list):
        raise PayloadError("it does not say which arrays it changed")
    indices = [place for place in places if type(place) is int and 0 <= place < count]
    if len(indices) != len(places):
        raise PayloadError("it changed arrays that are not those of the model")
    return indices


def _moved(name: str, sent: Array, change: Tensor) -> _Values:
    old = sent.numpy()
    with np.errstate(over="ignore"):
        new = np.asarray(old - change.numpy(), old.dtype)
    if not np.isfinite(new).all():
        raise PayloadError(f"array {name!r} is not finite as {old.dtype}")
    return new


def _raw(array: Array) -> Array:
    values = array.numpy()
    return Array(str(values.dtype), tuple(values.shape), _RAW_TYPE, values.tobytes())


def _from_raw(name: str, array: Array, shape: tuple[int, ...]) -> _Values:
    """Read an array; check the lengths it declares first."""
    if array.stype != _RAW_TYPE or array.dtype not in _DTYPES or tuple(array.shape) != shape:
        raise PayloadError(f"array {name!r} is not of the model's shape and a plain type")
    dtype = np.dtype(array.dtype)
    if len(array.data) != prod(shape) * dtype.itemsize:
        raise PayloadError(f"array {name!r} does not have the bytes it declares")
    values = np.frombuffer(array.data, dtype).reshape(shape)
    if not np.isfinite(values).all():
        raise PayloadError(f"array {name!r} is not finite")
    return values
