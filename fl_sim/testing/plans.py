"""What every server plan promises."""

import torch

from fl_sim.models import ModelSpec
from fl_sim.plans import ServerPlan, parse_plan
from fl_sim.testing.contract import make_twice, require
from fl_sim.testing.models import check_model
from fl_sim.updates.local_update import flat_model, layout_of_model


def check_server_plan(plan: str | ServerPlan, model: str = "lenet") -> None:
    """Check that a server plan keeps what every plan promises.

    Its spec parses back to it, and it says its threat in one line. The model that it hands out is a
    model. The weights that it hands out are of that model, a function of what the plan is given,
    and planting them again changes nothing.

    Parameters
    ----------
    plan : str or ServerPlan
        The plan, or the spec of one that is registered.
    model : str
        Spec of a model that the plan can be used with.

    Raises
    ------
    ContractError
        If a promise is not kept.
    ValueError
        If there is no such plan or model, or the plan cannot be carried out on the model.

    Examples
    --------
    >>> from fl_sim.testing import check_server_plan
    >>> check_server_plan("imprint:bins=8")
    """
    if isinstance(plan, str):
        plan = parse_plan(plan)
    name = plan.spec
    parsed = parse_plan.__wrapped__(name)  # not the same object, from the cache
    require(
        parsed == plan and parsed.spec == name,
        f"the spec {name!r} parses to another plan; is it a frozen dataclass?",
    )
    require(
        plan.threat.strip() and "\n" not in plan.threat,
        f"{name}: threat {plan.threat!r} is not one line",
    )
    require(isinstance(plan.reader, str), f"{name}: reader is not the name of an attack")
    spec = ModelSpec(plan.model(model), (1, 8, 8), 5)
    check_model(spec.name, spec.shape, spec.classes)
    plan.check(spec)
    layer = plan.first_layer(spec)
    there = {segment.name for segment in layout_of_model(spec).segments}
    require(layer is None or there.issuperset(layer), f"{name}: first_layer {layer} is no layer")
    flat = flat_model(spec)
    rng = torch.Generator().manual_seed(0)
    weights = flat.layout.flatten(dict(flat.module.named_parameters())).detach()
    public = torch.rand((50, *spec.shape), generator=rng)
    given = weights.clone(), public.clone()
    planted, again = make_twice(f"{name}: planting", lambda: plan.weights(spec, weights, public))
    require(
        torch.equal(given[0], weights) and torch.equal(given[1], public),
        f"{name}: planting changes the weights or public images it is given",
    )
    require(
        planted.shape == (flat.layout.size,) and planted.dtype == torch.float32,
        f"{name}: weights are {planted.dtype} {tuple(planted.shape)}, "
        f"not float32 ({flat.layout.size},)",
    )
    require(planted.isfinite().all(), f"{name}: a weight is not finite")
    require(torch.equal(planted, again), f"{name}: the same weights are planted differently")
    twice = plan.weights(spec, planted.clone(), public)
    require(torch.equal(planted, twice), f"{name}: planting twice is not the same as once")
    if plan.tells_clients_apart:
        for client in (0, 1):
            one = plan.weights_for(client, spec, weights, public)
            require(
                one.shape == planted.shape and one.isfinite().all(),
                f"{name}: weights for client {client} are not those of the model, or not finite",
            )
            twice = plan.weights_for(client, spec, one.clone(), public)
            require(
                torch.equal(one, twice),
                f"{name}: planting twice for client {client} is not the same as once",
            )
