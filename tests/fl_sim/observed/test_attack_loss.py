import pytest
import torch

from fl_sim.coding.cell import Cell
from fl_sim.observed.attack_loss import OBJECTIVES, AttackLoss, floored, total_variation
from fl_sim.quantizers import parse_quantizer
from fl_sim.updates.local_update import Layout, Segment, Update

SIZES = (3, 2)
LAYOUT = Layout((Segment("w", (4,)),))


def cell_of(spec, update):
    """The cell of what a quantizer makes of an update."""
    quantizer = parse_quantizer(spec)
    return quantizer.cell(quantizer.encode(update, torch.Generator().manual_seed(0)))


def interval_cell(center, half=0.05):
    """A stack of cells of width 2 ``half`` around ``center`` ``(B, d)``."""
    step = torch.full_like(center, 2 * half)
    return Cell(center, center - half, center + half, step, SIZES)


@pytest.fixture
def center():
    return torch.tensor([[1.0, -2.0, 0.5, 0.1, -0.1], [3.0, 1.0, 1.0, -0.2, 0.4]])


IMAGES = torch.full((2, 1, 1, 4, 4), 0.5)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_a_perfect_candidate_has_no_match_loss(objective, center):
    match = AttackLoss(objective).match(center, interval_cell(center))
    assert torch.allclose(match, torch.zeros(2), atol=1e-6)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_a_worse_candidate_has_more_loss_and_problems_do_not_mix(objective, center):
    worse = center.clone()
    worse[1] = -worse[1]
    match = AttackLoss(objective).match(worse, interval_cell(center))
    assert match[0] < 1e-6 < match[1]


def test_squared_is_relative_to_the_update(center):
    loss = AttackLoss("squared")
    small = loss.match(center * 1.1e-6, interval_cell(center * 1e-6))
    assert torch.allclose(small, torch.full((2,), 0.01), rtol=1e-3)


def test_cosine_does_not_see_the_scale(center):
    assert torch.allclose(
        AttackLoss("cosine").match(5 * center, interval_cell(center)), torch.zeros(2), atol=1e-6
    )


def test_scaled_counts_steps(center):
    match = AttackLoss("scaled", floor=0.0).match(center + 0.3, interval_cell(center))
    assert torch.allclose(match, torch.full((2,), 9.0), rtol=1e-4)


def test_cell_asks_nothing_inside_the_cell(center):
    inside = AttackLoss("cell", floor=0.0).match(center + 0.049, interval_cell(center))
    outside = AttackLoss("cell", floor=0.0).match(center + 0.15, interval_cell(center))
    assert torch.equal(inside, torch.zeros(2))
    assert torch.allclose(outside, torch.ones(2), rtol=1e-4)


def test_the_floor_is_relative_to_each_tensor(center):
    cell = interval_cell(center, half=1e-9)
    step = floored(cell, 0.1).step
    rms = center[:, :3].square().mean(dim=1).sqrt()
    assert torch.allclose(step[:, 0], 0.1 * rms)
    assert (step[:, 4] < step[:, 0]).all()


def test_random_codes_of_tiny_numbers_reach_as_far_as_a_search_resolves():
    """A power of two tells tiny numbers apart that no search meets; none may outweigh the rest."""
    update = Update(torch.tensor([1.0, -1.0, 1e-5, -1e-5]), LAYOUT)
    cell = Cell.stack([cell_of("natural", update)])
    wide = floored(cell, 0.01)
    least = 0.01 * cell.center.square().mean().sqrt()
    assert torch.equal(wide.lower[:, :2], cell.lower[:, :2])
    assert torch.equal(wide.upper[:, :2], cell.upper[:, :2])
    assert torch.allclose(wide.upper[:, 2:] - cell.center[:, 2:], least)
    assert torch.allclose(cell.center[:, 2:] - wide.lower[:, 2:], least)
    missed = AttackLoss("cell").match(update.vector[None] + torch.tensor([0, 0, 1e-3, -1e-3]), cell)
    assert missed.item() < 1


def test_the_last_code_of_a_range_stays_closed():
    update = Update(torch.tensor([1.0, 0.5, 0.25, -1.0]), LAYOUT)
    cell = Cell.stack([cell_of("stochastic:bits=4", update)])
    wide = floored(cell, 0.5)
    assert not wide.opens_above[0, 0]
    assert wide.opens_below[0, 0]


def test_a_tensor_of_which_nothing_was_sent_takes_the_floor_of_the_whole(center):
    center[:, 3:] = 0
    step = floored(interval_cell(center, half=0.0), 0.1).step
    assert (step > 0).all()


def test_priors_are_weighted_and_per_problem():
    images = IMAGES.clone()
    images[1, ..., ::2] = 1.5
    loss = AttackLoss("squared", tv=2.0, box=4.0)
    prior = loss.prior(images)
    assert prior[0] < 0.01
    assert torch.allclose(prior[1], 2 * total_variation(images)[1] + 4 * torch.tensor(0.125))
    assert total_variation(images)[1] == pytest.approx(1.0, abs=2e-3)


def test_total_variation_is_differentiable_on_a_constant_image():
    images = IMAGES.clone().requires_grad_()
    total_variation(images).sum().backward()
    assert images.grad is not None
    assert torch.equal(images.grad, torch.zeros_like(images))


@pytest.mark.parametrize(
    "loss",
    [AttackLoss(), AttackLoss("cell", tv=1e-4, box=1.0), AttackLoss("scaled", floor=0.5)],
)
def test_spec_round_trip(loss):
    assert AttackLoss.parse(loss.spec) == loss


@pytest.mark.parametrize(
    ("spec", "fault"),
    [
        ("cel", r"objective=cel is not allowed; one of .*; did you mean 'cell'\?"),
        ("cell:tv=x", "tv=x is not a number"),
        ("cell:volume=1", "no parameter 'volume'; one of .*tv"),
        ("cell:tv=-1", "tv=-1 is not allowed; give 0 to"),
        ("cell:tv=1,tv=2", "tv is given twice"),
        ("cell:objective=cosine", "objective is given twice"),
        ("cell(sign)", "it wraps no other part"),
    ],
)
def test_a_bad_spec_is_refused(spec, fault):
    with pytest.raises(ValueError, match=fault):
        AttackLoss.parse(spec)


def picture(*channels):
    """One image of one batch, each channel a ramp of the given slope to the right."""
    ramp = torch.arange(8.0).expand(8, 8)
    return torch.stack([slope * ramp for slope in channels])[None, None]


def test_variation_in_hue_counts_three_times_that_in_brightness():
    grey = total_variation(picture(0.1, 0.1, 0.1))
    opposed = total_variation(picture(0.1, 0.0, -0.1))
    lengths = (3 * 0.1**2) ** 0.5, (2 * 0.1**2) ** 0.5
    assert float(opposed / grey) == pytest.approx(3 * lengths[1] / lengths[0], rel=0.02)


def test_the_variation_of_grey_pictures_is_that_of_their_pixels():
    assert float(total_variation(picture(0.1))) == pytest.approx(0.1 + 1e-3, rel=1e-3)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_what_is_hidden_does_not_count(objective, center):
    hidden = torch.arange(center.shape[-1]) % 10 == 3
    cell = interval_cell(center).without(hidden)
    changed = center + hidden * 5.0
    loss = AttackLoss(objective)
    assert torch.equal(loss.match(center, cell), loss.match(changed, cell))
