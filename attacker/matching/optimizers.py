"""Optimizers that minimise many independent problems at once; each ends on its own."""

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import ClassVar, Protocol

import torch
from torch import Tensor

from fl_sim.specs import not_negative, positive

Objective = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""Maps points ``(b, D)`` of the problems ``(b,)`` to losses ``(b,)`` and gradients ``(b, D)``.

Problems are independent: the loss of one does not depend on the points of the others.
"""


@dataclass(frozen=True, eq=False)
class Minimum:
    """The best point of every problem: its loss was measured at exactly this point.

    Attributes
    ----------
    points : Tensor
        ``(B, D)``.
    losses : Tensor
        ``(B,)``; infinite where no finite loss was measured (the point is then the start).
    evaluations : Tensor
        ``(B,)`` int64, gradient evaluations spent on each problem.
    """

    points: Tensor
    losses: Tensor
    evaluations: Tensor


class Optimizer(Protocol):
    """What an attack needs of an optimizer.

    Attributes
    ----------
    in_frequencies : bool
        Whether it is faster over the frequencies of images than over their pixels.
    """

    in_frequencies: ClassVar[bool]

    def minimize(self, objective: Objective, start: Tensor) -> Minimum:
        """Minimise each row of ``start`` on its own."""

    def within(self, iterations: int) -> "Optimizer":
        """Return this optimizer, with no more than ``iterations``."""


class _Best:
    """Keeps, per problem, the point with the lowest finite loss and counts the evaluations."""

    def __init__(self, start: Tensor) -> None:
        self.points = start.clone()
        self.losses = torch.full((len(start),), torch.inf, dtype=start.dtype, device=start.device)
        self.evaluations = torch.zeros(len(start), dtype=torch.int64, device=start.device)

    def offer(self, problems: Tensor, points: Tensor, losses: Tensor) -> None:
        """Offer the points at which ``losses`` were just measured; NaN and infinity never win."""
        self.evaluations[problems] += 1
        better = losses < self.losses[problems]
        self.losses[problems[better]] = losses[better]
        self.points[problems[better]] = points[better]

    def minimum(self) -> Minimum:
        return Minimum(self.points, self.losses, self.evaluations)


@dataclass(frozen=True)
class SignedAdam:
    """Adam on the sign of the gradient with three drops of the rate (Geiping et al. 2020).

    Attributes
    ----------
    iterations : int
        Steps; one evaluation each.
    rate : float
        First step size; divided by ten at 3/8, 5/8 and 7/8 of the iterations.
    """

    in_frequencies: ClassVar[bool] = False  # each pixel has a sign of its own

    iterations: int = 4800
    rate: float = 0.1

    def __post_init__(self) -> None:
        not_negative("iterations", self.iterations)
        not_negative("rate", self.rate)

    def minimize(self, objective: Objective, start: Tensor) -> Minimum:
        """Minimise each row of ``start`` on its own; see `Optimizer`."""
        best = _Best(start)
        points = start.clone().requires_grad_()
        problems = torch.arange(len(start), device=start.device)
        adam = torch.optim.Adam([points], lr=self.rate)
        drops = [self.iterations * eighths // 8 for eighths in (3, 5, 7)]
        schedule = torch.optim.lr_scheduler.MultiStepLR(adam, drops, gamma=0.1)
        for _ in range(self.iterations):
            losses, gradients = objective(points.detach(), problems)
            best.offer(problems, points.detach(), losses)
            points.grad = gradients.nan_to_num(0.0, 0.0, 0.0).sign()
            adam.step()
            schedule.step()
        losses, _ = objective(points.detach(), problems)
        best.offer(problems, points.detach(), losses)
        return best.minimum()

    def within(self, iterations: int) -> "SignedAdam":
        """Return this optimizer, with no more than ``iterations``."""
        return replace(self, iterations=min(iterations, self.iterations))


@dataclass(frozen=True)
class LBFGS:
    """Limited-memory BFGS with a strong-Wolfe line search, for a batch of problems.

    Every evaluation serves all unfinished problems: each is somewhere in its own line search
    (Nocedal and Wright 2006, algorithms 3.5 and 3.6, with cubic interpolation), and those whose
    search has just ended take a new direction from their own history (compact form of Byrd,
    Nocedal and Schnabel 1994). Finished problems leave the batch.

    Attributes
    ----------
    iterations : int
        Most evaluations per problem.
    history : int
        Pairs kept per problem.
    target : float
        A problem whose loss falls to this value is finished.
    patience : int
        A problem is finished when its best loss has not fallen by ``progress`` (relative) over
        this many evaluations.
    progress : float
        See ``patience``.
    """

    in_frequencies: ClassVar[bool] = True

    iterations: int = 600
    history: int = 50
    target: float = 0.0
    patience: int = 60
    progress: float = 1e-3

    def __post_init__(self) -> None:
        positive("history", self.history)
        for name in ("iterations", "target", "patience", "progress"):
            not_negative(name, getattr(self, name))

    def minimize(self, objective: Objective, start: Tensor) -> Minimum:
        """Minimise each row of ``start`` on its own; see `Optimizer`."""
        best = _Best(start)
        problems = torch.arange(len(start), device=start.device)
        losses, gradients = objective(start, problems)
        best.offer(problems, start, losses)
        state = _State.at(problems, start, losses, gradients, self.history)
        for evaluation in range(1, self.iterations):
            state = state.select(self._unfinished(state, evaluation))
            if not len(state.problem):
                break
            step_point = state.point + state.t[:, None] * state.direction
            losses, gradients = objective(step_point, state.problem)
            best.offer(state.problem, step_point, losses)
            state.note_progress(losses, evaluation, self.progress)
            state.advance(step_point, losses, gradients)
        return best.minimum()

    def within(self, iterations: int) -> "LBFGS":
        """Return this optimizer, with no more than ``iterations``."""
        return replace(self, iterations=min(iterations, self.iterations))

    def _unfinished(self, state: "_State", evaluation: int) -> Tensor:
        """Return the indices of the problems worth another evaluation."""
        going = ~state.failed & (state.loss > self.target)
        going &= evaluation - state.last_progress <= self.patience
        return going.nonzero().squeeze(1)


# Strong-Wolfe constants as in torch.optim.LBFGS: sufficient decrease, curvature, most trials.
_DECREASE, _CURVATURE, _TRIALS = 1e-4, 0.9, 20


@dataclass
class _State:
    """The line searches of all unfinished problems; the first dimension of tensors is the problem.

    ``low`` and ``high`` hold (step, loss, slope) of the ends of the bracket; while a search is
    still expanding (``zooming`` false), ``low`` is the previous step.
    """

    problem: Tensor  # (B,) index in the caller's batch
    point: Tensor  # (B, D) accepted point
    loss: Tensor  # (B,) at point
    gradient: Tensor  # (B, D) at point
    direction: Tensor  # (B, D)
    slope: Tensor  # (B,) along the direction at point
    t: Tensor  # (B,) next step size
    low: Tensor  # (B, 3)
    high: Tensor  # (B, 3)
    low_gradient: Tensor  # (B, D)
    zooming: Tensor  # (B,) bool
    trials: Tensor  # (B,) steps tried in this search
    failed: Tensor  # (B,) bool: no descent even along the gradient
    last_progress: Tensor  # (B,) evaluation at which the loss last fell by ``progress``
    milestone: Tensor  # (B,) the loss at that evaluation
    pairs: Tensor  # (B, 2, m, D) history of steps s and changes y, stored circularly
    gram: Tensor  # (B, 2, m, m) float64 s_i . y_j (s not newer than y) and y_i . y_j; oldest first
    held: Tensor  # (B,) pairs in the history
    oldest: Tensor  # (B,) where the oldest of them is stored

    @classmethod
    def at(
        cls, problems: Tensor, points: Tensor, losses: Tensor, gradients: Tensor, history: int
    ) -> "_State":
        count, size = points.shape
        flags = torch.zeros(count, dtype=torch.bool, device=points.device)
        state = cls(
            problem=problems,
            point=points.clone(),
            loss=losses.clone(),
            gradient=gradients.clone(),
            direction=torch.zeros_like(points),
            slope=torch.zeros_like(losses),
            t=torch.zeros_like(losses),
            low=points.new_zeros(count, 3),
            high=points.new_zeros(count, 3),
            low_gradient=gradients.clone(),
            zooming=flags.clone(),
            trials=torch.zeros_like(problems),
            failed=~(losses.isfinite() & gradients.isfinite().all(dim=1)),
            last_progress=torch.zeros_like(problems),
            milestone=losses.clone(),
            pairs=points.new_zeros(count, 2, history, size),
            gram=points.new_zeros(count, 2, history, history, dtype=torch.float64),
            held=torch.zeros_like(problems),
            oldest=torch.zeros_like(problems),
        )
        state._forget(~flags)
        state._search(torch.ones_like(flags), -gradients)
        return state

    def select(self, keep: Tensor) -> "_State":
        """Return the state of the problems at the indices ``keep``."""
        if len(keep) == len(self.problem):
            return self
        return _State(*(getattr(self, field.name)[keep] for field in fields(self)))

    def note_progress(self, losses: Tensor, evaluation: int, progress: float) -> None:
        """Remember when each problem's loss last fell by the relative amount ``progress``."""
        fell = losses < self.milestone - progress * self.milestone.abs()
        self.milestone = torch.where(fell, losses, self.milestone)
        self.last_progress = torch.where(fell, evaluation, self.last_progress)

    def advance(self, step_point: Tensor, losses: Tensor, gradients: Tensor) -> None:
        """Continue every line search with the losses and gradients at ``step_point``."""
        finite = losses.isfinite() & gradients.isfinite().all(dim=1)
        slopes = torch.where(finite, (gradients * self.direction).sum(dim=1), 0.0)
        losses = torch.where(finite, losses, torch.inf)
        seen = torch.stack([self.t, losses, slopes], dim=1)
        self.trials = self.trials + 1

        too_high = losses > self.loss + _DECREASE * self.t * self.slope
        too_high |= (losses >= self.low[:, 1]) & (self.zooming | (self.trials > 1))
        flat = slopes.abs() <= _CURVATURE * self.slope.abs()
        accepted = ~too_high & flat
        rising = ~too_high & ~flat & _leads_past(slopes, self)
        expanding = ~too_high & ~flat & ~rising & ~self.zooming
        lowest = ~too_high & ~accepted  # the step becomes the low end

        previous = self.low
        self.high = _where(too_high, seen, _where(rising, previous, self.high))
        self.low = _where(lowest, seen, self.low)
        self.low_gradient = _where(lowest, gradients, self.low_gradient)
        self.zooming = self.zooming | too_high | rising

        self.t = _next_step(expanding, previous, seen, self.low, self.high)
        self._settle(accepted, step_point, losses, gradients)

    def _settle(
        self, accepted: Tensor, step_point: Tensor, losses: Tensor, gradients: Tensor
    ) -> None:
        """Take the accepted points, and the low end of searches that took too long."""
        width = (self.high[:, 0] - self.low[:, 0]).abs()
        tiny = width * self.direction.abs().amax(dim=1) < 1e-9
        over = ~accepted & ((self.trials >= _TRIALS) | (self.zooming & tiny))
        moved = over & (self.low[:, 0] > 0)
        arrived = accepted | moved
        if not bool((arrived | over).any()):
            return
        point = _where(accepted, step_point, self.point + self.low[:, :1] * self.direction)
        gradient = _where(accepted, gradients, self.low_gradient)
        step, change = point - self.point, gradient - self.gradient
        self.point = _where(arrived, point, self.point)
        self.gradient = _where(arrived, gradient, self.gradient)
        loss = torch.where(accepted, losses, self.low[:, 1])
        self.loss = torch.where(arrived, loss, self.loss)

        stuck = over & ~moved
        self.failed = self.failed | (stuck & (self.held == 0))
        self._forget(stuck)  # try the gradient
        self._search(arrived | stuck, self._quasi_newton(arrived, step, change))

    def _forget(self, which: Tensor) -> None:
        """Empty the histories of some problems; a missing pair is a row of the identity."""
        rows = which.nonzero().squeeze(1)
        if not len(rows):
            return
        self.held[rows] = 0
        self.oldest[rows] = 0
        self.gram[rows] = 0
        self.gram[:, 0].diagonal(dim1=1, dim2=2)[rows] = 1

    def _search(self, which: Tensor, direction: Tensor) -> None:
        """Start a new line search in the problems ``which``, downhill in any case."""
        slope = (self.gradient * direction).sum(dim=1)
        norms = self.gradient.norm(dim=1) * direction.norm(dim=1)
        self._forget(which & ~(slope < -1e-8 * norms))
        fresh = self.held == 0
        direction = _where(fresh, -self.gradient, direction)
        slope = torch.where(fresh, -self.gradient.square().sum(dim=1), slope)
        first = (1 / self.gradient.abs().sum(dim=1).clamp_min(1e-30)).clamp_max(1.0)

        self.direction = _where(which, direction, self.direction)
        self.slope = torch.where(which, slope, self.slope)
        self.t = torch.where(which, torch.where(fresh, first, 1.0), self.t)
        origin = torch.stack([torch.zeros_like(self.loss), self.loss, self.slope], dim=1)
        self.low = _where(which, origin, self.low)
        self.high = _where(which, origin, self.high)
        self.low_gradient = _where(which, self.gradient, self.low_gradient)
        self.zooming = self.zooming & ~which
        self.trials = torch.where(which, 0, self.trials)

    def _quasi_newton(self, which: Tensor, step: Tensor, change: Tensor) -> Tensor:
        """Remember the pair of the problems ``which`` and return ``-H g`` of every problem.

        The history is read twice, once for all inner products and once for the direction: reading
        it is what a step costs beside its evaluation.
        """
        curved = (step * change).sum(dim=1) > 1e-10 * change.square().sum(dim=1)
        rows = (which & curved).nonzero().squeeze(1)
        place, slot = self._make_room(rows)
        self.pairs[rows, 0, slot] = step[rows]
        self.pairs[rows, 1, slot] = change[rows]

        used = int(self.held.max())
        if not used:
            return -self.gradient
        pairs = self.pairs[:, :, :used].flatten(1, 2)
        both = torch.stack([change, self.gradient], dim=1)
        products = torch.bmm(both, pairs.transpose(1, 2)).double().reshape(-1, 2, 2, used)
        ages = torch.arange(used, device=rows.device)
        order = (self.oldest[:, None] + ages) % self.pairs.shape[2]
        order = torch.where(ages < self.held[:, None], order, ages)
        order = order[:, None, None].expand_as(products)
        products = products.gather(3, order) * (ages < self.held[:, None])[:, None, None]
        self.gram[rows, :, :used, place] = products[rows, 0]
        self.gram[rows, 1, place, :used] = products[rows, 0, 1]

        gamma, along = self._compact(products[:, 1], used)
        along = torch.empty_like(along).scatter_(2, order[:, 0], along)
        scaled = gamma.to(pairs.dtype)[:, None] * self.gradient
        return -(scaled + torch.bmm(along.to(pairs.dtype).flatten(1)[:, None], pairs).squeeze(1))

    def _make_room(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Return the place by age and the slot in storage of a new pair of the problems ``rows``.

        A full history loses its oldest pair.
        """
        capacity = self.pairs.shape[2]
        full = rows[self.held[rows] == capacity]
        if len(full):
            self.gram[full, :, :-1, :-1] = self.gram[full, :, 1:, 1:]
            self.oldest[full] = (self.oldest[full] + 1) % capacity
            self.held[full] -= 1
        place = self.held[rows]
        self.held[rows] += 1
        return place, (self.oldest[rows] + place) % capacity

    def _compact(self, products: Tensor, used: int) -> tuple[Tensor, Tensor]:
        """Return gamma and the weights of s and y in ``H g = gamma g + ...``; ``(B, 2, used)``.

        ``products`` are S g and Y g, oldest first.
        """
        upper, yy = self.gram[:, :, :used, :used].unbind(dim=1)
        sg, yg = products.unbind(dim=1)
        diagonal = upper.diagonal(dim1=1, dim2=2)
        newest = (self.held - 1).clamp_min(0)[:, None]
        size = yy.diagonal(dim1=1, dim2=2).gather(1, newest)
        gamma = torch.where(size > 0, diagonal.gather(1, newest) / size.clamp_min(1e-300), 1.0)

        v = torch.linalg.solve_triangular(upper, sg[:, :, None], upper=True)
        w = diagonal[:, :, None] * v + gamma[:, :, None] * (yy @ v - yg[:, :, None])
        u = torch.linalg.solve_triangular(upper.transpose(1, 2), w, upper=False)
        return gamma.squeeze(1), torch.stack([u, -gamma[:, :, None] * v], dim=1).squeeze(3)


def _leads_past(slopes: Tensor, state: _State) -> Tensor:
    """Tell where the minimum lies between the step just tried and the old low end."""
    span = state.high[:, 0] - state.low[:, 0]
    return torch.where(state.zooming, slopes * span >= 0, slopes >= 0)


def _where(mask: Tensor, yes: Tensor | int, no: Tensor) -> Tensor:
    return torch.where(mask[:, None], yes, no)


def _next_step(
    expanding: Tensor, previous: Tensor, seen: Tensor, low: Tensor, high: Tensor
) -> Tensor:
    """Return the next step size of every search.

    A search that still expands goes at most ten times further; one with a bracket stays inside it,
    a tenth of its width away from both ends.
    """
    left = torch.minimum(low[:, 0], high[:, 0])
    width = (high[:, 0] - low[:, 0]).abs()
    near = seen[:, 0] + 0.01 * (seen[:, 0] - previous[:, 0])
    least = torch.where(expanding, near, left + 0.1 * width)
    most = torch.where(expanding, 10 * seen[:, 0], left + 0.9 * width)
    return _cubic(_where(expanding, previous, low), _where(expanding, seen, high), least, most)


def _cubic(one: Tensor, other: Tensor, least: Tensor, most: Tensor) -> Tensor:
    """Minimiser of the cubic through two (step, loss, slope), in bounds; their middle if none."""
    (x1, f1, g1), (x2, f2, g2) = one.double().unbind(1), other.double().unbind(1)
    d1 = g1 + g2 - 3 * (f1 - f2) / (x1 - x2)
    square = d1.square() - g1 * g2
    d2 = square.clamp_min(0).sqrt() * torch.where(x1 <= x2, 1.0, -1.0)
    best = x2 - (x2 - x1) * (g2 + d2 - d1) / (g2 - g1 + 2 * d2)
    usable = (square >= 0) & best.isfinite()
    best = torch.where(usable, best, (least + most).double() / 2)
    return best.to(least.dtype).clamp(least, most)
