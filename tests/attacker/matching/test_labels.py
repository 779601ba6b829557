from dataclasses import replace

import pytest
import torch
from scipy.stats import norm

from attacker.matching.label_regression import PublicBatches
from attacker.matching.labels import _log_probability, _most_likely, recover_labels
from attacker.matching.problems import Problems
from fl_sim.data.public_images import PublicImages
from fl_sim.models import build_model
from fl_sim.observed.evidence import HeldBack
from fl_sim.updates.local_update import Layout, LocalWork
from results.scores.scoring import labels_recovered
from tests.attacker.observing import SPEC, digits, observe


def share(quantizer, size, clients=8):
    """Return the share of labels recovered from batches of digits."""
    images, labels = digits(clients * size)
    seen = observe(images, labels, quantizer, LocalWork(batch_size=size))
    found = recover_labels(Problems.of([[one] for one in seen])).tolist()
    pairs = zip(found, labels.reshape(clients, size).tolist(), strict=True)
    shares = [labels_recovered(*pair) for pair in pairs]
    return sum(shares) / len(shares)


@pytest.mark.parametrize("quantizer", ["none", "uniform:bits=4", "sign", "topk:keep=0.1", "drive"])
@pytest.mark.parametrize("size", [4, 8])
def test_labels_are_counted_however_coarse_the_payload(quantizer, size):
    assert share(quantizer, size) >= 0.9


def trained_lenet(steps):
    module = build_model(SPEC)
    images, labels = digits(1000, seed=5)
    optimizer = torch.optim.Adam(module.parameters(), 0.003)
    for step in range(steps):
        rows = slice(64 * step % 960, 64 * step % 960 + 64)
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(module(images[rows]), labels[rows]).backward()
        optimizer.step()
    return Layout.of(module).flatten({n: p.detach() for n, p in module.named_parameters()})


def trained_problems(work=None, clients=16, quantizer="sign", **more):
    images, labels = digits(1797, seed=5)
    rows = slice(1000, 1000 + 8 * clients)
    work = work or LocalWork(batch_size=8)
    seen = observe(images[rows], labels[rows], quantizer, work, weights=trained_lenet(60), **more)
    public = PublicImages(images[1300:], labels[1300:])
    return Problems.of([[one] for one in seen]), public, labels[rows].reshape(clients, 8)


@pytest.mark.parametrize("quantizer", ["sign", "none"])
def test_labels_of_public_images_help_to_count_labels_at_trained_weights(quantizer):
    problems, public, truth = trained_problems(quantizer=quantizer)

    def share_of(found):
        pairs = zip(found.tolist(), truth.tolist(), strict=True)
        return sum(labels_recovered(*pair) for pair in pairs) / len(truth)

    alone, with_public = (share_of(recover_labels(problems, one)) for one in (None, public))
    assert with_public >= max(0.85, alone + 0.05)


def test_public_batches_are_made_where_images_are_enough_and_learned_from_where_cheap(monkeypatch):
    problems, public, _ = trained_problems(clients=1)
    assert PublicBatches.of(problems, public).means
    assert PublicBatches.of(problems, None) is None
    few = PublicImages(public.images[:100], public.labels[:100])
    assert PublicBatches.of(problems, few) is None
    steps = LocalWork("delta", 4, local_steps=2, local_batches=2)
    several = trained_problems(steps, clients=1)[0]
    assert not PublicBatches.of(several, public).means
    assert PublicBatches.of(several, public).teach
    monkeypatch.setattr("attacker.matching.label_regression._MOST_WORK", 10**5)
    dear = PublicBatches.of(several, public)
    assert not dear.teach
    assert len(dear.held_out()[0]) == 4
    monkeypatch.setattr("attacker.matching.label_regression._MOST_FLOATS", 10**6)
    assert not PublicBatches.of(problems, public).means  # too large to hold their gradients


def test_where_batches_are_too_dear_to_learn_from_a_count_below_chance_is_not_believed(monkeypatch):
    steps = LocalWork("delta", 4, local_steps=2, local_batches=2)
    problems, public, _ = trained_problems(steps, clients=3)
    monkeypatch.setattr("attacker.matching.label_regression._MOST_WORK", 10**6)
    worst = torch.zeros(len(problems), 10).index_fill(1, torch.tensor([9]), 8)
    monkeypatch.setattr(
        "attacker.matching.labels._Counter.counts",
        lambda self, asked: worst[:1].expand(len(asked), -1),
    )
    assert (recover_labels(problems) == 9).all()
    found = recover_labels(problems, public)
    assert all(len(set(row)) == 8 for row in found.tolist())  # an even guess


@pytest.mark.parametrize("example_clip", [0.0, 0.1])
def test_public_batches_send_what_clients_would(example_clip):
    work = LocalWork(batch_size=8, example_clip=example_clip)
    problems, public, _ = trained_problems(work, clients=1)
    batches = PublicBatches.of(problems, public)
    rows = torch.arange(16).reshape(2, 8)
    means = batches._from_means(rows)
    torch.testing.assert_close(batches._whole(rows), means, rtol=1e-4, atol=1e-6)
    trial, counts = batches.held_out()
    assert len(trial) == len(counts)
    assert counts.sum(dim=1).eq(8).all()


def test_a_regression_reads_nothing_that_is_held_back():
    problems, public, _ = trained_problems(clients=2)
    held = HeldBack()
    hidden = replace(problems, held_back=held)
    layout = problems.flat_model.layout
    for learned in PublicBatches.of(hidden, public).learn():
        gone = held.elements(layout, layout.sizes)[learned.chosen]
        assert bool(gone.any())
        assert float(learned.slopes[gone].abs().max()) == 0


def test_the_logarithm_of_a_probability_is_exact_in_both_tails_and_in_narrow_intervals():
    bounds = [(-1.0, 2.0), (30.0, torch.inf), (-torch.inf, -30.0), (5.0, 5.0001), (-1e-5, 1e-5)]
    lower, upper = torch.tensor(bounds, dtype=torch.float64).T
    found = _log_probability(lower, upper, torch.zeros(5), torch.ones(5)).tolist()
    middle = [0.5 * (a + b) for a, b in bounds[3:]]
    expected = [
        norm.logcdf(2) + torch.log1p(-torch.tensor(norm.cdf(-1) / norm.cdf(2))).item(),
        norm.logsf(30),
        norm.logcdf(-30),
        norm.logpdf(middle[0]) + torch.tensor(1e-4).log().item(),
        norm.logpdf(middle[1]) + torch.tensor(2e-5).log().item(),
    ]
    assert found == pytest.approx(expected, rel=1e-3)


def test_a_climb_ends_at_the_likeliest_counts():
    truth = torch.tensor([3.0, 0.0, 1.0])
    start = torch.tensor([0.0, 4.0, 0.0])
    found = _most_likely([start], lambda counts: -(counts - truth).square().sum(dim=1))
    assert torch.equal(found, truth)
