"""How far a candidate is from a cell: exact where it can be, and of use to an optimizer."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fl_sim.coding.cell import Cell
from fl_sim.quantizers import parse_quantizer
from fl_sim.updates.local_update import Layout, Segment, Update


def rounded(lower=-1.0, upper=2.0, step=1.0):
    """A cell of stochastic rounding to 0, with neighbours at the bounds."""
    values = (0.0, lower, upper, step)
    return Cell(*(torch.tensor([[value]]) for value in values), (1,), noise="triangular")


def at(cell, value):
    """Misfit at a value, and its slope."""
    candidate = torch.tensor([[value]], requires_grad=True)
    misfit = cell.misfit(candidate)
    (slope,) = torch.autograd.grad(misfit.sum(), candidate)
    return float(misfit), float(slope)


@pytest.mark.parametrize(("value", "share"), [(1.0, 0.5), (-0.5, 0.5), (1.6, 0.8)])
def test_rounding_at_random_costs_the_log_of_its_probability(value, share):
    misfit, _ = at(rounded(), value)
    expected = -torch.log(torch.tensor(1 - share))
    assert misfit == pytest.approx(float(expected), rel=1e-5)
    assert at(rounded(), 0.0)[0] == 0


@given(st.floats(-50, 50).filter(lambda value: abs(value) > 1e-3))
def test_the_slope_leads_back_to_the_code_from_everywhere(value):
    misfit, slope = at(rounded(), value)
    assert 0 < misfit < 1e6
    assert slope * value > 0


def test_a_rounding_error_at_the_end_of_a_range_is_no_wall():
    exact, slightly_off = rounded(upper=0.0), rounded(upper=1e-9)
    assert at(slightly_off, 0.1) == pytest.approx(at(exact, 0.1))


@pytest.mark.parametrize("spec", ["terngrad", "stochastic:bits=2", "laplace:scale=0.1"])
def test_gradients_are_finite_and_not_zero_where_most_elements_lie(spec):
    layout = Layout((Segment("w", (40, 50)),))
    generator = torch.Generator().manual_seed(0)
    vector = torch.randn(layout.size, generator=generator)
    quantizer = parse_quantizer(spec)
    cell = quantizer.cell(quantizer.encode(Update(vector, layout), generator))
    candidate = vector.clone().requires_grad_()
    cell.misfit(candidate).sum().backward()
    assert candidate.grad.isfinite().all()
    assert (candidate.grad != 0).float().mean() > 0.9
