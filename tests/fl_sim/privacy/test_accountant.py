"""Epsilon against closed forms, another accountant's figures, and divergences by hand."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.integrate import quad
from scipy.special import ive
from scipy.stats import norm

from fl_sim.privacy.accountant import (
    GaussianGuarantee,
    RenyiGuarantee,
    pure_guarantee,
    skellam_divergence,
)
from fl_sim.quantizers import parse_quantizer

DELTA = 1e-5
some = settings(max_examples=30, deadline=None, derandomize=True)


@pytest.mark.parametrize(
    ("noise", "rounds", "epsilon"),
    [(1.0, 1, 4.377178), (2.0, 1, 1.993091), (2.0, 100, 33.10375), (50.0, 200, 1.06103)],
)
def test_gaussian_epsilon_is_that_of_another_accountant(noise, rounds, epsilon):
    """Figures of dp-accounting 0.6: privacy loss distributions of the Gaussian mechanism."""
    found = GaussianGuarantee(0.5 / noise).epsilon(rounds, DELTA)  # sensitivity 1
    assert found == pytest.approx(epsilon, rel=5e-4)


@pytest.mark.parametrize("ratio", [0.02, 0.5, 3.0])
def test_gaussian_epsilon_has_the_delta_of_its_definition(ratio):
    """The integral of the positive part of p - e^epsilon q, by quadrature."""
    epsilon = GaussianGuarantee(ratio).epsilon(1, DELTA)
    far = 2 * ratio

    def excess(x):
        return max(0.0, norm.pdf(x, far) - math.exp(epsilon + norm.logpdf(x)))

    edge = epsilon / far + far / 2  # where both are equal
    assert quad(excess, edge, edge + 10, epsrel=1e-8)[0] == pytest.approx(DELTA, rel=1e-4)


@some
@given(ratio=st.floats(1e-4, 1e4), rounds=st.integers(1, 10**6))
def test_gaussian_epsilon_is_finite_and_grows_with_everything(ratio, rounds):
    guarantee = GaussianGuarantee(ratio)
    epsilon = guarantee.epsilon(rounds, DELTA)
    assert 0 <= epsilon < math.inf
    assert guarantee.epsilon(rounds + 1, DELTA) >= epsilon
    assert guarantee.epsilon(rounds, DELTA / 10) >= epsilon
    assert GaussianGuarantee(1.01 * ratio).epsilon(rounds, DELTA) >= epsilon
    assert guarantee.epsilon(4 * rounds, DELTA) == pytest.approx(
        GaussianGuarantee(2 * ratio).epsilon(rounds, DELTA), rel=1e-9
    )


def test_renyi_epsilon_of_the_gaussian_is_a_little_above_the_exact_one():
    exact = GaussianGuarantee(0.25)
    renyi = RenyiGuarantee(lambda a: a / 8, lambda a: a / 32)
    for rounds in (1, 10, 1000):
        assert 1 < renyi.epsilon(rounds, DELTA) / exact.epsilon(rounds, DELTA) < 1.12
        assert renyi.identified(rounds, 1e-3) >= exact.identified(rounds, 1e-3)


def pairs(spec):
    """Return the divergence between the codes of two values by the likelihood of attackers."""
    quantizer = parse_quantizer(spec)
    codes = torch.arange(quantizer.code_levels)
    likelihood = quantizer._likelihood(codes[:, None])

    def divergence(one, other, order):
        log_p, log_q = (
            likelihood.log_probability(torch.full((len(codes), 1), value).double())[:, 0].numpy()
            for value in (one, other)
        )
        return np.logaddexp.reduce(order * log_p + (1 - order) * log_q) / (order - 1)

    return quantizer, divergence


LEVELS = [
    "rqm:clip=1,margin=1,levels=16,keep=0.42",
    "rqm:clip=0.5,margin=0.1,levels=5,keep=0.8",
    "poisson_binomial:clip=1,trials=16,theta=0.25",
    "poisson_binomial:clip=3,trials=5,theta=0.01",
]


@pytest.mark.parametrize("spec", LEVELS)
@pytest.mark.parametrize("order", [1.5, 2, 8, 40])
def test_the_guarantee_of_levels_is_the_worst_divergence_between_two_values(spec, order):
    quantizer, divergence = pairs(spec)
    guarantee = quantizer.guarantee(1)
    values = np.linspace(-quantizer.clip, quantizer.clip, 13)
    worst = max(divergence(x, y, order) for x in values for y in values)
    assert worst <= guarantee.curve(order) * (1 + 1e-4)
    assert worst == pytest.approx(guarantee.curve(order), rel=1e-2)
    zero = max(divergence(x, 0.0, order) for x in values)
    assert zero == pytest.approx(guarantee.from_zero(order), rel=1e-2)
    assert quantizer.guarantee(300).curve(order) == pytest.approx(300 * guarantee.curve(order))


@pytest.mark.parametrize("spec", LEVELS)
def test_epsilon_of_levels_by_an_independent_conversion(spec):
    """The divergence between the ends by hand, then the conversion of Opacus and TF Privacy."""
    quantizer, divergence = pairs(spec)
    size, rounds = 50, 3
    orders = 1 + np.logspace(-4, 2.5, 400)
    clip = quantizer.clip
    epsilons = [
        size * rounds * divergence(clip, -clip, a)
        + math.log((a - 1) / a)
        - (math.log(DELTA) + math.log(a)) / (a - 1)
        for a in orders
    ]
    found = quantizer.guarantee(size).epsilon(rounds, DELTA)
    assert found == pytest.approx(min(epsilons), rel=1e-2)


@pytest.mark.parametrize(
    ("theta", "rounds", "exact"),
    [(0.25, 1, 17.5768), (0.25, 100, 1037.09), (0.02, 10, 4.39567), (0.02, 100, 18.1069)],
)
def test_poisson_binomial_epsilon_is_a_little_above_the_exact_one(theta, rounds, exact):
    """Exact figures of dp-accounting 0.6: privacy loss distributions of the two worst values."""
    spec = f"poisson_binomial:clip=1,trials=16,theta={theta}"
    found = parse_quantizer(spec).guarantee(1).epsilon(rounds, DELTA)
    assert exact * (1 - 1e-4) <= found <= 1.08 * exact


def test_signs_inherit_the_guarantee_of_their_noise():
    size, rounds = 100, 20
    specs = ["noisy_sign:clip=0.5,noise=4", "dp_gaussian:clip=0.5,noise=4"]
    specs += ["clip:norm=0.5+gaussian:sigma=2", "clip:norm=0.5+noisy_sign:clip=8,noise=0.25"]
    found = {parse_quantizer(s).guarantee(size).epsilon(rounds, DELTA) for s in specs}
    assert found == {GaussianGuarantee(0.25).epsilon(rounds, DELTA)}


@pytest.mark.parametrize("shift", [1, 5, 20])
@pytest.mark.parametrize("order", [2, 5, 16])
def test_skellam_divergence_bounds_the_exact_one(shift, order):
    variance = 100.0
    places = np.arange(-400, 401)
    own = np.log(ive(np.abs(places), variance))
    other = np.log(ive(np.abs(places - shift), variance))
    exact = np.logaddexp.reduce(order * own + (1 - order) * other) / (order - 1)
    bound = skellam_divergence(shift, shift, variance, order)
    assert exact <= bound <= (1.2 if shift < 20 else 2) * exact + 1e-3
    assert skellam_divergence(shift, shift, variance, order - 0.5) == pytest.approx(bound)


@pytest.mark.parametrize("name", ["skellam", "discrete_gaussian"])
def test_fine_integers_cost_hardly_more_than_the_gaussian(name):
    integers = parse_quantizer(f"{name}:clip=1,noise=5").guarantee(1000)
    exact = GaussianGuarantee(0.2).epsilon(1, DELTA)
    assert exact < integers.epsilon(1, DELTA) < 1.15 * exact
    coarse = parse_quantizer(f"{name}:clip=1,noise=5,bits=4").guarantee(1000)
    assert coarse.epsilon(1, DELTA) > 2 * integers.epsilon(1, DELTA)


def test_pure_privacy_is_bounded_by_its_epsilon():
    assert pure_guarantee(0.3, 0.15).epsilon(1, 1e-12) == pytest.approx(0.3, rel=0.3)
    laplace = parse_quantizer("clip:norm=1+laplace:scale=200")
    assert laplace.guarantee(100).curve(1e9) == pytest.approx(2 * 10 / 200)


@pytest.mark.parametrize(
    "spec",
    [
        "none",
        "sign",
        "stochastic:bits=4",
        "gaussian:sigma=1",
        "laplace:scale=1",
        "clip:norm=1",
        "clip:norm=1+sign",
        "clip:norm=1+topk:keep=0.1+gaussian:sigma=1",
        "topk:keep=0.1+dp_gaussian:clip=1,noise=1",
        "error_feedback(gaussian:sigma=1)",
    ],
)
def test_what_guarantees_nothing_says_so(spec):
    assert parse_quantizer(spec).guarantee(100) is None


def test_error_feedback_keeps_the_guarantee_of_what_clips_inside():
    inner = parse_quantizer("clip:norm=1+gaussian:sigma=1").guarantee(9)
    assert parse_quantizer("error_feedback(clip:norm=1+gaussian:sigma=1)").guarantee(9) == inner


def test_identification_is_bounded_by_chance_and_by_certainty():
    none = GaussianGuarantee(1e-9)
    assert none.identified(1, 1 / 1001) == pytest.approx(1 / 1001, rel=1e-3)
    assert GaussianGuarantee(100.0).identified(1, 1 / 1001) == pytest.approx(1)
    # Phi(Phi^-1(1/2) + 1): the likeliest of two updates, one deviation from a third.
    assert GaussianGuarantee(0.5).identified(4, 0.5) == pytest.approx(norm.cdf(1))
    assert RenyiGuarantee(lambda a: 1e9, lambda a: 1e9).identified(3, 0.1) == 1
