import pytest
import torch
from scipy.stats import norm

from attacker.matching.labels import _log_probability, _most_likely, recover_labels
from attacker.matching.problems import Problems
from fl_sim.updates.local_update import LocalWork
from results.scores.scoring import labels_recovered
from tests.attacker.observing import digits, observe


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
