"""The client's side of secure aggregation: Flower's mod masks what the update decodes to."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import numpy as np
from flwr.app import Context, Message
from flwr.client.mod import secaggplus_mod
from flwr.clientapp.typing import ClientAppCallable

from fl_sim.exchange.messages import is_train, read_payload, read_task
from fl_sim.exchange.secure import is_protocol, to_be_masked
from fl_sim.quantizers import parse_quantizer
from fl_sim.seeding import Purpose, numpy_rng
from fl_sim.updates.local_update import flat_model


def secure_sum_mod(message: Message, context: Context, call_next: ClientAppCallable) -> Message:
    """Take part in SecAgg+ where the study of a trial says so, and only then.

    It comes before the mod that quantizes. The payload is decoded, and Flower's mod masks the
    values: no server that follows the protocol sees more than a sum.

    Raises
    ------
    ValueError
        If the server asks for the update itself, although the study says that it sees sums.
    """
    if is_protocol(message):
        with _global_random_state():
            return secaggplus_mod(message, context, partial(_values, call_next))
    if is_train(message) and read_task(message)[0].aggregation is not None:
        raise ValueError("the study aggregates securely, but the server asks for an update itself")
    return call_next(message, context)


def _values(call_next: ClientAppCallable, message: Message, context: Context) -> Message:
    """Return the reply of a client with decoded values in place of its payload."""
    reply = call_next(message, context)
    trial, server_round = read_task(message)
    plan = trial.aggregation
    if reply.has_error() or plan is None:
        reason = "the study does not aggregate securely" if plan is None else reply.error.reason
        raise RuntimeError(reason)
    layout = flat_model(trial.model_spec).layout
    update = parse_quantizer(trial.quantizer).decode(read_payload(reply, layout))
    partition = int(context.node_config["partition-id"])
    draw = numpy_rng(trial.seed, Purpose.SECURE_SUM, server_round, partition)
    np.random.seed(int(draw.integers(1 << 32)))  # Flower rounds at random by this generator
    return to_be_masked(reply, update.vector, plan)


@contextmanager
def _global_random_state() -> Iterator[None]:
    state = np.random.get_state()
    try:
        yield
    finally:
        np.random.set_state(state)
