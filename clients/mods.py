"""The Flower mod that turns the update in a client's reply into one packed payload."""

import torch
from flwr.app import Array, ArrayRecord, Context, Message
from flwr.clientapp.typing import ClientAppCallable
from torch import Tensor

from fl_sim.messages import pack_reply, read_task, read_update
from fl_sim.quantizers import parse_quantizer
from fl_sim.seeding import Purpose, torch_rng
from fl_sim.updates import flat_model

_RESIDUAL = "fl_sim.residual"


def quantize_mod(message: Message, context: Context, call_next: ClientAppCallable) -> Message:
    """Encode the update of the reply with the trial's quantizer.

    The residual of error feedback lives in ``context.state``, under the name of its trial, and is
    forgotten when another trial begins.
    """
    reply = call_next(message, context)
    trial, server_round = read_task(message)
    update = read_update(reply, flat_model(trial.model_spec).layout)
    partition = int(context.node_config["partition-id"])
    generator = torch_rng(trial.seed, Purpose.QUANTIZER, server_round, partition)
    residual = _load_residual(context, trial.name)
    payload, residual = parse_quantizer(trial.quantizer).transmit(update, residual, generator)
    _save_residual(context, trial.name, residual)
    return pack_reply(reply, payload)


def _load_residual(context: Context, trial: str) -> Tensor | None:
    record = context.state.array_records.get(_RESIDUAL)
    return None if record is None or trial not in record else torch.tensor(record[trial].numpy())


def _save_residual(context: Context, trial: str, residual: Tensor | None) -> None:
    if residual is not None:
        context.state[_RESIDUAL] = ArrayRecord({trial: Array(residual.numpy())})
    elif _RESIDUAL in context.state:
        del context.state[_RESIDUAL]
