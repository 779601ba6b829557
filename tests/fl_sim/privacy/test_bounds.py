"""The bound on the error: exact where it can be computed by hand, never above what is reached."""

import numpy as np
import pytest
import torch

from fl_sim.coding.transforms import ClipToNorm
from fl_sim.models import ModelSpec
from fl_sim.privacy.bounds import covariance_within_classes, fisher_information, least_mse
from fl_sim.testing.quantizers import seeded
from fl_sim.updates.local_update import LocalWork, flat_model, local_update, one_hot

SPEC = ModelSpec("mlp", (1, 2, 3), 3)
MODEL = flat_model(SPEC)
WEIGHTS = torch.randn(MODEL.layout.size, generator=seeded()) / 3
WORK = LocalWork()


@pytest.mark.parametrize("clip", [None, ClipToNorm(0.1)])
def test_information_is_that_of_finite_differences(clip):
    images = torch.rand(2, *SPEC.shape, generator=seeded(1))
    targets = one_hot(torch.tensor([0, 2]), 3)
    found = fisher_information(MODEL, WORK, WEIGHTS, images, targets, 0.5, clip)
    exact = torch.zeros(6, 6).double()
    for image, target in zip(images, targets, strict=True):

        def sent(pixels, target=target):
            update = local_update(MODEL, WORK, WEIGHTS, pixels.view(1, 1, 2, 3), target[None])
            return update if clip is None else clip(update)

        step = 1e-2 * torch.eye(6)
        rows = [(sent(image.flatten() + e) - sent(image.flatten() - e)) / 2e-2 for e in step]
        slopes = torch.stack(rows).double()
        exact += slopes @ slopes.T / 2 / 0.25
    torch.testing.assert_close(found, exact, rtol=1e-2, atol=1e-2 * float(exact.max()))


def test_the_bound_of_a_linear_gaussian_problem_is_reached_by_the_best_estimate():
    rng = np.random.default_rng(0)
    root, slope, sigma = rng.normal(size=(4, 4)), rng.normal(size=(7, 4)), 0.7
    covariance = root @ root.T
    bound = least_mse(torch.tensor(slope.T @ slope / sigma**2), torch.tensor(covariance))
    images = rng.normal(size=(200_000, 4)) @ root.T
    seen = images @ slope.T + sigma * rng.normal(size=(200_000, 7))
    gain = covariance @ slope.T @ np.linalg.inv(slope @ covariance @ slope.T + sigma**2 * np.eye(7))
    assert np.mean((seen @ gain.T - images) ** 2) == pytest.approx(bound, rel=1e-2)


def test_the_bound_without_information_is_the_variance_and_with_much_it_is_nothing():
    covariance = torch.diag(torch.tensor([1.0, 2.0, 0.0])).double()
    assert least_mse(torch.zeros(3, 3).double(), covariance) == pytest.approx(1.0)
    assert least_mse(1e9 * torch.eye(3).double(), covariance) == pytest.approx(0, abs=1e-8)


def test_covariance_is_that_around_the_means_of_classes():
    rng = seeded()
    labels = torch.randint(3, (600,), generator=rng)
    images = torch.randn(600, 1, 1, 2, generator=rng) + 5 * labels[:, None, None, None]
    exact = torch.eye(2).double()
    torch.testing.assert_close(covariance_within_classes(images, labels), exact, rtol=0, atol=0.15)
