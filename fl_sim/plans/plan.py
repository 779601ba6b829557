"""What a server plan is, and the plan of an honest-but-curious server."""

from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import ClassVar

from torch import Tensor

from fl_sim.models import ModelSpec
from fl_sim.registry import make, register
from fl_sim.specs import print_parameters


class ServerPlan:
    """Base of all plans: frozen dataclasses whose fields are their parameters.

    A plan is a pure function of what a server knows, so that every floor can tell what clients were
    sent; `server.strategies.planned.Planned` carries it out around any Flower strategy. A plan of
    another module is registered under the kind ``server``.

    Attributes
    ----------
    name : str
        Name in a spec string.
    threat : str
        What the server is to its clients, for tables: ``honest but curious``, ``malicious: ...``.
    reader : str
        The attack that reads what was planted; empty if the plan has none of its own.
    needs_pixels : bool
        Whether the plan cannot be carried out where clients normalise pixels.
    """

    name: ClassVar[str]
    threat: ClassVar[str]
    reader: ClassVar[str] = ""
    needs_pixels: ClassVar[bool] = False

    @cached_property
    def spec(self) -> str:
        """Spec string that parses back to an equal plan."""
        parameters = print_parameters(self)
        return self.name + (f":{parameters}" if parameters else "")

    def model(self, name: str) -> str:
        """Return the name of the model that clients are given where a study asks for ``name``."""
        return name

    def for_quantizer(self, quantizer: str) -> "ServerPlan":
        """Return the plan as it is carried out on clients that use a quantizer, by its spec.

        A plan that does not depend on it returns itself.
        """
        del quantizer
        return self

    def first_layer(self, model: ModelSpec) -> tuple[str, str] | None:
        """Return weight and bias of the layer on the pixels that the plan sets, by their names.

        Where clients normalise pixels, this layer is moved onto their inputs
        (`fl_sim.plans.inputs`). None if the plan sets no such layer; `weights` then gets public
        images as the model sees them.
        """
        del model
        return None

    def check(self, model: ModelSpec) -> None:
        """Check that the plan can be carried out on a model, the one that clients are given.

        Raises
        ------
        ValueError
            If it cannot; one line says what the plan needs.
        """
        del model

    def weights(self, model: ModelSpec, weights: Tensor, public: Tensor) -> Tensor:
        """Return the weights that clients are sent instead of the trained ones.

        Parameters
        ----------
        model : ModelSpec
            The model that clients are given.
        weights : Tensor
            ``(size,)`` float32, as trained so far; not to be changed in place.
        public : Tensor
            ``(N, C, H, W)`` public images: in [0, 1] for a plan that sets its `first_layer`, as the
            model sees them for any other.

        Returns
        -------
        Tensor
            ``(size,)``; planting again what was planted must change nothing.
        """
        del model, public
        return weights

    def weights_for(self, client: int, model: ModelSpec, weights: Tensor, public: Tensor) -> Tensor:
        """Return the weights that one client is sent; those of `weights`, unless a plan overrides.

        Parameters
        ----------
        client : int
            Place of the client among those that are asked in the round, from 0.
        model, weights, public
            As of `weights`.

        Returns
        -------
        Tensor
            ``(size,)``; planting again what was planted must change nothing.
        """
        del client
        return self.weights(model, weights, public)

    @cached_property
    def tells_clients_apart(self) -> bool:
        """Whether the plan sends different weights to different clients."""
        return type(self).weights_for is not ServerPlan.weights_for


def plants_in(server_round: int, every: int) -> bool:
    """Tell whether a server that plants in the first of every so many rounds plants in this one.

    Parameters
    ----------
    server_round : int
        1-based.
    every : int
        Rounds of which one is planted.
    """
    return (server_round - 1) % every == 0


@register("server", "curious")
@dataclass(frozen=True)
class Curious(ServerPlan):
    """Follows the protocol, and keeps what it receives."""

    threat: ClassVar[str] = "honest but curious"


@lru_cache(maxsize=64)
def parse_plan(spec: str) -> ServerPlan:
    """Return the plan that a spec names, such as ``imprint:bins=64``.

    Raises
    ------
    ValueError
        If there is no such plan, or a parameter is not allowed.
    """
    plan = make("server", spec)
    if not isinstance(plan, ServerPlan):
        raise ValueError(f"the server {spec!r} is not a ServerPlan, but a {type(plan).__name__}")
    return plan
