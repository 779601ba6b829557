"""Named weights of anybody's Flower app as one flat vector, and back: what a mod can quantize."""

from math import prod
from typing import Any

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, Message, RecordDict
from torch import Tensor

from fl_sim.messages import PAYLOAD, payload_array
from fl_sim.quantizers.payload import Payload, PayloadError
from fl_sim.updates import Layout, Segment, Update

_RAW_TYPE = "fl_sim.raw"
_BUFFERS = ("running_mean", "running_var", "num_batches_tracked")
_DTYPES = ("float16", "float32", "float64", "int32", "int64", "uint8", "bool")


def layout_of(arrays: ArrayRecord) -> Layout:
    """Return the layout of what is trained: floating-point arrays, less BatchNorm's statistics."""
    trained = [(name, array) for name, array in arrays.items() if _is_trained(name, array)]
    return Layout(tuple(Segment(name, tuple(array.shape)) for name, array in trained))


def flatten(arrays: ArrayRecord, layout: Layout) -> Tensor:
    """Return the ``(layout.size,)`` float32 vector of the arrays of ``layout``.

    Raises
    ------
    ValueError
        If an array is missing, or of another shape.
    """
    for name, shape in layout.segments:
        if name not in arrays or tuple(arrays[name].shape) != shape:
            raise ValueError(f"An array {name!r} of shape {shape} is expected, as it was sent.")
    parts = [torch.from_numpy(arrays[name].numpy()).float() for name, _ in layout.segments]
    return torch.cat([torch.zeros(0), *(part.reshape(-1) for part in parts)])


def weight_change(instruction: Message, reply: Message) -> Update:
    """Return what a client did to the weights it was given, as *old minus new*."""
    _, given = only_arrays(instruction.content)
    _, trained = only_arrays(reply.content)
    layout = layout_of(given)
    return Update(flatten(given, layout) - flatten(trained, layout), layout)


def pack_weights(reply: Message, payload: Payload) -> Message:
    """Put a payload in the place of the trained weights of a reply; other arrays go as they are."""
    key, arrays = only_arrays(reply.content)
    names = {segment.name for segment in payload.layout.segments}
    others = {name: _raw(array) for name, array in arrays.items() if name not in names}
    reply.content[key] = ArrayRecord({PAYLOAD: payload_array(payload), **others})
    return reply


def unpack_weights(reply: Message, given: ArrayRecord, delta: Update) -> RecordDict:
    """Return the content of a reply as the client's app made it: its weights, named.

    Parameters
    ----------
    reply : Message
        As `pack_weights` made it.
    given : ArrayRecord
        The weights the client was given.
    delta : Update
        The decoded payload, *old minus new*.

    Raises
    ------
    PayloadError
        If the arrays that are not quantized are not those of ``given``, or not finite.
    """
    key, arrays = only_arrays(reply.content)
    changes = delta.layout.unflatten(delta.vector)
    if set(arrays) != {PAYLOAD} | (set(given) - set(changes)):
        raise PayloadError("its arrays are not those of the model")
    weights = {}
    for name, array in given.items():
        if name in changes:
            old = array.numpy()
            weights[name] = (old - changes[name].numpy()).astype(old.dtype)
        else:
            weights[name] = _from_raw(name, arrays[name], tuple(array.shape))
    records = {k: r for k, r in reply.content.items() if k in reply.content.metric_records}
    return RecordDict({key: ArrayRecord({n: Array(a) for n, a in weights.items()}), **records})


def only_arrays(content: RecordDict) -> tuple[str, ArrayRecord]:
    """Return name and record of the one ArrayRecord of a message; raise `PayloadError` else."""
    records = list(content.array_records.items())
    if len(records) != 1:
        raise PayloadError(f"one record of arrays is expected, not {len(records)}")
    return records[0]


def _is_trained(name: str, array: Array) -> bool:
    return array.dtype.startswith("float") and name.rpartition(".")[2] not in _BUFFERS


def _raw(array: Array) -> Array:
    values = array.numpy()
    return Array(str(values.dtype), tuple(values.shape), _RAW_TYPE, values.tobytes())


def _from_raw(name: str, array: Array, shape: tuple[int, ...]) -> np.ndarray[tuple[int, ...], Any]:
    """Read an array without trusting the lengths it declares."""
    if array.stype != _RAW_TYPE or array.dtype not in _DTYPES or tuple(array.shape) != shape:
        raise PayloadError(f"array {name!r} is not of the model's shape and a plain type")
    dtype = np.dtype(array.dtype)
    if len(array.data) != prod(shape) * dtype.itemsize:
        raise PayloadError(f"array {name!r} does not have the bytes it declares")
    values = np.frombuffer(array.data, dtype).reshape(shape)
    if not np.isfinite(values).all():
        raise PayloadError(f"array {name!r} is not finite")
    return values
