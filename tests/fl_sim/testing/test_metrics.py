"""The check of metrics finds what is broken."""

from itertools import count

import numpy as np
import pytest

from fl_sim import register
from fl_sim.testing import ContractError, check_metric

_numbers = count()


def error(images, truth):
    return ((images - truth) ** 2).mean((1, 2, 3))


def one_number(images, truth):
    return error(images, truth).mean()


def each_pixel(images, truth):
    return (images - truth) ** 2


def logarithm(images, truth):
    with np.errstate(divide="ignore"):
        return np.log(error(images, truth))


def of_the_batch(images, truth):
    return error(images, truth) * len(images)


def raises(images, truth):
    raise ArithmeticError


def drawn(images, truth):
    return error(images, truth) * np.random.default_rng().random(len(images))


def drawn_globally(images, truth):
    return error(images, truth) * np.random.random(len(images))


BROKEN = {
    one_number: r"returned shape \(\) for 4 images",
    each_pixel: r"returned shape \(4, 1, 8, 8\) for 4 images",
    logarithm: "returned -inf",
    of_the_batch: "the score of a pair depends on the other pairs",
    raises: "raised ArithmeticError",
    drawn: "the same images are scored differently",
    drawn_globally: "changes the global random state of NumPy",
}


def registered(score, higher_is_better=False):
    def metric(images, truth):
        return score(images, truth)

    metric.higher_is_better = higher_is_better
    name = f"broken{next(_numbers)}"
    register("metric", name)(metric)
    return name


def test_a_metric_that_keeps_all_promises_passes():
    check_metric(registered(error))
    check_metric(registered(lambda images, truth: -error(images, truth), higher_is_better=True))


@pytest.mark.parametrize("score", BROKEN, ids=lambda score: score.__name__)
def test_what_is_broken_is_named(score):
    name = registered(score)
    with pytest.raises(ContractError, match=BROKEN[score]) as caught:
        check_metric(name)
    assert name in str(caught.value)


def test_the_wrong_direction_is_found():
    with pytest.raises(ContractError, match="is higher_is_better = True right"):
        check_metric(registered(error, higher_is_better=True))
    with pytest.raises(ContractError, match="must have an attribute higher_is_better"):
        check_metric(registered(error, higher_is_better=None))
