"""Gates: checks that must pass before a bad reconstruction counts as privacy."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import fmean

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor

from fl_sim.coding.cell import Cell
from fl_sim.observed.attack_loss import AttackLoss
from fl_sim.observed.candidates import candidate_replies
from fl_sim.observed.evidence import HeldBack, nats
from fl_sim.observed.observations import Observation
from fl_sim.observed.reconstructions import Reconstruction
from fl_sim.quantizers import parse_quantizer
from fl_sim.updates.local_update import LocalReply, flat_model, local_reply, one_hot

SUCCESS_MSE = 1e-2
"""A victim counts as recovered below this MSE (above 20 dB)."""

TOLERANCE = 0.01
"""An attack succeeded if it closed 99 % of the loss gap between a grey image and the truth."""

LEAST_EVIDENCE = 0.01
"""Nats an element by which the truth must predict a payload better than a grey image."""

LEAST_SHARE = 0.25
"""Share of the evidence between a grey image and the truth that an attack must find."""

CONSISTENCY_TOLERANCE = 1e-5
"""Largest distance from the cell that rounding explains, relative to the tensor's largest value."""

ALLOWED_FAILURES = 0.1
"""Largest share of a quantizer's victims that may be `unsettled`."""

REQUIRED_SUCCESS = 0.5
"""Share of unquantized victims that the suite must recover before it can judge a quantizer."""


_ROUNDING = 1e-5  # of an update's largest value, below which a tensor holds rounding errors
_CHUNK = 64  # batches whose updates are computed together; memory holds one update for each


@dataclass(frozen=True, eq=False)
class Truth:
    """Private batches, one per observation; unpacks to images and labels.

    Attributes
    ----------
    images, labels : Tensor
        ``(B, n, C, H, W)`` and ``(B, n)``.
    orders : Tensor or None
        ``(B, epochs, n)``: the order in which clients used them, where they shuffle them.
    """

    images: Tensor
    labels: Tensor
    orders: Tensor | None = None

    def __iter__(self) -> Iterator[Tensor]:
        yield from (self.images, self.labels)


def examine(
    observations: Sequence[Observation], guesses: Sequence[Reconstruction], truth: Truth
) -> pd.DataFrame:
    """Compare one attack's reconstructions of one round with what the server received.

    Parameters
    ----------
    observations : sequence of Observation
        Of one trial and round; they share the weights, unless a server plan tells clients apart.
    guesses : sequence of Reconstruction
        Of one attack, one per observation. An attack over several rounds is examined at the last
        one.
    truth : Truth
        The private batches.

    Returns
    -------
    DataFrame
        One row per observation:

        - ``evidence``: mean nats by which the attack's guess predicted what was held back from it;
          lower is better, see `fl_sim.observed.evidence`. Infinite if nothing was held back.
        - ``evidence_at_truth``, ``evidence_at_grey``: the same of the private images, and of grey
          ones with the true labels.
        - ``masked``: the attack's own loss is lower at the truth, see `falls_short`.
        - ``unexplained``: the truth predicts what was held back, and the guess does not, see
          `predicts_nothing`.
        - ``loss_at_guess``, ``loss_at_truth``, ``loss_at_grey``: the attack's own loss; missing for
          an attack that minimises none.
        - ``inconsistency``: distance of the update at the truth from its payload's cell, relative
          to the largest value of the same tensor. Dropout left on, a wrong sign or a forgotten
          learning rate put it above `CONSISTENCY_TOLERANCE`. Missing with error feedback, which
          adds a residual that only the client knows.
        - ``update_rmse``: root mean squared error of the decoded update. Its control is
          ``gaussian:sigma=<update_rmse>``, noise that distorts updates as much.
    """
    images = torch.stack([guess.images for guess in guesses])
    labels = torch.stack([guess.labels for guess in guesses])
    cell = _stacked_cell(observations)
    grey = torch.full_like(truth.images, 0.5)
    at_truth, truth_statistics = _replies(observations, truth.images, truth.labels, truth.orders)
    at_grey, grey_statistics = _replies(observations, grey, truth.labels, truth.orders)
    frame = pd.DataFrame(
        {
            "evidence": [fmean(one.evidence) if one.evidence else np.inf for one in guesses],
            "evidence_at_truth": _evidence(observations, at_truth, cell),
            "evidence_at_grey": _evidence(observations, at_grey, cell),
        }
    )
    frame["unexplained"] = predicts_nothing(*(frame[name].to_numpy() for name in frame))
    losses = {
        "guess": (images, *_replies(observations, images, labels)),
        "truth": (truth.images, at_truth, truth_statistics),
        "grey": (grey, at_grey, grey_statistics),
    }
    told = _statistics_cell(observations)
    for where, (seen, updates, change) in losses.items():
        statistics = None if told is None else (change, told)
        frame[f"loss_at_{where}"] = _own_losses(guesses, seen, updates, cell, statistics)
    names = ("loss_at_guess", "loss_at_truth", "loss_at_grey")
    searched = np.array([bool(one.objective) for one in guesses])
    frame["masked"] = searched & falls_short(*(frame[name].to_numpy() for name in names))
    frame["inconsistency"] = _inconsistency(observations, at_truth, cell)
    differs = (frame["inconsistency"] > CONSISTENCY_TOLERANCE).any() and not observations[0].cohort
    if differs or told is not None:
        update, change = _as_clients_compute(observations, truth)
        frame["inconsistency"] = np.fmin(
            frame["inconsistency"], _inconsistency(observations, update, cell)
        )
        if told is not None:
            of_statistics = _inconsistency(observations, change, told)
            frame["inconsistency"] = np.fmax(frame["inconsistency"], of_statistics)
    quantizer = parse_quantizer(observations[0].payload.spec)
    decoded = torch.stack([quantizer.decode(seen.payload).vector for seen in observations])
    frame["update_rmse"] = (decoded - at_truth).square().mean(dim=1).sqrt().double().numpy()
    return frame


