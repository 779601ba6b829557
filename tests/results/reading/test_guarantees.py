"""What is guaranteed of a run: counted over the payloads that depend on a victim."""

from collections import Counter

import numpy as np
import pandas as pd
import pytest
import torch

from fl_sim.coding.transforms import ClipToNorm
from fl_sim.data import private_batch
from fl_sim.observed.observations import Observation
from fl_sim.privacy.accountant import GaussianGuarantee
from fl_sim.quantizers import parse_quantizer
from fl_sim.study.settings import DataSettings
from fl_sim.study.trials import Trial
from fl_sim.updates.local_update import LocalWork, Update, flat_model, local_update, one_hot
from results.reading.guarantees import epsilon_of, identified_bound, mse_bound, rounds_of
from results.scores.rows import VICTIM
from results.scores.scoring import chance_to_identify, identification_rank
from results.tables.verdicts import guaranteed, starred, verdict

DATA = DataSettings(limit=60, clients=4)
SPEC = "clip:norm=1+gaussian:sigma=4"


def trial(**work):
    return Trial(SPEC, 0, "lenet", DATA, LocalWork(**work))


def victims(*rows):
    found = pd.DataFrame(rows, columns=VICTIM)
    return found.assign(cohort=found["partition"])


def test_epsilon_counts_every_round_and_is_missing_without_a_guarantee():
    assert epsilon_of(SPEC, 10, 9, 1e-5) == GaussianGuarantee(0.25).epsilon(9, 1e-5)
    assert np.isnan(epsilon_of("stochastic:bits=4", 10, 9, 1e-5))


def test_rounds_of_a_victim_are_those_in_which_its_image_is_drawn():
    one, rounds = trial(batch_size=3), 12
    seen = Counter()
    for server_round in range(1, rounds + 1):
        images, _ = private_batch(one.federation, one.work, 2, server_round)
        seen.update(image.numpy().tobytes() for image in images)
    images, _ = private_batch(one.federation, one.work, 2, 5)
    expected = [seen[image.numpy().tobytes()] for image in images]
    assert rounds_of(one, rounds, victims(*((0, 5, 2, i) for i in range(3)))) == expected
    assert max(expected) > 1
    fixed = trial(batch_size=1, fixed_batch=True)
    assert rounds_of(fixed, rounds, victims((0, 5, 2, 0))) == [rounds]


def test_the_bound_on_identification_is_that_of_the_rounds_and_the_chance():
    one = trial(fixed_batch=True)
    gallery = one.federation.splits.public.pixels()
    images, _ = private_batch(one.federation, one.work, 1, 1)
    chance = float(chance_to_identify(images, gallery)[0])
    exact = GaussianGuarantee(0.25).identified(9, chance)
    found = identified_bound(SPEC, 10, 9, victims((0, 1, 1, 0)), [one])
    assert found == pytest.approx(exact)
    assert np.isnan(identified_bound("sign", 10, 9, victims((0, 1, 1, 0)), [one]))
    carried = identified_bound(
        f"error_feedback({SPEC})", 10, 9, victims((0, 1, 1, 0)), [trial(batch_size=1)]
    )
    assert carried == pytest.approx(exact)


def test_images_of_a_batch_share_the_guesses_of_a_blind_attacker():
    one = trial(batch_size=3, fixed_batch=True)
    found = identified_bound(SPEC, 10, 1, victims((0, 1, 1, 0)), [one])
    images, _ = private_batch(one.federation, one.work, 1, 1)
    chance = 3 * float(chance_to_identify(images, one.federation.splits.public.pixels())[0])
    assert found == pytest.approx(GaussianGuarantee(0.25).identified(1, chance))


def test_a_blind_guess_identifies_as_often_as_chance_says():
    rng = np.random.default_rng(0)
    everyone = rng.random((13, 1, 2, 2))
    everyone[1] = everyone[0]  # a copy
    blind = rng.random((1, 1, 2, 2))
    ranks, chances = [], []
    for own in range(13):
        others = np.delete(everyone, own, axis=0)
        ranks.append(int(identification_rank(blind, everyone[own : own + 1], others)[0]))
        images = torch.tensor(everyone[own : own + 1]), torch.tensor(others)
        chances.append(float(chance_to_identify(*images)[0]))
    assert sum(rank == 1 for rank in ranks) <= sum(chances) + 1e-9
    assert sorted(set(chances)) == pytest.approx([1 / 13, 2 / 13])


def observed(spec, seed=0, **work):
    one = trial(**work)
    model = flat_model(one.model_spec)
    weights = 0.2 * torch.randn(model.layout.size, generator=torch.Generator().manual_seed(seed))
    images, labels = private_batch(one.federation, one.work, 0, 1)
    vector = local_update(model, one.work, weights, images, one_hot(labels, 10))
    payload = parse_quantizer(spec).encode(
        Update(vector, model.layout), torch.Generator().manual_seed(1)
    )
    return Observation("t", 1, 0, one.model_spec, one.work, weights, payload)


@pytest.mark.slow
def test_the_bound_on_the_error_falls_with_less_noise_and_with_more_rounds():
    public = trial().federation.splits.public
    loud, quiet = (mse_bound(public, [[observed(f"gaussian:sigma={s}")]]) for s in (1, 0.1))
    assert 0 < quiet < loud
    twice = [[observed("gaussian:sigma=1", seed, fixed_batch=True)] for seed in (0, 1)]
    assert mse_bound(public, twice) < max(mse_bound(public, [one]) for one in twice)
    signs = mse_bound(public, [[observed("noisy_sign:clip=1000,noise=0.001")]])
    assert signs == pytest.approx(loud)  # the noise is the same, and nothing is clipped


@pytest.mark.parametrize("spec", ["sign", "laplace:scale=1", "error_feedback(gaussian:sigma=1)"])
def test_other_quantizers_have_no_bound_on_the_error(spec):
    public = trial().federation.splits.public
    assert np.isnan(mse_bound(public, [[observed(spec)]]))
    assert np.isnan(mse_bound(public, [[observed("gaussian:sigma=1", batch_size=2)]]))


def test_a_transform_of_an_observation_is_its_clipping():
    assert observed("clip:norm=2+gaussian:sigma=1").cell.transform == ClipToNorm(2)


ROW = {
    "success_rate": 0.0,
    "identified_rate": 0.05,
    "identified_chance": 0.01,
    "mse_median": 0.2,
    "baseline_mse": 0.1,
    "established": False,
}


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"identified_bound": 0.109}, "bounded"),
        ({"identified_bound": 0.11}, "not established"),
        ({"identified_bound": np.nan}, "not established"),
        ({"identified_bound": 0.11, "established": True}, "nothing found"),
        ({"identified_bound": 0.05, "mse_median": 0.09}, "partly leaks"),
    ],
)
def test_bounded_is_what_no_attack_can_change(change, word):
    row = pd.Series(ROW | change)
    assert verdict(row) == word
    assert starred(row.copy().__class__({**row, "verdict": word})).endswith("*") == (
        word in ("not established", "partly leaks")
    )


def test_the_table_says_what_epsilon_means_only_where_there_is_one():
    table = pd.DataFrame({"epsilon": [np.nan, 3.0], "delta": [np.nan, 1e-5]})
    assert "at delta 1e-05" in guaranteed(table)
    assert guaranteed(table[:1]) == guaranteed(table.drop(columns="epsilon")) == ""
