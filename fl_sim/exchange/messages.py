"""Updates and payloads as Flower records; no other module knows their layout."""

import secrets
import sys

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

from fl_sim.coding.payload import Payload, PayloadError
from fl_sim.study.trials import Trial
from fl_sim.updates.local_update import Layout, Update

PAYLOAD, PAYLOAD_TYPE = "payload", "fl_sim.payload"
EXAMPLES = "num-examples"
_VECTOR_TYPE = "fl_sim.float32"
_STATISTICS = "statistics"
_NONCE, _PARTITION, _FACTS = "nonce", "partition-id", "facts"


def pack_weights(weights: Tensor, statistics: Tensor | None = None) -> ArrayRecord:
    """Return flat ``(size,)`` weights, and running statistics if there are any, as a record."""
    record = _record("weights", _array(weights))
    if statistics is not None and statistics.numel():
        record[_STATISTICS] = _array(statistics)
    return record


def unpack_weights(arrays: ArrayRecord) -> Tensor:
    """Return the flat ``(size,)`` float32 weights that `pack_weights` wrapped."""
    return _vector(arrays["weights"])


def unpack_statistics(arrays: ArrayRecord) -> Tensor:
    """Return the flat running statistics that `pack_weights` wrapped; empty if there are none."""
    return _vector(arrays[_STATISTICS]) if _STATISTICS in arrays else torch.zeros(0)


def is_flat(arrays: ArrayRecord) -> bool:
    """Return whether weights are flat vectors, as in a study, and not the arrays of an app."""
    return {array.stype for array in arrays.values()} == {_VECTOR_TYPE}


def train_config(trial: Trial) -> ConfigRecord:
    """Return the config that tells a client its trial; the strategy adds ``server-round``."""
    return ConfigRecord({"trial": trial.to_json()})


def train_instruction(node_id: int, arrays: ArrayRecord, config: ConfigRecord) -> Message:
    """Return the message that asks one node for its update of this round."""
    return Message(RecordDict({"arrays": arrays, "config": config}), node_id, MessageType.TRAIN)


def set_nonce(config: ConfigRecord) -> str:
    """Put a fresh nonce in the config of a round; replies to that round repeat it."""
    config[_NONCE] = nonce = secrets.token_hex(8)
    return nonce


def is_train(message: Message) -> bool:
    """Return whether a message asks for training."""
    return message.metadata.message_type.split(".")[0] == MessageType.TRAIN


def read_task(message: Message) -> tuple[Trial, int]:
    """Return trial and round of a train instruction."""
    return Trial.from_json(str(_config(message)["trial"])), read_round(message)


def read_round(message: Message) -> int:
    """Return the round of a train instruction."""
    return int(_config(message)["server-round"])  # type: ignore[arg-type]


def _config(instruction: Message) -> ConfigRecord:
    """Return the config of an instruction, under any record name."""
    for record in instruction.content.values():  # Flower's views by type are copies
        if isinstance(record, ConfigRecord) and _NONCE in record:
            return record
    raise ValueError(
        "The server does not expect payloads; wrap its strategy in Dequantize or HonestButCurious."
    )


def read_weights(message: Message) -> Tensor:
    """Return the ``(size,)`` weights of a train instruction."""
    return unpack_weights(message.content["arrays"])  # type: ignore[arg-type]


def read_statistics(message: Message) -> Tensor:
    """Return the running statistics of a train instruction, or their change in an `update_reply`.

    Empty if there are none.
    """
    return unpack_statistics(message.content["arrays"])  # type: ignore[arg-type]


def update_reply(
    vector: Tensor, examples: int, instruction: Message, statistics: Tensor | None = None
) -> Message:
    """Return a client's reply with its update as computed; only the quantizing mod sees it.

    ``statistics`` is the change of the running statistics, if there are any.
    """
    arrays = _record("update", _array(vector))
    if statistics is not None and statistics.numel():
        arrays[_STATISTICS] = _array(statistics)
    content: dict[str, ArrayRecord | MetricRecord | ConfigRecord] = {
        "arrays": arrays,
        "metrics": MetricRecord({EXAMPLES: examples}),
    }
    return Message(RecordDict(content), reply_to=instruction)


def read_update(reply: Message, layout: Layout) -> Update:
    """Return the update of an `update_reply`."""
    return Update(_vector(reply.content["arrays"]["update"]), layout)  # type: ignore[arg-type]