def falls_short(
    at_guess: NDArray[np.float64], at_truth: NDArray[np.float64], at_grey: NDArray[np.float64]
) -> NDArray[np.bool_]:
    """Return where an attack failed to optimise: the truth has a lower loss than the guess.

    A successful attack also ends slightly above the truth's loss (for example at 1e-6 instead of
    0). The excess is therefore compared with the gap between the loss of a grey image, with the
    true labels, and the loss of the truth. More than `TOLERANCE` of the gap is a failure; so is a
    loss that is not finite.
    """
    return ~(at_guess <= at_truth + TOLERANCE * np.abs(at_grey - at_truth))


def predicts_nothing(
    at_guess: NDArray[np.float64], at_truth: NDArray[np.float64], at_grey: NDArray[np.float64]
) -> NDArray[np.bool_]:
    """Return where an attack failed to find what the payload tells.

    The truth predicts what was held back better than a grey image does, by more than
    `LEAST_EVIDENCE`, and the guess closed less than `LEAST_SHARE` of that gap.
    """
    gap = at_grey - at_truth
    return (gap > LEAST_EVIDENCE) & ~(at_grey - at_guess >= LEAST_SHARE * gap)


def unsettled(strongest: pd.DataFrame) -> "pd.Series[bool]":
    """Return which victims say nothing about privacy: not recovered, and the attack failed.

    Parameters
    ----------
    strongest : DataFrame
        One row per victim with ``recovered``, ``masked``, ``unexplained`` and ``failed``.
    """
    short = strongest["masked"] | strongest["unexplained"] | strongest["failed"]
    return short & ~strongest["recovered"]


def doubt(strongest: pd.DataFrame, success_on_none: float | None) -> str:
    """Return why a quantizer's privacy figures are not established; empty if they are.

    A recovered victim is a leak, whatever the gates say. The gates concern the other victims,
    which may be hidden only because the attack failed.

    Parameters
    ----------
    strongest : DataFrame
        The quantizer's rows, as for `unsettled`, and ``inconsistency``.
    success_on_none : float or None
        Share of unquantized victims that the same suite recovered; None if the study has none.
    """
    failed = unsettled(strongest).mean()
    reason = ""
    if strongest.empty:
        reason = "no attack was run, or none applies"
    elif strongest["recovered"].mean() >= 1 - ALLOWED_FAILURES:
        reason = ""
    elif (strongest["inconsistency"] > CONSISTENCY_TOLERANCE).any():
        reason = "a client's update could not be derived again"
    elif failed > ALLOWED_FAILURES:
        reason = f"the attack failed to optimise on {failed:.0%} of the victims"
    elif success_on_none is None:
        reason = "no unquantized row proves the attack"
    elif success_on_none < REQUIRED_SUCCESS:
        reason = f"the attack recovers only {success_on_none:.0%} of the unquantized victims"
    return reason


