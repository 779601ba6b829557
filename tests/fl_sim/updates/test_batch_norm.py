"""Networks with BatchNorm in training mode: what clients send, and what candidates would have."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from fl_sim.models import ModelSpec, build_model, register_model
from fl_sim.observed.candidates import candidate_replies, candidate_updates
from fl_sim.updates.batch_norm import couples_images, fewest_values
from fl_sim.updates.differentiable import check_differentiable
from fl_sim.updates.example_gradients import supports
from fl_sim.updates.local_update import (
    convolutions_for,
    flat_model,
    local_reply,
    one_hot,
    statistics_of_model,
)
from fl_sim.updates.local_work import LocalWork, draw_orders

SHAPE = (2, 4, 4)


class Tiny(nn.Module):
    """A convolution and a linear layer, each with BatchNorm, and a skip connection."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(2, 4, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(4)
        self.linear = nn.Linear(64, 6)
        self.last_norm = nn.BatchNorm1d(6, momentum=0.3)
        self.head = nn.Linear(6, 3)

    def forward(self, images):
        hidden = torch.relu(self.norm(self.conv(images)))
        hidden = hidden + images.mean(dim=1, keepdim=True)
        return self.head(torch.tanh(self.last_norm(self.linear(hidden.flatten(1)))))


register_model("tiny_bn", Tiny)
SPEC = ModelSpec("tiny_bn", SHAPE, 3)
MODEL = flat_model(SPEC)


def initial():
    return MODEL.layout.flatten(dict(build_model(SPEC).named_parameters())).detach()


def batch(work, clients=1):
    draw = torch.Generator().manual_seed(0)
    images = torch.rand(clients, work.images, *SHAPE, generator=draw)
    labels = torch.randint(3, (clients, work.images), generator=draw)
    return images, one_hot(labels, 3)


def trained_by_torch(work, images, targets, order, module=None, model=MODEL):
    """Return weights and running statistics after training as people write it."""
    module = build_model(SPEC) if module is None else module
    images = (images - work.mean[0]) / work.std[0] if work.mean else images
    sgd = torch.optim.SGD(
        module.parameters(), work.learning_rate, work.momentum, weight_decay=work.weight_decay
    )
    done = 0
    for epoch in range(work.epochs):
        rows = torch.arange(len(images)) if order is None else order[epoch]
        for chosen in rows.split(work.batch_size)[: work.local_steps - done]:
            sgd.zero_grad()
            with convolutions_for(images[chosen]):  # the kernels that clients choose
                nn.functional.cross_entropy(module(images[chosen]), targets[chosen]).backward()
            sgd.step()
            done += 1
    buffers = dict(module.named_buffers())
    return (
        torch.cat([p.detach().reshape(-1) for p in module.parameters()]),
        torch.cat([buffers[name] for name, _ in model.statistics.segments]),
    )


