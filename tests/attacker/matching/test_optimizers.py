import pytest
import torch

from attacker.matching.optimizers import LBFGS, Minimum, SignedAdam


def rosenbrock(points, _):
    points = points.detach().requires_grad_()
    valley = points[:, 1:] - points[:, :-1] ** 2
    losses = (100 * valley**2 + (1 - points[:, :-1]) ** 2).sum(dim=1)
    (gradients,) = torch.autograd.grad(losses.sum(), points)
    return losses.detach(), gradients


def starts(count=6, size=10):
    generator = torch.Generator().manual_seed(3)
    return torch.rand(count, size, generator=generator, dtype=torch.float64)


def test_lbfgs_solves_every_problem_of_a_batch():
    minimum = LBFGS(iterations=300).minimize(rosenbrock, starts())
    assert minimum.losses.max() < 1e-15
    assert torch.allclose(minimum.points, torch.ones(6, 10, dtype=torch.float64))


def test_lbfgs_needs_no_more_evaluations_than_torch():
    start = starts(1)
    minimum = LBFGS(iterations=300, target=1e-10).minimize(rosenbrock, start)
    reference = start.clone().requires_grad_()
    lbfgs = torch.optim.LBFGS([reference], 1, 300, 300, 0, 0, 50, "strong_wolfe")
    calls = []

    def closure():
        losses, reference.grad = rosenbrock(reference, None)
        calls.append(float(losses[0]))
        return losses[0]

    lbfgs.step(closure)
    needed = next(i for i, loss in enumerate(calls, 1) if loss < 1e-10)
    assert minimum.evaluations[0] <= 1.3 * needed


def test_a_problem_is_solved_alike_alone_and_in_a_batch():
    batch = LBFGS(iterations=60).minimize(rosenbrock, starts())
    for row, start in enumerate(starts()):
        alone = LBFGS(iterations=60).minimize(rosenbrock, start[None])
        assert torch.allclose(alone.points[0], batch.points[row], atol=1e-8)
        assert alone.evaluations[0] == batch.evaluations[row]


def test_finished_problems_leave_the_batch():
    sizes = []

    def counted(points, index):
        sizes.append(len(index))
        return rosenbrock(points, index)

    start = starts(2)
    start[0] = 1.0
    LBFGS(iterations=50).minimize(counted, start)
    assert sizes[0] == 2
    assert set(sizes[1:]) == {1}


@pytest.mark.parametrize("optimizer", [LBFGS(iterations=80), SignedAdam(iterations=80, rate=0.05)])
def test_the_loss_returned_is_that_of_the_point_returned(optimizer):
    minimum: Minimum = optimizer.minimize(rosenbrock, starts())
    losses, _ = rosenbrock(minimum.points, None)
    assert torch.equal(losses, minimum.losses)


@pytest.mark.parametrize("optimizer", [LBFGS(iterations=50), SignedAdam(iterations=50)])
def test_points_that_are_not_finite_never_win(optimizer):
    def cliff(points, index):
        losses, gradients = rosenbrock(points, index)
        beyond = points.abs().amax(dim=1) > 2
        return torch.where(beyond, torch.nan, losses), gradients

    minimum = optimizer.minimize(cliff, starts())
    assert minimum.losses.isfinite().all()
    assert minimum.points.abs().max() <= 2


@pytest.mark.parametrize("optimizer", [LBFGS(iterations=20), SignedAdam(iterations=20)])
def test_a_problem_that_is_never_finite_does_not_harm_its_neighbours(optimizer):
    def one_broken(points, index):
        losses, gradients = rosenbrock(points, index)
        broken = index == 1
        return torch.where(broken, torch.nan, losses), gradients

    broken = optimizer.minimize(one_broken, starts())
    healthy = optimizer.minimize(rosenbrock, starts())
    assert broken.losses[1] == torch.inf
    assert torch.equal(broken.points[1], starts()[1])
    others = [0, 2, 3, 4, 5]
    assert torch.allclose(broken.losses[others], healthy.losses[others], rtol=1e-6)


def test_evaluations_are_counted_per_problem():
    calls = torch.zeros(6, dtype=torch.int64)

    def counted(points, index):
        calls[index] += 1
        return rosenbrock(points, index)

    minimum = LBFGS(iterations=400, target=1e-8).minimize(counted, starts())
    assert torch.equal(minimum.evaluations, calls)
    assert len(set(calls.tolist())) > 1


def test_a_problem_that_no_longer_improves_is_given_up():
    def plateau(points, _):
        losses, gradients = rosenbrock(points, None)
        return losses * 1e-9 + 1.0, gradients * 1e-9

    minimum = LBFGS(iterations=500, patience=10).minimize(plateau, starts())
    assert minimum.evaluations.max() < 30