def _inconsistency(
    observations: Sequence[Observation], at_truth: Tensor, cell: Cell
) -> NDArray[np.float64]:
    """Return the largest distance from the cell, relative to the largest value of its tensor."""
    if parse_quantizer(observations[0].payload.spec).carries_residual:
        return np.full(len(observations), np.nan)
    value = cell.to_code_domain(at_truth)
    outside = (cell.lower - value).relu() + (value - cell.upper).relu()
    if observations[0].statistics is not None and cell.transform is None:
        outside = outside * ~_of_rounding(at_truth, cell.sizes)
    tiny = torch.finfo(value.dtype).tiny
    shares = [
        far.amax(dim=1) / size.abs().amax(dim=1).clamp_min(tiny)
        for far, size in zip(
            torch.split(outside, list(cell.sizes), dim=1),
            torch.split(value, list(cell.sizes), dim=1),
            strict=True,
        )
    ]
    return torch.stack(shares).amax(dim=0).double().numpy()


def _of_rounding(update: Tensor, sizes: Sequence[int]) -> Tensor:
    """Return which elements ``(B, size)`` are of tensors that hold nothing but rounding errors.

    So do the gradients of biases before BatchNorm, which takes every bias out again.
    """
    least = _ROUNDING * update.abs().amax(dim=1, keepdim=True)
    pieces = torch.split(update.abs(), list(sizes), dim=1)
    return torch.cat(
        [(one.amax(dim=1, keepdim=True) <= least).expand_as(one) for one in pieces], dim=1
    )


def _as_clients_compute(observations: Sequence[Observation], truth: Truth) -> LocalReply:
    """Return what clients would have sent, by their own kernels.

    Other kernels round otherwise, on every processor. BatchNorm magnifies that, and so does a model
    that is sure of its answer: its gradient is a difference of nearly equal probabilities. An
    update is consistent if one of both ways to compute it gives what was sent.
    """
    found = []
    for number, one in enumerate(observations):
        sent = torch.zeros(0) if one.statistics is None else one.statistics.sent
        targets = one_hot(truth.labels[number], one.model.classes)
        order = None if truth.orders is None else truth.orders[number]
        facts = (one.work, one.weights, sent, truth.images[number], targets)
        reply = local_reply(flat_model(one.model), *facts, order=order, eager=True)
        found.append(LocalReply(reply.update[None], reply.statistics[None]))
    return _joined(found)


def _evidence(
    observations: Sequence[Observation], updates: Tensor, cell: Cell
) -> NDArray[np.float64]:
    """Return the mean nats ``(B,)`` by which updates predict a tenth of their payloads."""
    layout = observations[0].payload.layout
    hidden = HeldBack().elements(layout, cell.sizes)
    return nats(cell, hidden, updates).mean(dim=1).nan_to_num(torch.inf).numpy()


def _own_losses(
    guesses: Sequence[Reconstruction],
    images: Tensor,
    updates: Tensor,
    cell: Cell,
    statistics: tuple[Tensor, Cell] | None,
) -> NDArray[np.float64]:
    """Return for each guess the loss that its search minimised; missing where there is none.

    Guesses of one attack may differ in it: a suite chooses attack and weight for each victim.
    """
    losses = np.full(len(guesses), np.nan)
    for objective in {one.objective for one in guesses} - {""}:
        own = np.array([one.objective == objective for one in guesses])
        with torch.no_grad():
            loss = AttackLoss.parse(objective)(images, updates, cell, statistics).double()
        losses[own] = loss.nan_to_num(nan=torch.inf, posinf=torch.inf).numpy()[own]
    return losses


def _replies(
    observations: Sequence[Observation],
    images: Tensor,
    labels: Tensor,
    orders: Tensor | None = None,
) -> LocalReply:
    """Return what the images would have made the client of each observation send."""
    first, known = observations[0], [one for one in (images, labels, orders) if one is not None]
    if any(one.weights is not first.weights for one in observations):
        each = zip(observations, *(torch.split(one, 1) for one in known), strict=True)
        return _joined([_replies([one], *truth) for one, *truth in each])
    known[1] = one_hot(labels, first.model.classes)
    model, chunks = (
        flat_model(first.model),
        zip(*(torch.split(one, _CHUNK) for one in known), strict=True),
    )
    sent = torch.zeros(0) if first.statistics is None else first.statistics.sent
    with torch.no_grad():
        facts = model, first.work, first.weights, sent
        return _joined([candidate_replies(*facts, *one) for one in chunks])


def _joined(replies: Sequence[LocalReply]) -> LocalReply:
    return LocalReply(*(torch.cat(parts) for parts in zip(*replies, strict=True)))


def _statistics_cell(observations: Sequence[Observation]) -> Cell | None:
    """Return what replies tell of the running statistics, stacked; None if nothing."""
    told = [one.statistics.cell for one in observations if one.statistics is not None]
    return Cell.stack(told) if told else None


def _stacked_cell(observations: Sequence[Observation]) -> Cell:
    quantizer = parse_quantizer(observations[0].payload.spec)
    return Cell.stack([quantizer.cell(observation.payload) for observation in observations])
