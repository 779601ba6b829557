"""Evidence held back: it prefers the truth to what fits noise, and chooses by it."""

from math import log

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fl_sim.coding.cell import Cell
from fl_sim.observed.evidence import BLOCKS, FOLDS, HeldBack, choose, nats
from fl_sim.quantizers import parse_quantizer
from fl_sim.updates.local_update import Layout, Segment, Update

LAYOUT = Layout((Segment("a", (64, 50)), Segment("b", (50,)), Segment("c", (8, 4, 5, 5))))
EVERY_LIKELIHOOD = {
    "exact": "none",
    "bounds": "uniform:bits=3",
    "no scale": "sign",
    "dropped": "topk:keep=0.2",
    "triangular": "stochastic:bits=2",
    "triangular, one norm": "qsgd:levels=4,norm=l2",
    "triangular, ternary": "terngrad",
    "gaussian": "gaussian:sigma=0.5",
    "laplace": "laplace:scale=0.5",
    "gaussian, clipped": "dp_gaussian:clip=50,noise=0.01",
    "rotated": "drive",
    "composed": "topk:keep=0.2+stochastic:bits=2",
}


def update(seed=0):
    return torch.randn(LAYOUT.size, generator=torch.Generator().manual_seed(seed))


def cell_of(spec, vector):
    quantizer = parse_quantizer(spec)
    generator = torch.Generator().manual_seed(1)
    return quantizer.cell(quantizer.encode(Update(vector, LAYOUT), generator))


def evidence(spec, cell, *candidates):
    hidden = HeldBack().elements(LAYOUT, cell.sizes)
    stacked = Cell.stack([cell] * len(candidates))
    return nats(stacked, hidden, torch.stack(candidates)).mean(dim=1)


@pytest.mark.parametrize("spec", EVERY_LIKELIHOOD.values(), ids=EVERY_LIKELIHOOD)
def test_what_fits_the_payload_loses_to_the_truth(spec):
    """The guess is what the attack is shown, noise included, and so fits it perfectly."""
    truth = update()
    cell = cell_of(spec, truth)
    shown = cell.without(HeldBack().elements(LAYOUT, cell.sizes))
    of_truth, of_fit = evidence(spec, cell, truth, shown.decoded)
    assert of_truth < of_fit


@pytest.mark.parametrize("spec", EVERY_LIKELIHOOD.values(), ids=EVERY_LIKELIHOOD)
def test_a_guess_nearer_to_the_truth_has_better_evidence(spec):
    truth, noise = update(), update(seed=2)
    levels = [truth + error * noise for error in (0.0, 0.3, 1.0, 3.0)]
    measured = evidence(spec, cell_of(spec, truth), *levels)
    assert measured.tolist() == sorted(measured.tolist())


def test_the_evidence_of_signs_guessed_at_random_is_a_coin_toss():
    measured = evidence("sign", cell_of("sign", update()), update(seed=3))
    assert float(measured) == pytest.approx(log(2), rel=0.02)


def test_the_evidence_of_the_truth_behind_gaussian_noise_is_that_of_the_noise():
    measured = evidence("", cell_of("gaussian:sigma=0.5", update()), update())
    assert float(measured) == pytest.approx(0.5, abs=0.1)  # mean of z^2 / 2


@pytest.mark.parametrize("spec", EVERY_LIKELIHOOD.values(), ids=EVERY_LIKELIHOOD)
def test_no_candidate_misfits_what_is_hidden(spec):
    cell = cell_of(spec, update())
    hidden = HeldBack().elements(LAYOUT, cell.sizes)
    candidate = update(seed=4)
    misfit = cell.without(hidden).misfit(candidate)
    assert (misfit[hidden] == 0).all()
    assert torch.equal(misfit[~hidden], cell.misfit(candidate)[~hidden])


def test_folds_are_a_tenth_of_each_matrix_and_cover_it_once():
    folds = torch.stack([HeldBack(fold).elements(LAYOUT, LAYOUT.sizes) for fold in range(FOLDS)])
    a, b, c = (piece.sum(dim=1).tolist() for piece in torch.split(folds, list(LAYOUT.sizes), 1))
    assert a == [320] * FOLDS
    assert b == [0] * FOLDS  # biases are shown whole
    assert c == [80] * FOLDS
    assert (folds.sum(dim=0) <= 1).all()


def test_behind_a_rotation_a_tenth_of_all_codes_is_hidden():
    cell = cell_of("drive", update())
    share = HeldBack().elements(LAYOUT, cell.sizes).float().mean()
    assert float(share) == pytest.approx(1 / FOLDS, rel=0.01)


def guesses(*means):
    """Evidence of guesses at victims, (guesses, victims), without any spread."""
    return torch.tensor(means).double()[:, :, None].expand(-1, -1, BLOCKS).clone()


def test_what_predicts_best_on_average_is_chosen_for_every_victim():
    measured = guesses([0.5, 0.5, 0.2], [0.4, 0.4, 0.3])
    spread = torch.linspace(-1, 1, BLOCKS).double()
    measured[0] += spread  # so that the third victim's difference is within its error
    assert choose(measured).tolist() == [1, 1, 1]


def test_a_victim_whose_own_evidence_is_clearly_apart_gets_its_own():
    assert choose(guesses([0.5, 0.5, 0.2], [0.1, 0.1, 0.3])).tolist() == [1, 1, 0]


def test_a_victim_without_the_common_guess_gets_another():
    measured = guesses([0.1, 0.1], [0.5, 0.5])
    measured[0, 1] = torch.inf
    assert choose(measured).tolist()[1] == 1


def test_a_search_that_fails_on_one_victim_is_chosen_for_the_others():
    measured = guesses([0.1, 0.1, 0.1, 9.0], [0.2, 0.2, 0.2, 0.2])
    measured[0, :3] += torch.linspace(-1, 1, BLOCKS).double()  # not clearly better for each alone
    assert choose(measured).tolist() == [0, 0, 0, 1]


@given(st.integers(0, 2**31), st.integers(1, 5), st.integers(1, 6))
def test_the_choice_predicts_at_least_as_well_as_any_single_guess(seed, count, victims):
    rng = torch.Generator().manual_seed(seed)
    measured = torch.rand(count, victims, BLOCKS, generator=rng, dtype=torch.float64)
    each = measured.mean(dim=2)
    taken = each.gather(0, choose(measured)[None]).mean()
    assert taken <= each.mean(dim=1).min() + 1e-12


def test_the_strongest_prior_within_one_standard_error_is_chosen():
    rng = torch.Generator().manual_seed(0)
    noise = torch.randn(4, 6, 16, generator=rng).double()
    noise -= noise.mean(dim=2, keepdim=True)  # means differ by the levels alone
    level = torch.tensor([0.0, 0.001, 0.002, 5.0])[:, None, None]
    close = level + 0.1 * noise
    assert set(choose(close, [1e-4, 1e-2, 1e-3, 1.0]).tolist()) == {1}  # the last is clearly worse
    assert set(choose(close, [float("nan"), 1e-2, 1e-3, 1.0]).tolist()) == {0}  # not comparable
