"""Faults found in released attack code; each must stay impossible."""

import ast
import inspect
from pathlib import Path

import pytest
import torch

from attacker.attack import Attack
from attacker.choice import Suite
from attacker.matching.matching import Matching
from attacker.plugins import PluginAttack
from attacker.presets import build_attack
from results.scores.scoring import score_batch
from tests.attacker.observing import digits, observe

SHORT = "cell:iterations=40,warmup=0,restarts=0"

TESTS = Path(__file__).parent.parent
FAULTS = {
    "joint labels: the random start is returned": (
        "attacker/matching/test_matching.py",
        "test_the_joint_attack_returns_the_label_it_optimised_not_the_one_it_started_from",
    ),
    "best iterate off by one: the loss before a step, the picture after it": (
        "attacker/matching/test_optimizers.py",
        "test_the_loss_returned_is_that_of_the_point_returned",
    ),
    "restarts chosen by distance to the truth": (
        "attacker/matching/test_matching.py",
        "test_restarts_are_chosen_by_attack_loss",
    ),
    "assignment applied in the wrong direction": (
        "results/scores/test_scoring.py",
        "test_a_perfect_batch_in_another_order_scores_zero_and_hits_every_label",
    ),
    "converged reported for a large loss": (
        "attacker/matching/test_matching.py",
        "test_a_poor_run_is_stalled_never_converged",
    ),
    "mean over runs that diverged": (
        "results/test_run_report.py",
        "test_an_attack_that_diverged_is_counted_not_averaged",
    ),
    "PSNR of unclamped pixels": (
        "results/scores/test_scoring.py",
        "test_clamping_beforehand_changes_nothing_and_scores_stay_in_range",
    ),
    "PSNR on another scale": (
        "results/scores/test_scoring.py",
        "test_psnr_agrees_with_scikit_image_and_is_capped",
    ),
    "bytes of a picture wrap around": (
        "results/figures/test_gallery.py",
        "test_pictures_are_clamped_before_they_become_bytes",
    ),
    "the mean absolute error reported as MSE": (
        "attacker/test_faults.py",
        "test_the_mse_is_that_of_the_pixels_neither_absolute_nor_the_loss_of_the_attack",
    ),
    "the attack's loss reported as MSE": (
        "attacker/test_faults.py",
        "test_the_mse_is_that_of_the_pixels_neither_absolute_nor_the_loss_of_the_attack",
    ),
    "noise redrawn at every evaluation": (
        "attacker/test_faults.py",
        "test_the_noise_of_a_randomized_quantizer_is_not_redrawn_while_attacking",
    ),
    "the unquantized update attacked by a mix-up": (
        "attacker/test_faults.py",
        "test_the_attack_uses_the_payload_not_the_update_behind_it",
    ),
    "running mean over clients with a fixed 1 / N": (
        "server/strategies/test_strategy.py",
        "test_a_reply_that_cannot_be_used_is_dropped_counted_and_reported",
    ),
    "a picture that never required a gradient": (
        "attacker/test_faults.py",
        "test_the_image_moves_from_its_start",
    ),
    "exceptions swallowed": (
        "attacker/matching/test_matching.py",
        "test_one_broken_payload_does_not_lose_the_others",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_every_fault_has_its_test(fault):
    file, name = FAULTS[fault]
    tree = ast.parse((TESTS / file).read_text(encoding="utf-8"))
    assert name in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


def test_the_mse_is_that_of_the_pixels_neither_absolute_nor_the_loss_of_the_attack():
    images, labels = digits(1)
    (found,) = build_attack(SHORT).reconstruct(observe(images, labels, "sign"), seed=0)
    scores = score_batch(found.images, found.labels, images, labels)
    difference = found.images.clamp(0, 1) - images
    assert scores["mse"].item() == pytest.approx(float(difference.square().mean()), rel=1e-5)
    assert scores["mse"].item() != pytest.approx(float(difference.abs().mean()), rel=0.1)
    assert scores["mse"].item() != pytest.approx(found.loss, rel=0.1)


def test_the_truth_is_not_among_the_arguments():
    allowed = {"self", "observations", "seed", "public", "progress", "device"}
    for kind in (Attack, Matching, PluginAttack, Suite):
        assert set(inspect.signature(kind.reconstruct).parameters) == allowed


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
