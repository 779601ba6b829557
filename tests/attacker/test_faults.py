"""Faults of released attack code that no other test here names; each must stay impossible."""

import inspect

import torch

from attacker.attack import Attack
from attacker.presets import build_attack
from tests.attacker.observing import digits, observe

SHORT = "cell:iterations=40,warmup=0,restarts=0"


def test_the_truth_is_not_among_the_arguments():
    allowed = {"self", "observations", "seed", "public", "progress"}
    assert set(inspect.signature(Attack.reconstruct).parameters) == allowed


def test_the_noise_of_a_randomized_quantizer_is_not_redrawn_while_attacking():
    images, labels = digits(2)
    seen = observe(images, labels, "stochastic:bits=2")
    torch.manual_seed(1)
    one = build_attack(SHORT).reconstruct(seen, seed=0)
    torch.manual_seed(2)
    other = build_attack(SHORT).reconstruct(seen, seed=0)
    assert all(torch.equal(a.images, b.images) for a, b in zip(one, other, strict=True))


def test_the_attack_uses_the_payload_not_the_update_behind_it():
    images, labels = digits(1)
    coarse = observe(images, labels, "uniform:bits=2")[0]
    exact = observe(images, labels)[0]
    coarse_guess, exact_guess = (
        build_attack("idlg").reconstruct([o], seed=0)[0] for o in (coarse, exact)
    )
    coarse_error, exact_error = (
        (guess.images[0] - images[0]).square().mean() for guess in (coarse_guess, exact_guess)
    )
    assert coarse_error > 100 * exact_error


def test_the_image_moves_from_its_start():
    images, labels = digits(2)
    seen = observe(images, labels, "sign")
    start = build_attack("cell:iterations=1,warmup=0,restarts=0").reconstruct(seen, seed=0)
    moved = build_attack(SHORT).reconstruct(seen, seed=0)
    for before, after in zip(start, moved, strict=True):
        assert after.loss < before.loss
        assert (after.images - before.images).abs().max() > 0.05


def test_the_global_random_state_is_neither_read_nor_changed():
    images, labels = digits(1)
    seen = observe(images, labels)
    torch.manual_seed(7)
    before = torch.random.get_rng_state()
    build_attack(SHORT).reconstruct(seen, seed=0)
    assert torch.equal(before, torch.random.get_rng_state())
