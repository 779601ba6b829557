"""The candidate test: exact for what leaks all, never above what a guarantee allows."""

import math

import numpy as np
import pytest
import torch
from scipy.stats import binomtest

from fl_sim.quantizers import parse_quantizer
from fl_sim.quantizers.catalogue import EXAMPLES
from fl_sim.testing.quantizers import layout_of, seeded
from fl_sim.updates.local_update import Layout, Segment, Update
from results.scores.batch_scorers import (
    ClassScorer,
    Known,
    SubspaceScorer,
    batch_scorer,
    decoded,
)
from results.scores.candidate_test import (
    RATES,
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
    scorer = batch_scorer(spec, LAYOUT, 4, known, others, rng)
    ranked, absent = [], []
    for rows in torch.arange(80).split(4):
        update = Update(clients[rows].mean(dim=0), LAYOUT)
        received = decoded(parse_quantizer(spec), update, 1, rng)
        private, public = scorer.scores(received, clients[rows[0]])
        ranked.append(int(ranks(private.view(1), public.view(1, -1))[0]))
        stranger, _ = scorer.scores(received, gradients(1)[0])
        absent.append(int(ranks(stranger.view(1), public.view(1, -1))[0]))
    assert np.median(ranked) <= 4
    assert 40 < np.median(absent) < 160


def classifier_gradients(count, rng, classes=6, features=30):
    """Gradients of weight and bias of a hardly trained classifier, random features and labels."""
    inputs = 1 + 0.3 * torch.randn(count, features, generator=rng)
    labels = torch.randint(classes, (count,), generator=rng)
    errors = (0.03 * torch.randn(count, classes, generator=rng)).softmax(dim=1)
    errors[torch.arange(count), labels] -= 1
    return torch.cat([torch.einsum("nc,nk->nck", errors, inputs).flatten(1), errors], dim=1)


CLASSIFIER = Layout((Segment("weight", (6, 30)), Segment("bias", (6,))))


def places(scorer, size, rng, spec="none"):
    """Ranks of an image of each of 30 batches, and of one that is in none."""
    inside, outside = [], []
    for _ in range(30):
        batch = classifier_gradients(size, rng)
        received = decoded(parse_quantizer(spec), Update(batch.mean(dim=0), CLASSIFIER), 1, rng)
        for one, found in ((batch[0], inside), (classifier_gradients(1, rng)[0], outside)):
            own, public = scorer.scores(received, one)
            found.append(int(ranks(own.view(1), public.view(1, -1))[0]))
    return np.array(inside), np.array(outside)


@pytest.mark.parametrize(("kind", "size"), [(SubspaceScorer, 5), (ClassScorer, 4)])
def test_a_batch_is_seen_through_where_its_classifier_shows_it(kind, size):
    rng = seeded(2)
    images, others = classifier_gradients(300, rng), classifier_gradients(199, rng)
    known = Known.measured("none", CLASSIFIER, size, images, others, 1, rng)
    inside, outside = places(kind(known, 0), size, rng)
    assert (inside == 1).mean() >= 0.9
    assert 40 < np.median(outside) <= 200


def test_the_scorer_is_chosen_on_known_batches():
    rng = seeded(3)
    images, others = classifier_gradients(300, rng), classifier_gradients(199, rng)
    fine = batch_scorer("none", CLASSIFIER, 5, images, others, rng)
    assert isinstance(fine, SubspaceScorer)
    assert (places(fine, 5, rng)[0] == 1).all()
    many = batch_scorer("none", CLASSIFIER, 12, images, others, rng)
    assert isinstance(many, ClassScorer)  # no subspace of six classes holds twelve images


def test_those_that_rank_have_no_part_in_the_choice_of_the_scorer():
    """Else an image that is in no batch would not rank among them by chance."""
    rng = seeded(5)
    images = classifier_gradients(300, rng)
    kinds = set()
    for others in (classifier_gradients(199, rng), torch.full((9, CLASSIFIER.size), torch.nan)):
        scorer = batch_scorer("none", CLASSIFIER, 12, images, others, seeded(6))
        assert scorer.known.others is others
        kinds.add(type(scorer))
    assert kinds == {ClassScorer}


def test_a_score_that_is_no_number_counts_against_the_image():
    private = torch.tensor([torch.nan, 1.0, 1.0])
    others = torch.tensor([[0.0, 2.0], [torch.nan, 0.0], [1.0, 0.0]])
    assert ranks(private, others).tolist() == [3, 2, 2]


def test_averaged_rounds_find_more():
    rng = seeded(4)
    images, others = classifier_gradients(300, rng), classifier_gradients(199, rng)
    spec, ranked = "gaussian:sigma=1", {}
    for rounds in (1, 64):
        known = Known.measured(spec, CLASSIFIER, 4, images, others, rounds, rng)
        scorer = ClassScorer(known, 0)
        found = []
        for _ in range(30):
            batch = classifier_gradients(4, rng)
            update = Update(batch.mean(dim=0), CLASSIFIER)
            own, public = scorer.scores(
                decoded(parse_quantizer(spec), update, rounds, rng), batch[0]
            )
            found.append(int(ranks(own.view(1), public.view(1, -1))[0]))
        ranked[rounds] = np.median(found)
    assert ranked[64] < ranked[1] / 2
