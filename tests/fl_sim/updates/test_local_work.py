"""What clients do with their images: as torch.optim.SGD, and as an attacker can compute it."""

from dataclasses import asdict, replace
from math import cos, pi

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fl_sim.models import ModelSpec, build_model
from fl_sim.observed.candidates import candidate_updates
from fl_sim.study.settings import Settings, SettingsError, parse_settings
from fl_sim.study.trials import trials_of
from fl_sim.updates.local_update import flat_model, local_update, one_hot
from fl_sim.updates.local_work import LocalWork, draw_orders

SPEC = ModelSpec("mlp:width=8", (2, 4, 4), 3)
MODEL = flat_model(SPEC)
SHARES = {
    "constant": lambda step, steps: 1.0,
    "linear": lambda step, steps: 1 - step / steps,
    "cosine": lambda step, steps: (1 + cos(pi * (step / steps))) / 2,
}


def normalised(channels, **facts):
    return LocalWork("delta", mean=(0.4, 0.5)[:channels], std=(0.25, 0.3)[:channels], **facts)


works = st.builds(
    normalised,
    channels=st.integers(0, 2),
    batch_size=st.integers(1, 3),
    learning_rate=st.sampled_from([0.05, 0.3]),
    local_steps=st.integers(1, 5),
    local_batches=st.integers(1, 2),
    momentum=st.sampled_from([0.0, 0.5, 0.9]),
    weight_decay=st.sampled_from([0.0, 5e-4, 0.1]),
    schedule=st.sampled_from(list(SHARES)),
    shuffled=st.booleans(),
)


def batch(work, seed=0):
    draw = torch.Generator().manual_seed(seed)
    images = torch.rand(work.images, *SPEC.shape, generator=draw)
    return images, torch.randint(SPEC.classes, (work.images,), generator=draw)


def initial():
    return MODEL.layout.flatten(dict(build_model(SPEC).named_parameters())).detach()


def trained_by_torch(work, images, labels, order):
    """Train as people write it: Normalize, a loop over batches, SGD, a scheduler."""
    module = build_model(SPEC)
    if work.mean:
        shape = (1, -1, 1, 1)
        mean, std = (torch.tensor(one).view(shape) for one in (work.mean, work.std))
        images = (images - mean) / std
    sgd = torch.optim.SGD(
        module.parameters(),
        lr=work.learning_rate,
        momentum=work.momentum,
        weight_decay=work.weight_decay,
    )
    share = SHARES[work.schedule]
    schedule = torch.optim.lr_scheduler.LambdaLR(sgd, lambda step: share(step, work.local_steps))
    done = 0
    for epoch in range(work.epochs):
        rows = torch.arange(len(images)) if order is None else order[epoch]
        for chosen in rows.split(work.batch_size)[: work.local_steps - done]:
            sgd.zero_grad()
            torch.nn.functional.cross_entropy(module(images[chosen]), labels[chosen]).backward()
            sgd.step()
            schedule.step()
            done += 1
    return torch.cat([p.detach().reshape(-1) for p in module.parameters()])


@given(works)
@settings(max_examples=60, deadline=None)
def test_a_client_trains_as_torchs_sgd_does_and_an_attacker_can_follow(work):
    images, labels = batch(work)
    order = draw_orders(work, torch.Generator().manual_seed(1))
    targets, weights = one_hot(labels, SPEC.classes), initial()
    moved = trained_by_torch(work, images, labels, order)
    sent = local_update(MODEL, work, weights, images, targets, order=order, eager=True)
    assert torch.equal(sent, weights - moved)
    orders = None if order is None else order[None]
    found = candidate_updates(MODEL, work, weights, images[None], targets[None], orders)[0]
    torch.testing.assert_close(found, sent, rtol=1e-4, atol=1e-6)


@given(works)
@settings(max_examples=30, deadline=None)
def test_the_reach_is_the_update_by_a_constant_gradient(work):
    velocity, moved = 0.0, 0.0
    for step in range(work.local_steps):
        velocity = work.momentum * velocity + 1
        moved += work.learning_rate * SHARES[work.schedule](step, work.local_steps) * velocity
    assert work.reach == pytest.approx(moved)
    assert LocalWork().reach == 1


