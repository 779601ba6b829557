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


def read_instruction(message: Message) -> tuple[Trial, int, Tensor]:
    """Return trial, round and weights of a train instruction."""
    config = message.content.config_records["config"]
    trial = Trial.from_json(str(config["trial"]))
    weights = weights_of(message.content.array_records["arrays"])
    return trial, int(config["server-round"]), weights  # type: ignore[arg-type]


def update_reply(vector: Tensor, examples: int, instruction: Message) -> Message:
    """Return a client's reply with its update as computed; only the quantizing mod sees it."""
    return _reply("update", vector.numpy(), _VECTOR_TYPE, examples, instruction)


def read_update(reply: Message, layout: Layout) -> tuple[Update, int]:
    """Return the update and number of examples of an `update_reply`."""
    vector = _vector(reply.content.array_records["arrays"]["update"])
    return Update(vector, layout), examples_of(reply)


def payload_reply(payload: Payload, examples: int, instruction: Message) -> Message:
    """Return a client's reply with nothing but the packed payload: what crosses the wire."""
    raw = torch.frombuffer(bytearray(payload.to_bytes()), dtype=torch.uint8).numpy()
    return _reply("payload", raw, _PAYLOAD_TYPE, examples, instruction)


def read_payload(reply: Message, layout: Layout) -> Payload:
    """Return the payload of a `payload_reply`.

    Raises
    ------
    PayloadError
        If the record is not laid out as one packed payload, or its bytes do not parse.
    """
    records = reply.content.array_records
    array = records["arrays"].get("payload") if "arrays" in records else None
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
    records = reply.content.metric_records
    count: Any = records["metrics"].get("num-examples") if "metrics" in records else None
    if not isinstance(count, int) or count < 1:
        raise PayloadError(f"The reply claims {count!r} examples.")
    return count


def _reply(name: str, data: Any, stype: str, examples: int, instruction: Message) -> Message:
    content = RecordDict(
        {
            "arrays": ArrayRecord({name: _array(data, stype)}),
            "metrics": MetricRecord({"num-examples": examples}),
        }
    )
    return Message(content, reply_to=instruction)


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
