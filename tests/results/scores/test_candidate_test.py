"""The candidate test: exact for what leaks all, never above what a guarantee allows."""

import math

import numpy as np
import pytest
import torch
from scipy.stats import binomtest

from fl_sim.quantizers import parse_quantizer
from fl_sim.quantizers.catalogue import EXAMPLES
from fl_sim.testing.quantizers import layout_of, seeded
from fl_sim.updates.local_update import Update
from results.scores.candidate_test import (
    RATES,
    BatchScorer,
    answer,
    clopper_pearson,
    likelihood_scores,
    ranks,
)

LAYOUT = layout_of(60, 40)


def found(spec, victims=40, others=999, seed=0):
    """Ranks of updates drawn like the others, by their likelihood."""
    rng = seeded(seed)
    quantizer = parse_quantizer(spec)
    everyone = torch.randn(others, LAYOUT.size, generator=rng)
    ranked = []
    for _ in range(victims):
        own = torch.randn(LAYOUT.size, generator=rng)
        cells = [quantizer.cell(quantizer.encode(Update(own, LAYOUT), rng))]
        scores = likelihood_scores(cells, torch.cat([own[None], everyone]))
        ranked.append(int(ranks(scores[:1], scores[None, 1:])[0]))
    return np.array(ranked)


def test_a_tie_counts_against_the_private_image():
    private, others = torch.tensor([2.0, 0.0]), torch.tensor([[1.0, 2.0, 3.0], [-1.0, -2.0, -3.0]])
    assert ranks(private, others).tolist() == [3, 1]


@pytest.mark.parametrize(("hits", "count"), [(0, 7), (3, 10), (60, 60)])
def test_limits_are_those_of_clopper_and_pearson(hits, count):
    exact = binomtest(hits, count).proportion_ci(0.95, method="exact")
    assert clopper_pearson(hits, count, 0.05) == pytest.approx((exact.low, exact.high))


def test_what_is_always_found_proves_the_epsilon_of_the_rate():
    sure = answer(np.ones(60, dtype=np.int64), 999, 0.001, 1e-5)
    assert (sure.rate, sure.found, sure.high) == (0.001, 1.0, 1.0)
    assert sure.epsilon_low == pytest.approx(math.log((0.025 ** (1 / 60) - 1e-5) / 0.001))
    never = answer(np.full(60, 500), 999, 0.01, 1e-5)
    assert (never.found, never.low, never.epsilon_low) == (0, 0, 0)
    with pytest.raises(ValueError, match="999 other images"):
        answer(np.ones(3, dtype=np.int64), 500, 0.001, 1e-5)


@pytest.mark.parametrize("spec", ["none", "uniform:bits=4", "sign", "drive"])
def test_quantizers_that_hide_little_are_always_found(spec):
    assert (found(spec, victims=10) == 1).all()


@pytest.mark.parametrize("spec", [one for one in EXAMPLES if one != "mixed:first=8,rest=2"])
def test_every_quantizer_has_a_likelihood_that_prefers_the_private_update(spec):
    ranked = found(spec, victims=6, others=99)
    assert np.median(ranked) < 30


@pytest.mark.parametrize(
    "spec",
    [
        "clip:norm=1+gaussian:sigma=1",
        "noisy_sign:clip=1,noise=0.7",
        "clip:norm=1+gaussian:sigma=5",
        "skellam:clip=1,noise=1",
        "clip:norm=1+laplace:scale=30",
    ],
)
def test_the_epsilon_proven_is_below_the_one_guaranteed(spec):
    ranked = found(spec)
    guaranteed = parse_quantizer(spec).guarantee(LAYOUT.size).epsilon(1, 1e-5)
    assert all(answer(ranked, 999, rate, 1e-5).epsilon_low <= guaranteed for rate in RATES)


def test_a_test_that_reads_what_noise_should_hide_is_caught():
    """If noise were forgotten, as here, what is proven would be above what is guaranteed."""
    ranked = found("clip:norm=1")
    guaranteed = parse_quantizer("clip:norm=1+gaussian:sigma=5").guarantee(LAYOUT.size)
    assert answer(ranked, 999, 0.001, 1e-5).epsilon_low > guaranteed.epsilon(1, 1e-5)


@pytest.mark.parametrize("spec", ["none", "stochastic:bits=2", "sign"])
def test_an_image_is_found_in_a_batch_and_others_are_not(spec):
    rng = seeded(1)
    basis = torch.randn(20, LAYOUT.size, generator=rng)

    def gradients(count):
        few = torch.randn(count, 20, generator=rng) @ basis / 5
        return few + torch.randn(count, LAYOUT.size, generator=rng)

    known, others, clients = gradients(200), gradients(199), gradients(80)
    scorer = BatchScorer(spec, LAYOUT, 4, known, others, rng)
    ranked, absent = [], []
    for rows in torch.arange(80).split(4):
        payload = parse_quantizer(spec).encode(Update(clients[rows].mean(dim=0), LAYOUT), rng)
        private, public = scorer.scores(payload, clients[rows[0]])
        ranked.append(int(ranks(private.view(1), public.view(1, -1))[0]))
        stranger, _ = scorer.scores(payload, gradients(1)[0])
        absent.append(int(ranks(stranger.view(1), public.view(1, -1))[0]))
    assert np.median(ranked) <= 4
    assert 40 < np.median(absent) < 160
