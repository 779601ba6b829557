"""Candidates for the images of many problems, and what an optimizer minimises of them."""

from dataclasses import dataclass, replace
from math import prod

import torch
from torch import Tensor

from attacker.matching.consensus import agreed, merged
from attacker.matching.frequencies import to_pixels
from attacker.matching.optimizers import Objective
from attacker.matching.problems import Problems
from fl_sim.coding.cell import Cell
from fl_sim.observed import patches
from fl_sim.observed.attack_loss import AttackLoss, floored
from fl_sim.updates.local_update import convolutions_for


@dataclass(frozen=True, eq=False)
class Candidates:
    """How the points of an optimizer are read as images and targets of the problems.

    A point is the way from the start to the images, which keeps all digits of a short one. If the
    labels are not known, the free label logits follow it. Problems may be searched for from several
    starts, of which those of the first come first, and an image may have a guess for each epoch.
    """

    problems: Problems
    start: Tensor  # (B, E n, C, H, W)
    in_frequencies: bool  # whether the way is in frequencies, else in pixels
    targets: Tensor | None  # (B, E n, classes) known one-hot labels
    logits: Tensor | None  # (B, E n, classes) where free labels start
    starts: int = 1
    epochs: int = 1

    def repeated(self, epochs: int) -> "Candidates":
        """Return candidates with a guess at each image for every epoch."""
        start = self.start.repeat(1, epochs, 1, 1, 1)
        parts = (None if t is None else t.repeat(1, epochs, 1) for t in (self.targets, self.logits))
        targets, logits = parts
        return replace(self, start=start, targets=targets, logits=logits, epochs=epochs)

    def to(self, device: str) -> "Candidates":
        """Return the candidates on a device."""
        targets, logits = (None if t is None else t.to(device) for t in (self.targets, self.logits))
        problems, start = self.problems.to(device), self.start.to(device)
        return replace(self, problems=problems, start=start, targets=targets, logits=logits)

    def start_points(self) -> Tensor:
        """Return the points that stand for the start, ``(B, D)``."""
        parts = [torch.zeros_like(self.start).flatten(1)]
        if self.logits is not None:
            parts.append(self.logits.flatten(1))
        return torch.cat(parts, dim=1)

    def split(self, points: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
        """Return images ``(b, E n, C, H, W)`` and targets ``(b, E n, classes)``."""
        shape = self.start.shape[1:]
        pixels = prod(shape)
        way = points[:, :pixels].reshape(-1, *shape)
        images = self.start[index] + (to_pixels(way) if self.in_frequencies else way)
        if self.targets is not None:
            return images, self.targets[index]
        free = points[:, pixels:].reshape(-1, shape[0], self.problems.model.classes)
        return images, free.softmax(dim=-1)

    def merged(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """Return the images ``(B, n, C, H, W)`` and targets of all, means over whole epochs.

        A last epoch that is a part of one does not use all of its images.
        """
        found = self.split(points, torch.arange(len(points), device=points.device))
        if self.epochs == 1:
            return found
        work = self.problems.work
        whole = work.local_steps // work.local_batches
        return merged(*(torch.stack(one.chunk(self.epochs, dim=1)[:whole], dim=1) for one in found))

    def agreed(self, points: Tensor) -> Tensor:
        """Return what all starts of a problem agree on at each image, ``(B, E n, C, H, W)``."""
        found = self.split(points, torch.arange(len(points), device=points.device))
        images, targets = (torch.stack(one.chunk(self.starts), dim=1) for one in found)
        return agreed(images, targets).transpose(0, 1).flatten(0, 1)


@dataclass(frozen=True, eq=False)
class Nearby:
    """What a loss takes from images that were found before, of all problems; None if unused."""

    components: Tensor | None = None
    agreed: Tensor | None = None

    @classmethod
    def of(
        cls, candidates: Candidates, points: Tensor, patchy: bool, drawn_together: bool
    ) -> "Nearby":
        """Return what the images at some points tell, as far as it is used."""
        everyone = torch.arange(len(points), device=points.device)
        images, _ = candidates.split(points, everyone)
        return cls(
            patches.assign(images) if patchy else None,
            candidates.agreed(points) if drawn_together else None,
        )

    def select(self, index: Tensor) -> "Nearby":
        """Return what belongs to the problems at ``index``."""
        return Nearby(
            *(None if one is None else one[index] for one in (self.components, self.agreed))
        )


def objective(
    loss: AttackLoss,
    problems: Problems,
    candidates: Candidates,
    *,
    resize: bool = False,
    nearby: Nearby | None = None,
    draw: float = 0.0,
) -> Objective:
    """Return what the optimizer minimises: losses and gradients of points."""
    # The unfinished problems and their cells, selected again only when one is finished.
    left, cells = problems, _floored_cells(problems, loss)
    known = nearby or Nearby()
    near = known
    on_floored = replace(loss, floor=0.0)

    def evaluate(points: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
        nonlocal left, cells, near
        if len(index) != len(left):
            left, near = problems.select(index), known.select(index)
            cells = _floored_cells(left, loss)
        points = points.detach().requires_grad_()
        images, targets = candidates.split(points, index)
        losses = on_floored.prior(images, near.components)
        if near.agreed is not None:
            losses = losses + draw * (images - near.agreed).square().flatten(1).mean(dim=1)
        with convolutions_for(images):
            for one, cell in zip(left.rounds, cells, strict=True):
                updates, change = one.reply(images, targets)
                match = on_floored.match(_resized(updates, cell) if resize else updates, cell)
                if one.statistics_cell is not None:
                    match = match + loss.match_statistics(change, one.statistics_cell)
                losses = losses + match / len(cells)
            (gradients,) = torch.autograd.grad(losses.sum(), points)
        return losses.detach(), gradients

    return evaluate


def _floored_cells(problems: Problems, loss: AttackLoss) -> list[Cell]:
    return [floored(one.cell, loss.floor) for one in problems.rounds]


def _resized(updates: Tensor, cell: Cell) -> Tensor:
    """Scale updates ``(b, size)`` to the norm of the decoded one, which most transforms keep."""
    tiny = torch.finfo(updates.dtype).tiny
    size = updates.norm(dim=1, keepdim=True).clamp_min(tiny)
    factor: Tensor = cell.center.norm(dim=1, keepdim=True) / size
    return updates * factor
