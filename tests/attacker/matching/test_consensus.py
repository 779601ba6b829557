"""Several guesses at each image: those of a group of starts, and those of a client's epochs."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from attacker.matching.candidates import Candidates
from attacker.matching.consensus import agreed, merged
from attacker.matching.problems import Problems
from attacker.presets import build_attack, suite
from fl_sim.seeding import Purpose, torch_rng
from fl_sim.updates.local_update import LocalWork, one_hot
from fl_sim.updates.local_work import draw_orders
from results.scores.scoring import score_batches
from tests.attacker.observing import digits, observe

WORK = LocalWork("delta", 4, 0.1, 6, 2, shuffled=True)  # three epochs of two batches


@settings(deadline=None, max_examples=25)
@given(st.integers(1, 4), st.integers(1, 5), st.integers(0, 2**16))
def test_guesses_in_any_order_agree_on_their_mean(guesses, size, seed):
    rng = torch.Generator().manual_seed(seed)
    truth = torch.rand(2, size, 3, 4, 4, generator=rng)
    targets = one_hot(torch.randint(3, (2, size), generator=rng), 3)
    own = torch.stack(
        [torch.stack([torch.randperm(size, generator=rng) for _ in range(guesses)]) for _ in "12"]
    )
    noise = 0.01 * torch.randn(2, guesses, size, 3, 4, 4, generator=rng)
    images = torch.stack([truth[b][own[b]] + noise[b] for b in range(2)])
    labels = torch.stack([targets[b][own[b]] for b in range(2)])
    mean, mean_targets = merged(images, labels)
    assert torch.equal(mean_targets, labels[:, 0])
    assert torch.allclose(mean, images[:, 0], atol=0.1)
    back = torch.stack([noise[b, k][own[b, k].argsort()] for b in (0, 1) for k in range(guesses)])
    expected = truth + back.view(2, guesses, *truth.shape[1:]).mean(dim=1)
    assert torch.allclose(mean, torch.stack([expected[b][own[b, 0]] for b in (0, 1)]), atol=1e-5)
    each = agreed(images, labels)
    assert torch.allclose(each, torch.stack([expected[b][own[b]] for b in range(2)]), atol=1e-5)


def test_images_of_other_labels_are_never_taken_for_one():
    images = torch.rand(1, 2, 2, 1, 4, 4)
    images[0, 1] = images[0, 0].flip(0)  # whose pixels say that the order is reversed
    targets = torch.eye(2).expand(1, 2, 2, 2)
    assert torch.equal(merged(images, targets)[0][0], images[0].mean(dim=0))


def test_the_true_images_in_the_order_of_every_epoch_explain_what_was_sent():
    """Without the order they do not: that is what images of their own for each epoch are for."""
    images, labels = digits(8)
    (seen,) = observe(images, labels, work=WORK)
    problems, targets = Problems.of([[seen]]), one_hot(labels, 10)
    order = draw_orders(WORK, torch_rng(0, Purpose.ORDER, 1, 0)).flatten()
    update = problems.candidate(images[order][None], targets[order][None])
    assert torch.allclose(update, problems.cell.decoded, atol=1e-6)
    fixed = problems.candidate(images[None], targets[None])
    assert (fixed - update).norm() > 0.01 * update.norm()


@pytest.mark.parametrize(("steps", "whole"), [(3, 1), (5, 2), (6, 3)])
def test_the_mean_is_over_whole_epochs_which_use_all_images(steps, whole):
    images, labels = digits(8)
    problems = Problems.of([observe(images, labels, work=replace(WORK, local_steps=steps))])
    candidates = Candidates(problems, images[None], False, one_hot(labels, 10)[None], None)
    candidates = candidates.repeated(problems.work.epochs)
    points = candidates.start_points()
    moved = points.unflatten(1, (problems.work.epochs, -1))
    moved += torch.arange(problems.work.epochs)[:, None]
    found, targets = candidates.merged(moved.flatten(1))
    assert torch.allclose(found[0], images + sum(range(whole)) / whole, atol=1e-5)
    assert torch.equal(targets[0], one_hot(labels, 10))


def test_images_of_their_own_for_each_epoch_apply_where_the_order_is_not_known():
    images, labels = digits(8)
    attack = build_attack("free_order")
    assert attack.applies(observe(images, labels, work=WORK))
    for other in ({"shuffled": False}, {"local_steps": 2}, {"batch_size": 8, "local_batches": 1}):
        work = replace(WORK, **other)
        assert not attack.applies(observe(images, labels, work=work))


def test_where_clients_shuffle_a_free_order_finds_more():
    images, labels = digits(16)
    seen = observe(images, labels, work=WORK)
    truth = images.unflatten(0, (2, 8)), labels.unflatten(0, (2, 8))

    def error(name):
        attack = build_attack(f"{name}:tv=0.001,restarts=0,iterations=40,warmup=20")
        made = attack.reconstruct(seen, seed=0)
        found = torch.stack([r.images for r in made]), torch.stack([r.labels for r in made])
        assert found[0].shape == truth[0].shape
        return score_batches(*found, *truth)["mse"].mean()

    assert error("free_order") < error("cell")


def test_a_suite_tries_a_free_order_and_continues_from_what_it_found():
    images, labels = digits(16)
    seen = observe(images, labels, work=WORK)
    short = "restarts=0,iterations=20,warmup=10"
    found = suite(f"cell:tv=0.001,{short}", f"free_order:tv=0.001,{short}").reconstruct(
        seen, seed=0
    )
    assert [one.images.shape for one in found] == [images[:8].shape] * 2
    assert all(len(one.others) == 1 and one.evidence for one in found)


def test_a_group_returns_the_least_loss_and_its_members_come_closer():
    images, labels = digits(16)
    seen = observe(images, labels, work=LocalWork(batch_size=8))
    short = "tv=0.001,iterations=30,warmup=0"
    one = build_attack(f"cell:{short},restarts=0").reconstruct(seen, seed=0)
    alone = build_attack(f"group:{short},consensus=0").reconstruct(seen, seed=0)
    together = build_attack(f"group:{short}").reconstruct(seen, seed=0)
    for single, best in zip(one, alone, strict=True):
        assert best.loss <= single.loss
        assert best.evaluations == 4 * single.evaluations
    assert not any(torch.equal(a.images, b.images) for a, b in zip(alone, together, strict=True))
    one_by_one = build_attack(f"group:{short},batch=4").reconstruct(seen, seed=0)
    for a, b in zip(together, one_by_one, strict=True):
        assert (a.images - b.images).square().mean() < 1e-3


def test_whole_batches_that_are_not_quantized_are_found_better_by_a_group():
    images, labels = digits(16)
    seen = observe(images, labels, work=LocalWork(batch_size=8))
    truth = images.unflatten(0, (2, 8)), labels.unflatten(0, (2, 8))

    def error(spec):
        made = build_attack(spec).reconstruct(seen, seed=0)
        found = torch.stack([r.images for r in made]), torch.stack([r.labels for r in made])
        return score_batches(*found, *truth)["mse"].mean()

    assert error("group:tv=0.001,restarts=0") < error("cell:tv=0.001,restarts=3")
