"""Observations made from images, without a server."""

from collections.abc import Callable

import torch

from fl_sim.models import ModelSpec
from fl_sim.observed.observations import Observation
from fl_sim.quantizers import parse_quantizer
from fl_sim.seeding import Purpose, torch_rng
from fl_sim.updates.local_update import LocalWork, Update, flat_model, local_update, one_hot

SPEC = ModelSpec("lenet", (1, 8, 8), 10)

Observe = Callable[..., list[Observation]]


def digits(count: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Return ``count`` scikit-learn digits ``(count, 1, 8, 8)`` and their labels."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    chosen = torch.randperm(1797, generator=torch.Generator().manual_seed(seed))[:count]
    return torch.from_numpy(bunch.images).float()[chosen, None] / 16, torch.from_numpy(
        bunch.target
    )[chosen]


def initial_weights(spec: ModelSpec = SPEC) -> torch.Tensor:
    model = flat_model(spec)
    return model.layout.flatten(dict(model.module.named_parameters()))


def observe(
    images: torch.Tensor,
    labels: torch.Tensor,
    quantizer: str = "none",
    work: LocalWork | None = None,
    *,
    spec: ModelSpec = SPEC,
    weights: torch.Tensor | None = None,
    rounds: int = 1,
) -> list[Observation]:
    """Return what a server sees of clients that each hold ``work.images`` of the images."""
    work = work or LocalWork(fixed_batch=rounds > 1)
    weights = initial_weights(spec) if weights is None else weights
    model = flat_model(spec)
    parsed = parse_quantizer(quantizer)
    targets = one_hot(labels, spec.classes)
    batches = zip(images.split(work.images), targets.split(work.images), strict=True)
    seen = []
    for partition, (batch, batch_targets) in enumerate(batches):
        update = local_update(model, work, weights, batch, batch_targets)
        residual = None
        for round_ in range(1, rounds + 1):
            rng = torch_rng(0, Purpose.QUANTIZER, round_, partition)
            payload, residual = parsed.transmit(Update(update, model.layout), residual, rng)
            seen.append(Observation("trial", round_, partition, spec, work, weights, payload))
    return seen
