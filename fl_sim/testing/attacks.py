"""What every attack promises."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fl_sim.coding.payload import PayloadError
from fl_sim.data.public_images import PublicImages
from fl_sim.models import ModelSpec
from fl_sim.observed.attack_loss import AttackLoss
from fl_sim.observed.evidence import HeldBack
from fl_sim.observed.observations import Observation, Statistics
from fl_sim.observed.reconstructions import Reconstruction, check_types
from fl_sim.quantizers import parse_quantizer
from fl_sim.registry import resolve
from fl_sim.seeding import Purpose, torch_rng
from fl_sim.testing.contract import ContractError, make_twice, require
from fl_sim.updates.local_update import LocalWork, Update, flat_model, local_reply, one_hot
from fl_sim.updates.local_work import draw_orders

_MODEL = ModelSpec("mlp", (1, 8, 8), 10)


def check_attack(attack: Any, observations: Sequence[Observation] | None = None) -> None:
    """Check that an attack keeps what every attack promises.

    It reconstructs a batch of images with labels for each observation, in order, changes no
    observation, finds the same again for the same seed, and reads what was received from
    `Observation.cell`.

    Parameters
    ----------
    attack : str or object
        An attack, such as ``build_attack("dlg")``, or the spec of one that is registered.
    observations : sequence of Observation, optional
        What to attack, as of `observe`. By default three clients, with one image each, send
        unquantized gradients of an MLP.

    Raises
    ------
    ContractError
        If a promise is not kept, or the attack does not apply to the observations.
    ValueError
        If there is no such attack.

    Examples
    --------
    >>> from attacker import build_attack
    >>> from fl_sim.testing import check_attack
    >>> check_attack(build_attack("analytic"))
    """
    name = attack if isinstance(attack, str) else getattr(attack, "name", type(attack).__name__)
    if isinstance(attack, str):
        attack = resolve("attack", attack)()
    images, labels = _random_images(40, seed=1)
    if observations is None:
        observations = observe(*_random_images(3, seed=0))
    public = PublicImages(images, labels)
    before = [_facts(one) for one in observations]
    applies = attack.applies(observations)
    require(isinstance(applies, bool), f"{name}: applies returns {applies!r}, not True or False")
    require(applies, f"{name}: does not apply to these observations; give some that it applies to")
    found, again = make_twice(
        f"{name}: reconstructing",
        lambda: attack.reconstruct(observations, seed=0, public=public),
    )
    require([_facts(one) for one in observations] == before, f"{name}: changes its observations")
    _check_each_observation_has_one(name, observations, found)
    models = {_where(one): (one.model, one.work) for one in observations}
    for one in found:
        _check_reconstruction(name, one, *models[_where(one)])
    require(all(map(_same, found, again)), f"{name}: finds something else for the same seed")
    _check_cells_are_enough(name, attack, observations, public)


def observe(
    images: Tensor,
    labels: Tensor,
    quantizer: str = "none",
    work: LocalWork | None = None,
    *,
    spec: ModelSpec = _MODEL,
    weights: Tensor | None = None,
    rounds: int = 1,
    server: str = "curious",
) -> list[Observation]:
    """Return what a server sees of clients that hold these images, without a simulation.

    Parameters
    ----------
    images : Tensor
        ``(n, C, H, W)`` in [0, 1]; each client holds ``work.images`` of them.
    labels : Tensor
        ``(n,)`` int64.
    quantizer : str
        Spec of the quantizer.
    work : LocalWork, optional
        What each client computes; by default the gradient of one image.
    spec : ModelSpec
        The model.
    weights : Tensor, optional
        ``(size,)`` weights that clients are given; by default the initial ones.
    rounds : int
        Number of rounds, in all of which clients use the same images.
    server : str
        Spec of the server's plan; it made the ``weights``.

    Returns
    -------
    list of Observation
        Client by client.

    Examples
    --------
    >>> import torch
    >>> from fl_sim.testing import observe
    >>> seen = observe(torch.rand(2, 1, 8, 8), torch.tensor([3, 5]), "sign")
    >>> [one.payload.spec for one in seen]
    ['sign', 'sign']
    """
    work = work or LocalWork(fixed_batch=rounds > 1)
    model = flat_model(spec)
    if weights is None:
        weights = model.layout.flatten(dict(model.module.named_parameters()))
    parsed = parse_quantizer(quantizer)
    targets = one_hot(labels, spec.classes)
    batches = zip(*(torch.split(one, work.images) for one in (images, targets)), strict=True)
    seen = []
    for partition, (batch, batch_targets) in enumerate(batches):
        sent = model.initial_statistics
        order = draw_orders(work, torch_rng(0, Purpose.ORDER, 1, partition))
        update, change = local_reply(model, work, weights, sent, batch, batch_targets, order=order)
        told = None
        if len(sent):
            of_layers = Update(change, model.statistics)
            told = Statistics(sent, parse_quantizer("none").encode(of_layers, torch.Generator()))
        residual = None
        for round_ in range(1, rounds + 1):
            rng = torch_rng(0, Purpose.QUANTIZER, round_, partition)
            payload, residual = parsed.transmit(Update(update, model.layout), residual, rng)
            facts = ("trial", round_, partition, spec, work, weights, payload, server)
            seen.append(Observation(*facts, statistics=told))
    return seen


def _check_cells_are_enough(
    name: str, attack: Any, observations: Sequence[Observation], public: PublicImages
) -> None:
    """Check that an attack also works where a suite holds elements of each payload back."""
    shown = [one.hold_back(HeldBack()) for one in observations]
    try:
        if attack.applies(shown):
            attack.reconstruct(shown, seed=0, public=public)
    except PayloadError as error:
        raise ContractError(
            f"{name}: reads payloads, of which a tenth is held back; read observation.cell instead "
            f"({error})"
        ) from error


def _random_images(count: int, seed: int) -> tuple[Tensor, Tensor]:
    rng = torch.Generator().manual_seed(seed)
    images = torch.rand((count, *_MODEL.shape), generator=rng)
    return images, torch.randint(_MODEL.classes, (count,), generator=rng)


def _where(one: Observation | Reconstruction) -> tuple[str, int, int]:
    return one.trial, one.round, one.partition


def _facts(one: Observation) -> tuple[object, ...]:
    """Return all that an observation says, to compare it later."""
    weights = one.weights.numpy().tobytes()
    return *_where(one), one.model, one.work, one.server, one.payload.to_bytes(), weights


def _check_each_observation_has_one(
    name: str, observations: Sequence[Observation], found: Sequence[Reconstruction]
) -> None:
    """Check that there is one for each; or, if clients repeat their images, one for each client."""
    each = [_where(one) for one in observations]
    wanted = [each]
    if all(one.work.fixed_batch for one in observations):
        last = {(trial, partition): number for trial, number, partition in each}
        wanted.append([(trial, last[trial, part], part) for trial, part in last])
    places = [_where(one) for one in found]
    require(
        places in wanted,
        f"{name}: {len(found)} reconstructions of {len(observations)} observations, or in another "
        "order; trial, round and partition must be those of the observations",
    )


def _check_reconstruction(
    name: str, one: Reconstruction, model: ModelSpec, work: LocalWork
) -> None:
    try:
        check_types(one)
        if one.objective:
            AttackLoss.parse(one.objective)
    except (TypeError, ValueError) as error:
        raise ContractError(f"{name}: a reconstruction cannot be stored: {error}") from error
    shape = (work.images, *model.shape)
    require(
        one.images.shape == shape and one.images.isfinite().all(),
        f"{name}: images have shape {tuple(one.images.shape)}, not {shape}, or are not finite",
    )
    require(
        ((one.labels >= 0) & (one.labels < model.classes)).all(),
        f"{name}: labels {one.labels.tolist()} are not from 0 to {model.classes - 1}",
    )


def _same(one: Reconstruction, other: Reconstruction) -> bool:
    return torch.equal(one.images, other.images) and torch.equal(one.labels, other.labels)
