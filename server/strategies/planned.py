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
from fl_sim.plans import Curious, ServerPlan, planted_weights, plants_in
from fl_sim.updates.local_update import LocalWork, flat_model
from server.strategies.curious import find_curious
from server.strategies.reception import find_reception
from server.strategies.wrapper import Wrapper


class Planned(Wrapper):
    """Sends clients the weights that a server plan makes; trains as the strategy it wraps.

    Where a plan tells clients apart, their updates train the weights of `ServerPlan.weights`.

    Wrap `HonestButCurious` in it, which stores the weights that were sent, and whether they were
    planted.

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
    every : int
        Plant in the first of so many rounds; in the others clients are sent the trained weights.
        What clients answer in a planted round then changes no weights, so that training goes on
        as if that round had not been. With 1, every round is planted, and trains the weights that
        the plan leaves alone.
    work : LocalWork, optional
        What clients do. A plan has to know how they normalise pixels; without it, they do not.

    Raises
    ------
    ValueError
        If ``every`` is less than 1.

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
        self,
        strategy: Strategy,
        plan: ServerPlan,
        model: ModelSpec,
        public: Tensor,
        every: int = 1,
        work: LocalWork | None = None,
    ) -> None:
        if every < 1:
            raise ValueError(f"every = {every!r}: a round cannot be planted more often; give 1")
        super().__init__(strategy)
        self.plan = plan
        self.model = model
        self.public = public
        self.work = work or LocalWork()
        self.every = every
        self._trained = ArrayRecord()

    def initial(self, arrays: ArrayRecord) -> ArrayRecord:
        """Return the weights to begin with, given untrained ones."""
        return self.plant(arrays) if self.every == 1 else arrays

    def plant(self, arrays: ArrayRecord, client: int | None = None) -> ArrayRecord:
        """Return the planted weights, given those of a study or the arrays of an app.

        ``client`` is the place of the client among those that are asked, where it matters.
        """
        layout = flat_model(self.model).layout
        weights = unpack_weights(arrays) if is_flat(arrays) else flatten(arrays, layout)
        facts = (self.plan, self.work, self.model, weights, self.public)
        planted = planted_weights(*facts, client)
        if is_flat(arrays):
            return pack_weights(planted, unpack_statistics(arrays))
        return with_floats(arrays, layout, planted)

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Plant, if it is the turn of this round, and delegate.

        Then give each client its own weights, if the plan has such.
        """
        self._trained = arrays
        planted = plants_in(server_round, self.every)
        curious = find_curious(self.strategy)
        if curious is not None:
            curious.plan = self.plan.spec if planted else Curious.name
        if not planted:
            return super().configure_train(server_round, arrays, config, grid)
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
        """Delegate; if every round is planted, plant in the result, which the server then tests.

        If only some are, a planted round leaves the weights as they were.
        """
        arrays, metrics = super().aggregate_train(server_round, replies)
        if self.every > 1:
            return self._trained if plants_in(server_round, self.every) else arrays, metrics
        return None if arrays is None else self.plant(arrays), metrics
