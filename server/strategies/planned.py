"""Carry out a server plan around any strategy."""

from collections.abc import Iterable

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy
from torch import Tensor

from fl_sim.exchange.messages import is_flat, pack_weights, unpack_weights
from fl_sim.exchange.weight_records import flatten, with_floats
from fl_sim.models import ModelSpec
from fl_sim.plans import ServerPlan
from fl_sim.updates.local_update import flat_model
from server.strategies.wrapper import Wrapper


class Planned(Wrapper):
    """Sends clients the weights that a server plan makes; trains as the strategy it wraps.

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

    def plant(self, arrays: ArrayRecord) -> ArrayRecord:
        """Return the planted weights, given those of a study or the arrays of an app."""
        if is_flat(arrays):
            return pack_weights(self.plan.weights(self.model, unpack_weights(arrays), self.public))
        layout = flat_model(self.model).layout
        planted = self.plan.weights(self.model, flatten(arrays, layout), self.public)
        return with_floats(arrays, layout, planted)

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Plant, and delegate."""
        return super().configure_train(server_round, self.plant(arrays), config, grid)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Delegate, then plant in the result, so that the server tests the model that it sends."""
        arrays, metrics = super().aggregate_train(server_round, replies)
        return None if arrays is None else self.plant(arrays), metrics
