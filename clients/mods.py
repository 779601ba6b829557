"""Flower mods that encode the update of a client to one packed payload."""

import torch
from flwr.app import Array, ArrayRecord, Context, Message
from flwr.clientapp.typing import ClientAppCallable
from torch import Tensor

from fl_sim.coding.payload import Payload
from fl_sim.exchange.messages import (
    add_reply_facts,
    is_train,
    pack_reply,
    read_round,
    read_statistics,
    read_task,
    read_update,
)
from fl_sim.exchange.weight_records import layout_of, only_arrays, pack_changes, weight_change
from fl_sim.quantizers import parse_quantizer
from fl_sim.seeding import Purpose, torch_rng
from fl_sim.study.trials import Trial, trial_name
from fl_sim.updates.local_update import Layout, Update, flat_model

_RESIDUAL = "fl_sim.residual"


class Quantize:
    """Mod for any app whose clients reply with weights: ``ClientApp(mods=[Quantize("sign")])``.

    The floating-point weights that the client changed are encoded to one payload; of tied weights,
    only one is. BatchNorm's running statistics and arrays of other types are **not** quantized and
    are sent as they are. Unchanged arrays are not sent; the server keeps them bit-identical.

    Wrap the server's strategy in `server.Dequantize` or `server.HonestButCurious`. Mods that must
    see weights, such as those of differential privacy, come after this one in the list.

    Parameters
    ----------
    spec : str
        Quantizer, e.g. ``stochastic:bits=4``.
    seed : int
        Seed of randomized quantizers; seed, round and partition determine every draw.

    Raises
    ------
    ValueError
        If there is no such quantizer.

    Examples
    --------
    >>> from flwr.clientapp import ClientApp
    >>> from clients import Quantize
    >>> app = ClientApp(mods=[Quantize("stochastic:bits=4")])
    """

    def __init__(self, spec: str, seed: int = 0) -> None:
        self.spec = parse_quantizer(spec).spec
        self.seed = seed

    def __call__(self, message: Message, context: Context, call_next: ClientAppCallable) -> Message:
        """Encode the weights of a reply to a train message; pass all other messages on."""
        reply = call_next(message, context)
        if not is_train(message) or reply.has_error():
            return reply
        update, changes = weight_change(message, reply)
        whole = layout_of(only_arrays(message.content)[1])
        payload = _transmit(self.spec, self.seed, update, whole, read_round(message), context)
        pack_changes(message, reply, payload, changes)
        return add_reply_facts(reply, message, _partition(context))


def quantize_trial_mod(message: Message, context: Context, call_next: ClientAppCallable) -> Message:
    """Encode the update of the reply with the quantizer of the trial in the message."""
    reply = call_next(message, context)
    trial, server_round = read_task(message)
    update = read_update(reply, flat_model(trial.model_spec).layout)
    payload = _transmit(trial.quantizer, trial.seed, update, update.layout, server_round, context)
    statistics = _statistics_payload(trial, reply, server_round, _partition(context))
    packed = pack_reply(reply, payload, statistics)
    return add_reply_facts(packed, message, _partition(context))


def _statistics_payload(
    trial: Trial, reply: Message, server_round: int, partition: int
) -> Payload | None:
    """Encode the change of the running statistics, if there are any; it leaves no residual."""
    layout, change = flat_model(trial.model_spec).statistics, read_statistics(reply)
    if not layout.size:
        return None
    quantizer = parse_quantizer(trial.statistics_quantizer)
    generator = torch_rng(trial.seed, Purpose.QUANTIZER, server_round, partition, 1)
    return quantizer.encode(Update(change, layout), generator)


def _transmit(
    spec: str, seed: int, update: Update, whole: Layout, server_round: int, context: Context
) -> Payload:
    """Encode an update of some tensors of a ``whole`` model.

    The residual of error feedback is stored in ``context.state`` under the name of its trial, and
    deleted when another trial begins. A tensor that is not sent keeps its residual.
    """
    trial = trial_name(spec, seed)
    generator = torch_rng(seed, Purpose.QUANTIZER, server_round, _partition(context))
    owed = _load_residual(context, trial)
    residual = None if owed is None else update.layout.flatten(whole.unflatten(owed))
    payload, left = parse_quantizer(spec).transmit(update, residual, generator)
    if left is not None:
        waiting = whole.unflatten(torch.zeros(whole.size) if owed is None else owed)
        left = whole.flatten(waiting | update.layout.unflatten(left))
    _save_residual(context, trial, left)
    return payload


def _partition(context: Context) -> int:
    """Return the partition of a node; its node id, if it was given none."""
    return int(context.node_config.get("partition-id", context.node_id))


def _load_residual(context: Context, trial: str) -> Tensor | None:
    record = context.state.get(_RESIDUAL)
    if not isinstance(record, ArrayRecord) or trial not in record:
        return None
    return torch.tensor(record[trial].numpy())


def _save_residual(context: Context, trial: str, residual: Tensor | None) -> None:
    if residual is not None:
        context.state[_RESIDUAL] = ArrayRecord({trial: Array(residual.numpy())})
    elif _RESIDUAL in context.state:
        del context.state[_RESIDUAL]
