"""Updates and payloads as Flower records: the only place that knows the record layout."""

from typing import Any

import torch
from flwr.app import (
    Array,
    ArrayRecord,
    ConfigRecord,
    Message,
    MessageType,
    MetricRecord,
    RecordDict,
)
from torch import Tensor

from fl_sim.quantizers.payload import Payload, PayloadError
from fl_sim.trials import Trial
from fl_sim.updates import Layout, Update

_PAYLOAD_TYPE = "fl_sim.payload"
_VECTOR_TYPE = "fl_sim.float32"


def arrays_of(weights: Tensor) -> ArrayRecord:
    """Wrap flat ``(size,)`` weights."""
    return ArrayRecord({"weights": _array(weights.numpy(), _VECTOR_TYPE)})


def weights_of(arrays: ArrayRecord) -> Tensor:
    """Return the flat ``(size,)`` float32 weights that `arrays_of` wrapped."""
    return _vector(arrays["weights"])


def train_config(trial: Trial) -> ConfigRecord:
    """Return what a client must be told of a trial; the strategy adds ``server-round``."""
    return ConfigRecord({"trial": trial.to_json()})


def train_instruction(node_id: int, arrays: ArrayRecord, config: ConfigRecord) -> Message:
    """Return the message that asks one node for its update of this round."""
    return Message(RecordDict({"arrays": arrays, "config": config}), node_id, MessageType.TRAIN)


def read_task(message: Message) -> tuple[Trial, int]:
    """Return trial and round of a train instruction."""
    config = message.content["config"]
    return Trial.from_json(str(config["trial"])), int(config["server-round"])  # type: ignore[arg-type]


def read_weights(message: Message) -> Tensor:
    """Return the ``(size,)`` weights of a train instruction."""
    return weights_of(message.content["arrays"])  # type: ignore[arg-type]


def update_reply(vector: Tensor, examples: int, instruction: Message) -> Message:
    """Return a client's reply with its update as computed; only the quantizing mod sees it."""
    content: dict[str, ArrayRecord | MetricRecord | ConfigRecord] = {
        "arrays": ArrayRecord({"update": _array(vector.numpy(), _VECTOR_TYPE)}),
        "metrics": MetricRecord({"num-examples": examples}),
    }
    return Message(RecordDict(content), reply_to=instruction)


def read_update(reply: Message, layout: Layout) -> Update:
    """Return the update of an `update_reply`."""
    return Update(_vector(reply.content["arrays"]["update"]), layout)  # type: ignore[arg-type]


def pack_reply(reply: Message, payload: Payload) -> Message:
    """Put a packed payload in the place of a reply's update: what then crosses the wire."""
    raw = payload.to_bytes()
    array = Array("uint8", (len(raw),), _PAYLOAD_TYPE, raw)
    reply.content["arrays"] = ArrayRecord({"payload": array})
    return reply


def read_payload(reply: Message, layout: Layout) -> Payload:
    """Return the payload of a reply made by `pack_reply`.

    Raises
    ------
    PayloadError
        If the record is not laid out as one packed payload, or its bytes do not parse.
    """
    record = reply.content.get("arrays")
    array = record.get("payload") if isinstance(record, ArrayRecord) else None
    if array is None or array.stype != _PAYLOAD_TYPE:
        raise PayloadError("The reply carries no packed payload.")
    return Payload.from_bytes(array.data, layout)


def examples_of(reply: Message) -> int:
    """Return the number of examples a reply claims.

    Raises
    ------
    PayloadError
        If it is missing or not a positive integer.
    """
    record = reply.content.get("metrics")
    count = record.get("num-examples") if isinstance(record, MetricRecord) else None
    if not isinstance(count, int) or count < 1:
        raise PayloadError(f"The reply claims {count!r} examples.")
    return count


def partition_query(node_id: int) -> Message:
    """Return the message that asks a node which partition it holds."""
    return Message(RecordDict(), node_id, MessageType.QUERY)


def partition_reply(partition: int, query: Message) -> Message:
    """Answer a `partition_query`."""
    return Message(RecordDict({"facts": ConfigRecord({"partition-id": partition})}), reply_to=query)


def read_partition(reply: Message) -> int:
    """Return the partition a node said it holds."""
    return int(reply.content.config_records["facts"]["partition-id"])  # type: ignore[arg-type]


def _array(data: Any, stype: str) -> Array:
    """Wrap a NumPy array's raw bytes: Flower's own serialization parses a header every time."""
    return Array(str(data.dtype), tuple(data.shape), stype, data.tobytes())


def _vector(array: Array) -> Tensor:
    return torch.frombuffer(bytearray(array.data), dtype=torch.float32)
