"""Where a reconstruction starts: random images, or a closed form that reads the update."""

from collections.abc import Callable

import torch
from torch import Tensor

from attacker.problems import Problems
from fl_sim.seeding import Purpose, torch_rng

Start = Callable[[Problems, int, int], Tensor]
"""Maps problems, a seed and the number of the attempt to images ``(B, n, C, H, W)``."""

# Streams of one problem's random numbers; the last element of their key.
_IMAGES, _LABELS = 0, 1


def normal(problems: Problems, seed: int, attempt: int) -> Tensor:
    """Draw every pixel from N(0, 1), as published."""
    return _draw(problems, seed, attempt, _IMAGES, problems.image_shape)


def grey(problems: Problems, seed: int, attempt: int) -> Tensor:
    """Draw every pixel from N(0.5, 0.1)."""
    return 0.5 + 0.1 * normal(problems, seed, attempt)


STARTS: dict[str, Start] = {"normal": normal, "grey": grey}


def label_logits(problems: Problems, seed: int, attempt: int) -> Tensor:
    """Draw free label logits ``(B, n, classes)`` from N(0, 1)."""
    shape = (problems.work.images, problems.model.classes)
    return _draw(problems, seed, attempt, _LABELS, shape)


def _draw(
    problems: Problems, seed: int, attempt: int, stream: int, shape: tuple[int, ...]
) -> Tensor:
    """Draw N(0, 1) for each problem from a stream of its own, whatever batch it is in."""
    draws = []
    for round_, partition in problems.keys:
        generator = torch_rng(seed, Purpose.ATTACK, round_, partition, attempt, stream)
        draws.append(torch.randn(shape, generator=generator))
    return torch.stack(draws)
