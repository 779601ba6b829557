"""Carry out a server plan around any strategy."""

from collections.abc import Iterable

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy
from torch import Tensor

from fl_sim.exchange.messages import (
    is_flat,
    pack_weights,
    unpack_statistics,
    unpack_weights,
)
from fl_sim.exchange.weight_records import flatten, only_arrays, with_floats
from fl_sim.models import ModelSpec
from fl_sim.plans import ServerPlan
from fl_sim.updates.local_update import flat_model
from server.strategies.reception import find_reception
from server.strategies.wrapper import Wrapper


class Planned(Wrapper):
    """Sends clients the weights that a server plan makes; trains as the strategy it wraps.

    Where a plan tells clients apart, their updates train the weights of `ServerPlan.weights`.

    Wrap `HonestButCurious` in it, which stores the weights that were sent.

    Parameters
    ----------
    strategy : Strategy
        The strategy that trains.
    plan : ServerPlan
        What the server does to the weights.
    model : ModelSpec
        The model that clients train.
    public : Tensor
        ``(N, C, H, W)`` public images in [0, 1].

    Examples
    --------
    >>> import torch
    >>> from flwr.serverapp.strategy import FedAvg
    >>> from fl_sim.models import ModelSpec
    >>> from fl_sim.plans import Imprint
    >>> from server import HonestButCurious
    >>> from server import Planned
    >>> plan = Imprint(bins=64)
    >>> model = ModelSpec(plan.model("lenet"), (1, 8, 8), 10)
    >>> curious = HonestButCurious(FedAvg(), store="/absolute/folder", plan=plan.spec)
    >>> strategy = Planned(curious, plan, model, public=torch.rand(100, 1, 8, 8))
    """

    def __init__(
        self, strategy: Strategy, plan: ServerPlan, model: ModelSpec, public: Tensor
    ) -> None:
        super().__init__(strategy)
        self.plan = plan
        self.model = model
        self.public = public

    def plant(self, arrays: ArrayRecord, client: int | None = None) -> ArrayRecord:
        """Return the planted weights, given those of a study or the arrays of an app.

        ``client`` is the place of the client among those that are asked, where it matters.
        """
        layout = flat_model(self.model).layout
        weights = unpack_weights(arrays) if is_flat(arrays) else flatten(arrays, layout)
        facts = (self.model, weights, self.public)
        if client is None:
            planted = self.plan.weights(*facts)
        else:
            planted = self.plan.weights_for(client, *facts)
        if is_flat(arrays):
            return pack_weights(planted, unpack_statistics(arrays))
        return with_floats(arrays, layout, planted)

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Plant, and delegate; then give each client its own weights, if the plan has such."""
        messages = super().configure_train(server_round, self.plant(arrays), config, grid)
        if not self.plan.tells_clients_apart:
            return messages
        return [self._for_client(*one, arrays) for one in enumerate(messages)]

    def _for_client(self, client: int, message: Message, arrays: ArrayRecord) -> Message:
        key, _ = only_arrays(message.content)
        own = self.plant(arrays, client)
        message.content = RecordDict({**message.content, key: own})
        reception = find_reception(self.strategy)
        if reception is not None:
            reception.sent_to[message.metadata.dst_node_id] = own
        return message

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Delegate, then plant in the result, so that the server tests the model that it sends."""
        arrays, metrics = super().aggregate_train(server_round, replies)
        return None if arrays is None else self.plant(arrays), metrics
