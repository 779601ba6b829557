import pytest
import torch

from fl_sim.models import ModelSpec
from fl_sim.observed.candidates import candidate_updates
from fl_sim.updates.local_update import LocalWork, flat_model, local_update, one_hot

MODEL = flat_model(ModelSpec("mlp", (1, 8, 8), 10))


@pytest.mark.parametrize(
    "work", [LocalWork("gradient", 2), LocalWork("delta", 1, 0.1, 3, 2)], ids=lambda work: work.kind
)
def test_candidates_cause_the_updates_that_clients_compute(work):
    draw = torch.Generator().manual_seed(0)
    weights = torch.randn(MODEL.layout.size, generator=draw) / 10
    images = torch.rand(3, work.images, 1, 8, 8, generator=draw)
    targets = one_hot(torch.randint(10, (3, work.images), generator=draw), 10)
    found = candidate_updates(MODEL, work, weights, images.requires_grad_(), targets)
    pairs = zip(images.detach(), targets, strict=True)
    sent = torch.stack([local_update(MODEL, work, weights, *one, eager=True) for one in pairs])
    assert torch.allclose(found, sent, atol=1e-6)
    (slope,) = torch.autograd.grad(found.square().sum(), images)
    assert slope.abs().amax(dim=(1, 2, 3, 4)).min() > 0


def test_gradients_can_be_at_weights_of_their_own():
    draw = torch.Generator().manual_seed(0)
    weights = torch.randn(2, MODEL.layout.size, generator=draw) / 10
    images = torch.rand(2, 1, 1, 8, 8, generator=draw)
    targets = one_hot(torch.tensor([[3], [4]]), 10)
    both = candidate_updates(MODEL, LocalWork("gradient", 1), weights, images, targets)
    for number in range(2):
        one = candidate_updates(
            MODEL, LocalWork("gradient", 1), weights[number], images[[number]], targets[[number]]
        )
        assert torch.allclose(both[number], one[0], atol=1e-6)