def pack_reply(reply: Message, payload: Payload, statistics: Payload | None = None) -> Message:
    """Replace the update of a reply by its packed payload, which then crosses the wire.

    ``statistics`` is the payload of the change of the running statistics, if there are any.
    """
    arrays = _record(PAYLOAD, payload_array(payload))
    if statistics is not None:
        arrays[_STATISTICS] = payload_array(statistics)
    reply.content["arrays"] = arrays
    return reply


def payload_array(payload: Payload) -> Array:
    """Return a payload as an array of the bytes that are sent."""
    raw = payload.to_bytes()
    return Array("uint8", (len(raw),), PAYLOAD_TYPE, raw)


def add_reply_facts(reply: Message, instruction: Message, partition: int) -> Message:
    """Add to a reply the nonce of the round it answers and the partition it comes from."""
    facts = {_NONCE: str(_config(instruction)[_NONCE]), _PARTITION: partition}
    reply.content[_FACTS] = ConfigRecord(facts)  # type: ignore[arg-type]
    return reply


def nonce_of(reply: Message) -> str | None:
    """Return the nonce a reply repeats, if any."""
    value = _facts(reply).get(_NONCE)
    return value if isinstance(value, str) else None


def partition_of(reply: Message) -> int | None:
    """Return the partition that a reply claims, if it is a number >= 0."""
    value = _facts(reply).get(_PARTITION)
    return value if type(value) is int and value >= 0 else None  # True is an int as well


def _facts(reply: Message) -> ConfigRecord:
    record = reply.content.get(_FACTS) if reply.has_content() else None
    return record if isinstance(record, ConfigRecord) else ConfigRecord()


def read_payload(reply: Message, layout: Layout) -> Payload:
    """Return the payload of a reply made by `pack_reply`.

    Raises
    ------
    PayloadError
        If the record is not laid out as one packed payload, or its bytes do not parse.
    """
    arrays = [
        record[PAYLOAD]
        for record in reply.content.values()
        if isinstance(record, ArrayRecord) and PAYLOAD in record
    ]
    array = arrays[0] if len(arrays) == 1 else None
    if array is None or array.stype != PAYLOAD_TYPE:
        raise PayloadError("The reply carries no packed payload.")
    return Payload.from_bytes(array.data, layout)


def read_statistics_payload(reply: Message, layout: Layout) -> Payload:
    """Return the payload of the running statistics of a reply made by `pack_reply`.

    Raises
    ------
    PayloadError
        If there is none, or its bytes do not parse.
    """
    record = reply.content.get("arrays")
    array = record.get(_STATISTICS) if isinstance(record, ArrayRecord) else None
    if array is None or array.stype != PAYLOAD_TYPE:
        raise PayloadError("The reply carries no payload of the running statistics.")
    return Payload.from_bytes(array.data, layout)


def weight_of(reply: Message, key: str = EXAMPLES) -> float:
    """Return the weight in averages that a reply claims: metric ``key`` of its only record.

    Raises
    ------
    PayloadError
        If it is missing or not positive, or if a number of examples is not an integer.
    """
    records = list(reply.content.metric_records.values())
    weight = records[0].get(key) if len(records) == 1 else None
    kinds = (int,) if key == EXAMPLES else (int, float)
    if type(weight) not in kinds or not 0 < weight <= sys.maxsize:  # type: ignore[operator]
        what = "examples" if key == EXAMPLES else f"as {key!r}"
        raise PayloadError(f"The reply claims {weight!r} {what}.")
    return weight  # type: ignore[return-value]


def partition_query(node_id: int) -> Message:
    """Return the message that asks a node which partition it holds."""
    return Message(RecordDict(), node_id, MessageType.QUERY)


def partition_reply(partition: int, query: Message) -> Message:
    """Answer a `partition_query`."""
    facts = ConfigRecord({_PARTITION: partition})
    return Message(RecordDict({_FACTS: facts}), reply_to=query)


def read_partition(reply: Message) -> int:
    """Return the partition in a `partition_reply`."""
    return int(reply.content.config_records[_FACTS][_PARTITION])  # type: ignore[arg-type]


def _record(name: str, array: Array) -> ArrayRecord:
    record = ArrayRecord()
    record[name] = array  # the constructor would copy every array
    return record


def _array(vector: Tensor) -> Array:
    """Wrap raw float32 bytes; Flower's own serialization would parse a header every time."""
    return Array("float32", tuple(vector.shape), _VECTOR_TYPE, vector.numpy().tobytes())


def _vector(array: Array) -> Tensor:
    return torch.frombuffer(bytearray(array.data), dtype=torch.float32)
