"""Observations made from images, without a server."""

from collections.abc import Callable
from typing import Any

import torch

from fl_sim import testing
from fl_sim.models import ModelSpec
from fl_sim.observed.observations import Observation
from fl_sim.updates.local_update import LocalWork, flat_model

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
    **more: Any,
) -> list[Observation]:
    """Return what a server sees of clients that each hold ``work.images`` of the images."""
    return testing.observe(images, labels, quantizer, work, spec=spec, **more)
