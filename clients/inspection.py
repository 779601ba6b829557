"""A Flower mod that inspects the model that a client is sent, before it trains it."""

import logging
from collections.abc import Callable, Mapping

import torch
from flwr.app import ArrayRecord, Context, Error, Message
from flwr.clientapp.typing import ClientAppCallable
from torch import Tensor, nn

from clients.signs import (
    LIMITS,
    sign_of_loss,
    signs_of_batch,
    signs_of_change,
    signs_of_weights,
    suspicion,
)
from fl_sim.exchange.messages import is_train
from fl_sim.exchange.weight_records import flatten, only_arrays
from fl_sim.models import spec_of_app
from fl_sim.updates.local_update import FlatModel, flat_model

log = logging.getLogger("fl_sim.clients")

_PREVIOUS = "fl_sim.inspected"
_DECLINED = 0  # Flower's ErrorCode.UNKNOWN: it has none for a client that declines

Batch = Callable[[Context], tuple[Tensor, Tensor]]


class Inspect:
    """Mod that looks for signs of a malicious server: ``ClientApp(mods=[Inspect(Net)])``.

    Before the client trains, the arrays that it was sent are compared with the model that it
    expects (names and shapes), and judged by the signs of `clients.signs`: of the weights, of their
    change since the previous round, and of the gradients and loss of a batch of its own. What is
    suspicious is logged as a warning that names the signs. If it is told to, the client declines
    the round: it replies with a Flower error, which the server counts among the failed clients, and
    sends nothing about its images.

    An honest server is suspected now and then, and an attacker who knows the limits can stay below
    them at a price; ``python -m benchmarks.inspection`` measures both.

    Parameters
    ----------
    model : callable
        Builds the model that the client expects.
    batch : callable, optional
        Returns images ``(n, C, H, W)`` in [0, 1] and labels ``(n,)`` of the client, at least four,
        given the context; without it, only weights are judged.
    decline : bool
        Whether to decline a suspicious round.
    limits : mapping, optional
        Limits of signs, instead of some of `clients.signs.LIMITS`.

    Raises
    ------
    ValueError
        If there is no such sign, or a limit is not positive.

    Examples
    --------
    >>> from flwr.clientapp import ClientApp
    >>> from torch import nn
    >>> from clients import Inspect
    >>> def build():
    ...     return nn.Sequential(nn.Flatten(), nn.Linear(64, 99), nn.ReLU(), nn.Linear(99, 10))
    >>> app = ClientApp(mods=[Inspect(build, decline=True)])
    """

    def __init__(
        self,
        model: Callable[[], nn.Module],
        *,
        batch: Batch | None = None,
        decline: bool = False,
        limits: Mapping[str, float] | None = None,
    ) -> None:
        for name, limit in (limits or {}).items():
            if name not in LIMITS or not limit > 0:
                allowed = f"positive limits of {', '.join(LIMITS)}"
                raise ValueError(f"limits: {name!r} = {limit!r}; give {allowed}")
        self.build = model
        self.batch = batch
        self.decline = decline
        self.limits = {**LIMITS, **(limits or {})}
        self._flat: FlatModel | None = None

    def __call__(self, message: Message, context: Context, call_next: ClientAppCallable) -> Message:
        """Inspect the arrays of a train message; pass all other messages on."""
        if not is_train(message):
            return call_next(message, context)
        _, arrays = only_arrays(message.content)
        reason = self.differences(arrays) or self.suspicious_signs(arrays, context)
        if reason:
            log.warning("the model that was sent is suspicious: %s", reason)
            if self.decline:
                error = Error(_DECLINED, f"declined a suspicious model: {reason}")
                return Message(error, reply_to=message)
        return call_next(message, context)

    def differences(self, arrays: ArrayRecord) -> str:
        """Return in words how names and shapes differ from the expected model; empty if not."""
        with torch.random.fork_rng(devices=[]):
            expected = {n: tuple(t.shape) for n, t in self.build().state_dict().items()}
        sent = {name: tuple(array.shape) for name, array in arrays.items()}
        for name in [*expected, *sent]:
            if sent.get(name) != expected.get(name):
                return f"{name} is {sent.get(name)}, not {expected.get(name)} as expected"
        return ""

    def suspicious_signs(self, arrays: ArrayRecord, context: Context) -> str:
        """Return in words which signs exceed their limits; keep the arrays for the next round."""
        signs = self.signs(arrays, context)
        context.state[_PREVIOUS] = arrays
        found = [
            f"{name} {value:.3g} (limit {self.limits[name]:g})"
            for name, value in signs.items()
            if suspicion({name: value}, self.limits) > 1
        ]
        return ", ".join(found)

    def signs(self, arrays: ArrayRecord, context: Context) -> dict[str, float]:
        """Return the signs of what was sent, by name."""
        tensors = _floats(arrays)
        signs = signs_of_weights(tensors)
        previous = context.state.get(_PREVIOUS)
        if isinstance(previous, ArrayRecord):
            signs |= signs_of_change(tensors, _floats(previous))
        if self.batch is not None:
            images, labels = self.batch(context)
            model = self._model(images)
            weights = flatten(arrays, model.layout)
            signs |= signs_of_batch(model, weights, images, labels)
            signs["surprise"] = sign_of_loss(model, weights, images, labels)
        return signs

    def _model(self, images: Tensor) -> FlatModel:
        if self._flat is None:
            with torch.random.fork_rng(devices=[]), torch.no_grad():
                classes = self.build().eval()(images[:1]).shape[1]
            _, channels, height, width = images.shape
            self._flat = flat_model(spec_of_app(self.build, (channels, height, width), classes))
        return self._flat


def _floats(arrays: ArrayRecord) -> dict[str, Tensor]:
    return {
        name: torch.from_numpy(array.numpy())
        for name, array in arrays.items()
        if array.dtype.startswith("float")
    }