@given(
    steps=st.integers(1, 4),
    momentum=st.sampled_from([0.0, 0.9]),
    weight_decay=st.sampled_from([0.0, 0.01]),
    mean=st.sampled_from([(), (0.4,)]),
    shuffled=st.booleans(),
)
@settings(max_examples=15, deadline=None)
def test_client_and_candidate_send_the_same_with_everything_that_people_use(
    steps, momentum, weight_decay, mean, shuffled
):
    work = LocalWork(
        "delta",
        3,
        0.1,
        steps,
        2,
        momentum=momentum,
        weight_decay=weight_decay,
        shuffled=shuffled,
        mean=mean,
        std=mean,
    )
    (images,), (targets,) = batch(work)
    order = draw_orders(work, torch.Generator().manual_seed(1))
    weights, sent = initial(), MODEL.initial_statistics
    given_ = (MODEL, work, weights, sent, images, targets)
    client = local_reply(*given_, order=order, eager=True)
    moved, statistics = trained_by_torch(work, images, targets, order)
    assert torch.equal(client.update, weights - moved)
    assert torch.equal(client.statistics, sent - statistics)
    attacker = local_reply(*given_, order=order)
    # A bias before BatchNorm has no gradient but for rounding: its digits are noise.
    torch.testing.assert_close(attacker.update, client.update, rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(attacker.statistics, client.statistics, rtol=1e-4, atol=1e-5)


def test_a_candidate_of_a_resnet_18_sends_what_training_as_people_write_it_gives():
    """In double precision: BatchNorm and ReLU magnify rounding errors from step to step."""
    spec = ModelSpec("resnet18:norm=batch", (1, 8, 8), 10)
    model, draw = flat_model(spec), torch.Generator().manual_seed(0)
    images, labels = torch.rand(8, 1, 8, 8, generator=draw), torch.randint(10, (8,), generator=draw)
    images, targets = images.double(), one_hot(labels, 10).double()
    work = LocalWork("delta", 4, 0.05, 2, 2, momentum=0.9, weight_decay=5e-4, shuffled=True)
    order = draw_orders(work, draw)
    module = build_model(spec).double()
    weights = model.layout.flatten(dict(module.named_parameters())).detach().clone()
    sent = model.initial_statistics.double()
    with torch.no_grad():
        found = local_reply(model, work, weights, sent, images, targets, order=order)
    moved, statistics = trained_by_torch(work, images, targets, order, module, model)
    for mine, own in zip(found, (weights - moved, sent - statistics), strict=True):
        assert (mine - own).norm() < 1e-6 * own.norm()


def test_the_statistics_of_one_victim_do_not_depend_on_the_others():
    work = LocalWork(batch_size=3)
    images, targets = batch(work, clients=4)
    weights, sent = initial(), MODEL.initial_statistics
    together = candidate_replies(MODEL, work, weights, sent, images.requires_grad_(), targets)
    assert torch.equal(together.update, candidate_updates(MODEL, work, weights, images, targets))
    for number in range(4):
        pair = images[number].detach(), targets[number]
        alone = local_reply(MODEL, work, weights, sent, *pair, eager=True)
        torch.testing.assert_close(together.update[number], alone.update, rtol=1e-3, atol=1e-5)
        torch.testing.assert_close(together.statistics[number], alone.statistics)
    (slope,) = torch.autograd.grad(together.statistics[1].square().sum(), images)
    assert slope[1].abs().amax() > 0
    assert not slope[[0, 2, 3]].any()


def test_one_step_tells_mean_and_variance_of_the_batch():
    work = LocalWork(batch_size=3)
    (images,), (targets,) = batch(work)
    reply = local_reply(MODEL, work, initial(), MODEL.initial_statistics, images, targets)
    shown = MODEL.shown_statistics(MODEL.initial_statistics, reply.statistics, 1)
    torch.testing.assert_close(shown, MODEL.batch_statistics(initial(), images))
    inputs = build_model(SPEC).conv(images)
    mean, variance = MODEL.statistics.split(shown)[:2]
    torch.testing.assert_close(mean, inputs.mean((0, 2, 3)), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(variance, inputs.var((0, 2, 3)), rtol=1e-4, atol=1e-6)


def test_with_statistics_given_a_model_is_in_evaluation_mode():
    module, (images,) = build_model(SPEC), torch.rand(1, 5, *SHAPE)
    module(images)  # moves its running statistics
    buffers = dict(module.named_buffers())
    known = torch.cat([buffers[name] for name, _ in MODEL.statistics.segments])
    expected = module.eval()(images)
    torch.testing.assert_close(MODEL.logits(initial(), images, known), expected)
    alone = MODEL.logits(initial(), images[:1], known)
    torch.testing.assert_close(alone, expected[:1])


def test_variances_are_not_negative():
    noisy = MODEL.usable_statistics(-torch.ones(MODEL.statistics.size))
    means = [one.name.endswith("running_mean") for one in MODEL.statistics.segments]
    for is_mean, piece in zip(means, MODEL.statistics.split(noisy), strict=True):
        assert (piece == (-1 if is_mean else 0)).all()


def test_layers_in_evaluation_mode_keep_their_statistics():
    register_model("frozen_bn", lambda: Tiny().eval())
    frozen = ModelSpec("frozen_bn", SHAPE, 3)
    assert statistics_of_model(frozen).size == 0
    assert statistics_of_model(SPEC) == MODEL.statistics
    images = torch.rand(4, *SHAPE)
    logits = flat_model(frozen).logits(initial(), images)
    torch.testing.assert_close(logits[:1], flat_model(frozen).logits(initial(), images[:1]))


def test_layers_that_couple_images_are_not_computed_for_all_victims_at_once():
    plain = nn.BatchNorm2d(2, affine=False, track_running_stats=False)
    module = nn.Sequential(plain, nn.Flatten(), nn.Linear(32, 3))
    assert couples_images(module)
    assert not supports(module)
    assert not couples_images(nn.Sequential(nn.GroupNorm(1, 2), nn.Flatten()))


def test_how_many_values_a_layer_averages_over():
    module = build_model(SPEC)
    assert fewest_values(module, SHAPE, 1) == 1
    assert fewest_values(module, SHAPE, 3) == 3
    assert fewest_values(nn.Sequential(nn.BatchNorm2d(2)), SHAPE, 1) == 16
    assert fewest_values(nn.Flatten(), SHAPE, 1) is None
    assert all(layer.training for layer in module.modules())


def test_a_model_with_batch_norm_can_be_attacked_unless_a_layer_is_used_twice():
    class Twice(Tiny):
        def forward(self, images):
            return self.head(
                self.last_norm(self.last_norm(self.linear(images.repeat(1, 2, 1, 1).flatten(1))))
            )

    check_differentiable(SPEC)
    register_model("twice_bn", Twice)
    with pytest.raises(ValueError, match="'last_norm' .* is used twice"):
        check_differentiable(ModelSpec("twice_bn", SHAPE, 3))
