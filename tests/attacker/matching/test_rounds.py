from dataclasses import replace

import pytest
import torch

from attacker.choice import Suite, with_evidence
from attacker.matching.problems import Problems, client_groups
from attacker.presets import build_attack
from fl_sim.models import build_model
from fl_sim.quantizers import parse_quantizer
from fl_sim.updates.local_update import Layout, LocalWork, one_hot
from tests.attacker.observing import SPEC, digits, observe

FIXED = LocalWork(fixed_batch=True)


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
        cell = Problems.of(client_groups(seen, "averaged")).cell
        normalised = ((cell.center[0] - truth) / cell.step[0]).square().mean().sqrt()
        assert 0.5 < normalised < 1.2


def test_error_feedback_is_undone_by_summing():
    images, labels = digits(1)
    truth = parse_quantizer("none").decode(observe(images, labels)[0].payload).vector
    errors = []
    for rounds in (1, 8, 64):
        seen = observe(images, labels, "error_feedback(scaled_sign)", rounds=rounds)
        cell = Problems.of(client_groups(seen, "averaged")).cell
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


def moving(images, labels, quantizer, rounds=3, work=FIXED):
    """Return what a server sees of the same batches at weights that move from round to round."""
    seen = []
    for round_ in range(1, rounds + 1):
        module = build_model(SPEC, seed=round_)
        weights = Layout.of(module).flatten({k: p.detach() for k, p in module.named_parameters()})
        ones = observe(images, labels, quantizer, work, weights=weights)
        seen += [replace(one, round=round_) for one in ones]
    return seen


def test_rounds_at_different_weights_tell_more_than_one_of_them():
    images, labels = digits(6)
    seen = moving(images, labels, "sign", rounds=2)
    attack = build_attack("joint:iterations=150,restarts=0")
    single = build_attack("cell:iterations=150,restarts=0").reconstruct(seen[:6], seed=0)
    joint = attack.reconstruct(seen, seed=0)
    assert [(r.partition, r.round) for r in joint] == [(p, 2) for p in range(6)]
    assert error(joint, images) < 0.8 * error(single, images)


def test_a_joint_problem_has_a_cell_for_every_weights_it_was_seen_at():
    images, labels = digits(2)
    seen = moving(images, labels, "uniform:bits=2") + [
        replace(one, round=9) for one in moving(images, labels, "uniform:bits=2", rounds=1)
    ]
    problems = Problems.of(client_groups(seen, "joint"))
    assert [one.keys for one in problems.rounds] == [
        ((9, 0), (9, 1)),
        ((2, 0), (2, 1)),
        ((3, 0), (3, 1)),
    ]
    targets = one_hot(labels, SPEC.classes)[:, None]
    for one in problems.rounds:
        outside = one.cell.misfit(one.candidate(images[:, None], targets))
        assert outside.max() < 1e-6
    assert len(problems.select(torch.tensor([1])).rounds[0].cells) == 1


def test_the_loss_of_a_joint_problem_is_the_mean_over_its_weights():
    images, labels = digits(1)
    seen = moving(images, labels, "uniform:bits=2")
    spec = "cell:iterations=1,restarts=0,warmup=0,tv=0,box=0,floor=0"
    alone = [build_attack(spec).reconstruct([o], seed=0)[0] for o in seen]
    joint = build_attack(spec + ",grouping=joint").reconstruct(seen, seed=0)[0]
    start = joint.images
    targets = one_hot(joint.labels[None], SPEC.classes)
    losses = [
        Problems.of([[o]]).cell.misfit(Problems.of([[o]]).candidate(start[None], targets)).mean()
        for o in seen
    ]
    assert torch.equal(alone[-1].images, start)
    assert joint.loss == pytest.approx(float(torch.stack(losses).mean()), rel=1e-5)


@pytest.mark.parametrize("quantizer", ["uniform:bits=2", "stochastic:bits=2", "drive"])
def test_joint_rounds_apply_where_clients_repeat_their_images_and_weights_move(quantizer):
    images, labels = digits(2)
    attack = build_attack("joint")
    assert attack.applies(moving(images, labels, quantizer))
    assert not attack.applies(moving(images, labels, quantizer, work=LocalWork()))
    assert not attack.applies(moving(images, labels, quantizer, rounds=1))
    assert not attack.applies(moving(images, labels, "error_feedback(sign)"))


def test_the_suite_holds_a_guess_against_every_round_of_the_same_images():
    images, labels = digits(3)
    seen = moving(images, labels, "sign", rounds=2)
    single = build_attack("cell:iterations=150,restarts=0")
    joint = build_attack("joint:iterations=150,restarts=0")
    expected = with_evidence(joint).reconstruct(seen, seed=0)
    for members in ((single, joint), (joint, single)):
        found = Suite("suite", members).reconstruct(seen, seed=0)
        assert [(r.partition, r.round) for r in found] == [(o.partition, o.round) for o in seen]
        for one, alone in zip(found, expected, strict=True):
            assert torch.equal(one.images, alone.images)


def test_averaging_does_not_apply_where_rounds_may_show_other_images():
    images, labels = digits(2)
    seen = observe(images, labels, "stochastic:bits=2", LocalWork(), rounds=2)
    assert not build_attack("averaging").applies(seen)
