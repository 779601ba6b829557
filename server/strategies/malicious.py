"""The malicious server: it wraps any strategy, plants weights, and stores what clients send."""

from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from flwr.serverapp.strategy import Strategy
from torch import Tensor, nn

from fl_sim.models import ModelSpec, spec_of_app
from fl_sim.plans import ServerPlan, parse_plan
from fl_sim.quantizers import parse_quantizer
from fl_sim.updates.local_update import LocalWork
from server.strategies.curious import HonestButCurious
from server.strategies.planned import Planned


class Malicious(Planned):
    """Carries out a server plan in any app, and stores what its clients send: for an audit.

    It wraps a strategy in `HonestButCurious`, and that in `Planned`: clients are sent planted
    weights, and `server.audit` reads what they answer. Nothing else of the app changes.

    Parameters
    ----------
    strategy : Strategy
        The strategy that trains.
    plan : ServerPlan or str
        The plan or its spec, such as ``traps``.
    model : callable or ModelSpec
        Builds the model that clients train, what the plan needs included; or a model of this
        project.
    public : Tensor
        ``(N, C, H, W)`` public images in [0, 1], like those of the clients.
    store : Path or str
        Folder of the observations.
    quantizer : str
        Spec of the clients' quantizer, where it is known: the plan is suited to it.
    every : int
        Plant in the first of so many rounds, as of `Planned`.
    trial : str
        Sub-folder of this training.
    work : LocalWork, optional
        What clients do in a round; it can be passed to `server.audit` instead, but for how they
        normalise pixels, which the plan has to know.
    rounds : iterable of int, optional
        1-based rounds to keep; all if absent.

    Raises
    ------
    ValueError
        If there is no such plan or quantizer, or the plan cannot be carried out on this model or
        these inputs.

    Examples
    --------
    >>> import torch
    >>> from flwr.serverapp.strategy import FedAvg
    >>> from torch import nn
    >>> from server import Malicious
    >>> def build():
    ...     return nn.Sequential(nn.Flatten(), nn.Linear(64, 99), nn.ReLU(), nn.Linear(99, 10))
    >>> public = torch.rand(100, 1, 8, 8)
    >>> strategy = Malicious(
    ...     FedAvg(), plan="traps", model=build, public=public, store="/absolute/folder"
    ... )
    """

    def __init__(
        self,
        strategy: Strategy,
        plan: ServerPlan | str,
        *,
        model: Callable[[], nn.Module] | ModelSpec,
        public: Tensor,
        store: Path | str,
        quantizer: str = "",
        every: int = 1,
        trial: str = "flower",
        work: LocalWork | None = None,
        rounds: Iterable[int] | None = None,
    ) -> None:
        chosen = parse_plan(plan) if isinstance(plan, str) else plan
        if quantizer:
            chosen = chosen.for_quantizer(parse_quantizer(quantizer).spec)
        spec = model if isinstance(model, ModelSpec) else _spec(model, public)
        try:
            chosen.check(spec)
        except ValueError as error:
            raise ValueError(f"plan = {chosen.spec!r}: {error}") from error
        if work is not None and work.mean and chosen.needs_pixels:
            raise ValueError(f"plan = {chosen.spec!r}: it needs pixels that are not normalised")
        curious = HonestButCurious(strategy, store, trial=trial, work=work, rounds=rounds)
        super().__init__(curious, chosen, spec, public, every, work)


def _spec(build: Callable[[], nn.Module], public: Tensor) -> ModelSpec:
    """Return the spec of a model; its classes are counted at one public image."""
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        logits = build().eval()(public[:1])
    _, channels, height, width = public.shape
    return spec_of_app(build, (channels, height, width), logits.shape[1])