def test_the_schedules_are_those_of_torch():
    sgd = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(sgd, T_max=4)
    expected = []
    for _ in range(4):
        expected.append(sgd.param_groups[0]["lr"])
        sgd.step()
        schedule.step()
    work = LocalWork("delta", learning_rate=0.3, local_steps=4, schedule="cosine")
    assert work.rates == pytest.approx(expected)
    assert replace(work, schedule="linear").rates == pytest.approx([0.3, 0.225, 0.15, 0.075])


def test_the_step_size_falls_from_round_to_round():
    work = LocalWork("delta", learning_rate=0.4, decay=0.5)
    assert work.in_round(1).rates == [0.4]
    assert work.in_round(3).rates == [0.1]
    assert work.in_round(3).in_round(3) == work.in_round(3)


@given(works)
@settings(max_examples=20, deadline=None)
def test_pixels_and_inputs_are_each_others_inverse(work):
    images, _ = batch(work)
    inputs = work.inputs(images)
    torch.testing.assert_close(work.pixels(inputs), images)
    assert (inputs is images) == (not work.mean)


def test_every_epoch_uses_each_image_once_in_an_order_of_its_own():
    work = LocalWork("delta", 2, local_steps=6, local_batches=3, shuffled=True)
    order = draw_orders(work, torch.Generator().manual_seed(0))
    assert order.shape == (2, 6)
    assert torch.equal(order.sort(dim=1).values, torch.arange(6).expand(2, 6))
    assert not torch.equal(order[0], order[1])
    assert draw_orders(replace(work, shuffled=False), torch.Generator()) is None


def test_facts_that_most_clients_do_not_depart_from_are_not_named():
    plain = LocalWork("delta", 4, 0.1, 2, 2)
    first = ["kind", "batch_size", "learning_rate", "local_steps", "local_batches", "fixed_batch"]
    assert list(plain.facts) == first
    rich = replace(plain, momentum=0.9, mean=(0.5,), std=(0.2,), shuffled=True)
    assert set(rich.facts) - set(first) == {"momentum", "mean", "std", "shuffled"}
    assert LocalWork(**rich.facts) == rich == LocalWork(**asdict(rich))


@pytest.mark.parametrize(
    "facts",
    [
        {"momentum": 1.0},
        {"weight_decay": -0.1},
        {"decay": 0.0},
        {"schedule": "steps"},
        {"kind": "gradient", "momentum": 0.9},
        {"mean": (0.5,)},
        {"mean": (0.5,), "std": (0.0,)},
    ],
)
def test_work_that_no_client_can_do_is_refused(facts):
    with pytest.raises(ValueError, match=r"\.$"):
        LocalWork(**({"kind": "delta"} | facts))


def test_settings_say_what_clients_do():
    training = {
        "update": "delta",
        "local_momentum": 0.9,
        "local_weight_decay": 1e-3,
        "local_schedule": "cosine",
        "local_decay": 0.99,
        "local_shuffle": True,
        "normalize_mean": "0.4,0.5,0.6",
        "normalize_std": "0.2,0.2,0.2",
    }
    work = parse_settings({"training": training}).training.work
    assert (work.momentum, work.weight_decay, work.decay) == (0.9, 1e-3, 0.99)
    assert (work.schedule, work.shuffled, work.mean) == ("cosine", True, (0.4, 0.5, 0.6))
    assert Settings().training.work == LocalWork()


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ({"training": {"local_momentum": 0.9}}, "local_momentum = 0.9: 0.0 with update = gradient"),
        ({"training": {"normalize_mean": [0.5]}}, "normalize_std = ''"),
        ({"training": {"normalize_mean": 0.5, "normalize_std": 0}}, "numbers above 0"),
    ],
)
def test_settings_of_no_client_are_refused_in_one_line(tree, message):
    with pytest.raises(SettingsError, match=message):
        parse_settings(tree)


def test_settings_that_are_not_used_leave_the_keys_of_runs_alone():
    (trial,) = trials_of(Settings(quantizers=("none",)))
    assert "momentum" not in trial.to_json()
    assert "local_momentum" not in Settings().training.facts
    assert {"rounds", "update", "local_steps"} <= set(Settings().training.facts)
