"""Evidence held back: how well a guess predicts elements of a payload that the attack did not see.

An attack that fits the noise of a quantizer explains what it sees and predicts nothing; the true
images predict every element as well as can be. So reconstructions are compared, and attacks are
tuned, without the truth: a tenth of the payload is hidden, and the guess is judged by the
likelihood of what was hidden (cross-validation; Stone 1974).
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import torch
from torch import Tensor

from fl_sim.coding.cell import Cell
from fl_sim.seeding import Purpose, torch_rng
from fl_sim.updates.local_update import Layout

FOLDS = 10
"""Parts of a payload; one of them is hidden."""

BLOCKS = 16
"""Groups of hidden elements; how much their means differ tells how sure a comparison is."""

_SURE = 3.0  # standard errors by which a victim's own evidence must differ
_ERRORS = 2.0 ** torch.arange(-16, 4).double()  # of a guess, as shares of its tensor's rms
_LEAST = 1e-12  # probability of an element that no guess falls below


@dataclass(frozen=True)
class HeldBack:
    """Which elements of a payload are hidden from an attack: of all clients, from all attacks.

    Attributes
    ----------
    fold : int
        Which tenth, below `FOLDS`.
    """

    fold: int = 0

    def elements(self, layout: Layout, sizes: Sequence[int]) -> Tensor:
        """Return which elements of the code domain are hidden, ``(d,)`` bool.

        A tenth of each tensor, at random. Tensors of one dimension (biases) are shown whole: they
        are few elements, and labels are read from them. Where the code domain is not that of the
        tensors (a rotation), a tenth of all of it.

        Parameters
        ----------
        layout : Layout
            Of the update.
        sizes : sequence of int
            Elements of each tensor in the code domain, as in `Cell`.
        """
        hideable = [len(segment.shape) > 1 for segment in layout.segments]
        if tuple(sizes) != layout.sizes or not any(hideable):
            hideable = [True] * len(sizes)
        return _fold(self.fold, tuple(sizes), tuple(hideable))


@lru_cache(maxsize=8)
def _fold(fold: int, sizes: tuple[int, ...], hideable: tuple[bool, ...]) -> Tensor:
    rng = torch_rng(0, Purpose.EVIDENCE)
    parts = [torch.zeros(0, dtype=torch.bool)]
    for size, may_hide in zip(sizes, hideable, strict=True):
        place = torch.randperm(size, generator=rng)
        parts.append((place % FOLDS == fold) & may_hide)
    return torch.cat(parts)


def nats(cell: Cell, hidden: Tensor, candidate: Tensor) -> Tensor:
    """Return how unlikely the hidden elements are if a guess is right but for a small error.

    The guess's update is taken as the mean of a Gaussian (for Laplace noise, a Laplace
    distribution) whose deviation is one share of each tensor's rms; the share is the one that
    suits the hidden elements best.

    Parameters
    ----------
    cell : Cell
        ``(B, d)``, of the whole payload.
    hidden : Tensor
        ``(d,)`` bool; see `HeldBack.elements`.
    candidate : Tensor
        ``(B, n)`` updates that the guesses would have caused.

    Returns
    -------
    Tensor
        ``(B, BLOCKS)`` float64: mean negative log-likelihood of the hidden elements of each block,
        in nats. Lower is better. Guesses are compared by their mean over blocks.
    """
    value = cell.to_code_domain(candidate)
    rms = _rms(value if cell.scale_free else cell.center, cell.sizes)
    seen = _doubled(replace(cell, transform=None).only(hidden))
    value, rms = value[:, hidden].double(), rms[:, hidden].double()
    losses = torch.stack([_surprise(seen, value, share * rms) for share in _ERRORS])
    best = losses.mean(dim=2).argmin(dim=0)
    chosen = losses[best, torch.arange(len(value))]
    block = torch.arange(chosen.shape[1]) % BLOCKS
    sums = chosen.new_zeros(len(chosen), BLOCKS).index_add_(1, block, chosen)
    counts = torch.bincount(block, minlength=BLOCKS)
    return torch.where(counts > 0, sums / counts.clamp_min(1), chosen.mean(dim=1, keepdim=True))


def choose(evidence: Tensor, strengths: Sequence[float] = ()) -> Tensor:
    """Choose among guesses by their evidence: for all victims together, then for each.

    One guess is chosen for every victim, except where another is better by three standard errors
    of that victim's own evidence. It is the one that with these exceptions predicts best: a search
    that fails on a few victims is not worse for the others. Of guesses that differ in the strength
    of their prior, the strongest is taken that is within one standard error of the best: so little
    evidence does not speak for a weaker prior (Breiman et al. 1984).

    Parameters
    ----------
    evidence : Tensor
        ``(K, B, BLOCKS)`` nats of K guesses at B victims, infinite where there is none.
    strengths : sequence of float, optional
        How strong the prior of each guess was; not a number where it cannot be compared.

    Returns
    -------
    Tensor
        ``(B,)`` which guess each victim gets.

    Examples
    --------
    >>> import torch
    >>> from fl_sim.observed.evidence import choose
    >>> choose(torch.tensor([[[0.5]], [[0.3]]])).tolist()
    [1]
    """
    each = evidence.mean(dim=2)
    own = each.argmin(dim=0)
    victims = torch.arange(evidence.shape[1])
    gain = evidence - evidence[own, victims]
    error = gain.std(dim=2, correction=1) / gain.shape[2] ** 0.5
    # Where the common choice has no guess, the gain is infinite and its error is not a number.
    apart = (gain.mean(dim=2) > _SURE * error) | ~each.isfinite()
    chosen = torch.where(apart, own, torch.arange(len(each))[:, None])
    chosen_evidence = evidence[chosen, victims]
    best = int(chosen_evidence.mean(dim=(1, 2)).argmin())
    most = (~apart).double().mean(dim=1) > 0.5  # a guess that is the exception is not common
    return chosen[_strongest_within_error(chosen_evidence, most, best, strengths)]


def _strongest_within_error(
    evidence: Tensor, eligible: Tensor, best: int, strengths: Sequence[float]
) -> int:
    """Return the guess of the strongest prior whose evidence is not clearly worse than the best."""
    loss = (evidence - evidence[best]).flatten(1)
    close = loss.mean(dim=1) <= loss.std(dim=1, correction=1) / loss.shape[1] ** 0.5
    close &= eligible
    stronger = [k for k, s in enumerate(strengths) if bool(close[k]) and s > strengths[best]]
    return max(stronger, key=lambda k: strengths[k], default=best)


def _doubled(cell: Cell) -> Cell:
    names = ("center", "lower", "upper", "step")
    return replace(cell, **{name: getattr(cell, name).double() for name in names})


def _rms(values: Tensor, sizes: Sequence[int]) -> Tensor:
    """Return the root mean square of each tensor, at each of its elements."""
    overall = values.square().mean(dim=-1, keepdim=True).sqrt()
    parts = []
    for piece in torch.split(values, list(sizes), dim=-1):
        own = piece.square().mean(dim=-1, keepdim=True).sqrt()
        parts.append(torch.where(own > 0, own, overall).expand_as(piece))
    return torch.cat(parts, dim=-1).clamp_min(torch.finfo(values.dtype).tiny)


def _surprise(cell: Cell, value: Tensor, error: Tensor) -> Tensor:
    """Return the negative log-likelihood of codes, given guessed values and their error."""
    if cell.noise == "none":
        return _of_bounds(cell, value, error)
    noisy = _of_noise(cell, value, error)
    if cell.certain is None:
        return noisy
    return torch.where(cell.certain, _of_bounds(cell, value, error), noisy)


def _of_bounds(cell: Cell, value: Tensor, error: Tensor) -> Tensor:
    """Probability that a Gaussian value lies in its cell; exact values have their step as cell."""
    lower = torch.minimum(cell.lower, cell.center - cell.step / 2)
    upper = torch.maximum(cell.upper, cell.center + cell.step / 2)
    below, above = (lower - value) / error, (upper - value) / error
    # The difference of two probabilities near 1 has no digits left: mirror it to the lower tail.
    mirrored = below > 0
    low, high = torch.where(mirrored, -above, below), torch.where(mirrored, -below, above)
    probability = torch.special.ndtr(high) - torch.special.ndtr(low)
    surprise: Tensor = -probability.clamp_min(_LEAST).log()
    return surprise


def _of_noise(cell: Cell, value: Tensor, error: Tensor) -> Tensor:
    if cell.likelihood is not None:
        return cell.likelihood.surprise(value, error)
    distance = cell.center - value
    if cell.noise == "gaussian":
        variance = cell.step.square() + error.square()
        return (variance / cell.step.square()).log() / 2 + distance.square() / (2 * variance)
    if cell.noise == "laplace":
        scale = cell.step + error
        return (scale / cell.step).log() + distance.abs() / scale
    # Stochastic rounding: the tent of probabilities between the bounds, convolved with the error.
    up = (cell.upper - cell.center).clamp_min(1e-6 * cell.step)
    down = (cell.center - cell.lower).clamp_min(1e-6 * cell.step)
    middle = _antiderivative(distance, error)
    rising = (_antiderivative(distance + up, error) - middle) / up
    falling = (middle - _antiderivative(distance - down, error)) / down
    return -(rising - falling).clamp_min(_LEAST).log()


def _antiderivative(x: Tensor, error: Tensor) -> Tensor:
    """Return the integral of a Gaussian's distribution function, up to ``x``."""
    u = x / error
    density = torch.exp(-u.square() / 2) / (2 * torch.pi) ** 0.5
    integral: Tensor = x * torch.special.ndtr(u) + error * density
    return integral
