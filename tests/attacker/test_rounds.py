import pytest
import torch

from attacker.presets import build_attack
from attacker.problems import Problems, bundles
from fl_sim.quantizers import parse_quantizer
from tests.attacker.observing import digits, observe


def error(reconstructions, images):
    pairs = zip(reconstructions, images, strict=True)
    return torch.stack([(r.images[0] - i).square().mean() for r, i in pairs]).median()


def test_averaging_gives_one_reconstruction_a_client_tagged_with_its_last_round():
    images, labels = digits(3)
    seen = observe(images, labels, "stochastic:bits=2", rounds=4)
    found = build_attack("averaging:iterations=5,restarts=0").reconstruct(seen, seed=0)
    assert [(r.partition, r.round) for r in found] == [(0, 4), (1, 4), (2, 4)]


def test_averaging_sixteen_random_roundings_beats_one():
    images, labels = digits(4)
    seen = observe(images, labels, "stochastic:bits=2", rounds=16)
    single = build_attack("scaled").reconstruct(
        observe(images, labels, "stochastic:bits=2"), seed=0
    )
    averaged = build_attack("averaging").reconstruct(seen, seed=0)
    assert error(averaged, images) < 0.5 * error(single, images)


def test_the_error_of_the_merged_cell_falls_with_the_root_of_the_rounds():
    images, labels = digits(1)
    truth = parse_quantizer("none").decode(observe(images, labels)[0].payload).vector
    for rounds in (4, 64):
        seen = observe(images, labels, "stochastic:bits=3", rounds=rounds)
        cell = Problems.of(bundles(seen)).cell
        normalised = ((cell.center[0] - truth) / cell.step[0]).square().mean().sqrt()
        assert 0.5 < normalised < 1.2


def test_error_feedback_is_undone_by_summing():
    images, labels = digits(1)
    truth = parse_quantizer("none").decode(observe(images, labels)[0].payload).vector
    errors = []
    for rounds in (1, 8, 64):
        seen = observe(images, labels, "error_feedback(scaled_sign)", rounds=rounds)
        cell = Problems.of(bundles(seen)).cell
        errors.append(float((cell.center[0] - truth).norm() / truth.norm()))
    assert errors[1] < errors[0]
    assert errors[2] < errors[1] / 3


@pytest.mark.parametrize("quantizer", ["none", "uniform:bits=4"])
def test_averaging_does_not_apply_where_rounds_add_nothing(quantizer):
    images, labels = digits(2)
    attack = build_attack("averaging")
    assert not attack.applies(observe(images, labels, quantizer, rounds=3))
    assert not attack.applies(observe(images, labels, "stochastic:bits=2"))
    assert attack.applies(observe(images, labels, "stochastic:bits=2", rounds=2))
