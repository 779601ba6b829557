"""Where a reconstruction starts: random images, or a closed form that reads the update."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from attacker.matching.problems import Problems
from attacker.readers.closed_forms import (
    has_linear_input,
    invert_linear_input,
    invert_recursively,
    is_recursive,
)
from attacker.readers.cocktail_party import has_mixtures, unmix
from attacker.readers.imprints.ares import can_recover_activations, recover_activations
from attacker.readers.imprints.imprint import has_imprint, invert_imprint
from attacker.readers.imprints.loki import has_sections, invert_sections
from attacker.readers.learned import (
    invert_by_network,
    invert_by_ridge,
    public_examples,
    synthetic_examples,
)
from attacker.readers.spear import has_sparse_slopes, invert_sparse_slopes
from attacker.readers.thresholds import can_read_thresholds, read_thresholds
from attacker.readers.traps import has_traps, invert_traps
from fl_sim.data.public_images import PublicImages
from fl_sim.observed.observations import Observation
from fl_sim.seeding import Purpose, torch_rng

ReadingName = Literal[
    "linear_layer",
    "recursive",
    "spear",
    "cocktail_party",
    "imprint",
    "loki",
    "traps",
    "thresholds",
    "ares",
    "synthetic",
    "synthetic_network",
    "public",
    "public_network",
]
"""Starts that read the images off the payload."""

StartName = Literal["normal", "grey", ReadingName]

Invert = Callable[[Problems, Tensor, int], Tensor]
"""Maps problems, example images ``(N, C, H, W)`` and a seed to images ``(B, 1, C, H, W)``."""

# Random streams of one problem, by the last element of their key.
_IMAGES, _LABELS = 0, 1


@dataclass(frozen=True)
class StartContext:
    """What a start is a function of, beside the problems.

    Attributes
    ----------
    seed : int
        Seed of the attack.
    attempt : int
        Number of the attempt, from 0.
    public : PublicImages or None
        Images that anyone has.
    """

    seed: int
    attempt: int
    public: PublicImages | None = None


@dataclass(frozen=True)
class Start:
    """A way to start.

    Attributes
    ----------
    images : callable
        Maps problems that share weights, and the context, to images ``(B, n, C, H, W)``.
    applies : callable
        Tells whether the start can be made from an observation.
    needs_public : bool
        Whether public images are needed.
    random : bool
        Whether a further attempt starts elsewhere; if not, further attempts start grey.
    of_inputs : bool
        Whether what is read is what the model sees, which may be normalised pixels.
    """

    images: Callable[[Problems, StartContext], Tensor]
    applies: Callable[[Observation], bool] = lambda _: True
    needs_public: bool = False
    random: bool = True
    of_inputs: bool = False


def start_images(name: StartName, problems: Problems, context: StartContext) -> Tensor:
    """Return the images ``(B, n, C, H, W)`` that an attempt starts from.

    Raises
    ------
    ValueError
        If public images are needed and none are there.
    """
    start = STARTS[name]
    if context.attempt and not start.random:
        return _grey(problems, context)
    if start.needs_public and context.public is None:
        raise ValueError(f"start={name} needs public images.")
    images = problems.by_weights(lambda sharing: start.images(sharing, context))
    return problems.work.pixels(images) if start.of_inputs else images


def label_logits(problems: Problems, context: StartContext) -> Tensor:
    """Draw free label logits ``(B, n, classes)`` from N(0, 1)."""
    shape = (problems.work.images, problems.model.classes)
    return _draw(problems, context, _LABELS, shape)


def _normal(problems: Problems, context: StartContext) -> Tensor:
    return _draw(problems, context, _IMAGES, problems.image_shape)


def _grey(problems: Problems, context: StartContext) -> Tensor:
    return 0.5 + 0.1 * _normal(problems, context)


def _public(invert: Invert) -> Callable[[Problems, StartContext], Tensor]:
    def images(problems: Problems, context: StartContext) -> Tensor:
        assert context.public is not None
        return invert(problems, public_examples(context.public), context.seed)

    return images


def _synthetic(invert: Invert) -> Callable[[Problems, StartContext], Tensor]:
    def images(problems: Problems, context: StartContext) -> Tensor:
        return invert(
            problems, synthetic_examples(problems.model.shape, context.seed), context.seed
        )

    return images


def _draw(problems: Problems, context: StartContext, stream: int, shape: tuple[int, ...]) -> Tensor:
    """Draw N(0, 1) for each problem from its own stream, so that batches do not matter."""
    draws = []
    for round_, partition in problems.keys:
        keys = (round_, partition, context.attempt, stream)
        generator = torch_rng(context.seed, Purpose.ATTACK, *keys)
        draws.append(torch.randn(shape, generator=generator))
    return torch.stack(draws)


def _single_image(observation: Observation) -> bool:
    return observation.work.images == 1 and observation.work.local_steps == 1


def _unquantized(observation: Observation) -> bool:
    return observation.payload.spec == "none" and _single_image(observation)


STARTS: dict[StartName, Start] = {
    "normal": Start(_normal),
    "grey": Start(_grey),
    "linear_layer": Start(
        lambda problems, _: invert_linear_input(problems),
        lambda o: _single_image(o) and has_linear_input(o.model),
        random=False,
        of_inputs=True,
    ),
    "recursive": Start(
        lambda problems, _: invert_recursively(problems),
        lambda o: _unquantized(o) and is_recursive(o.model),
        random=False,
        of_inputs=True,
    ),
    "spear": Start(
        lambda problems, context: invert_sparse_slopes(problems, context.seed),
        has_sparse_slopes,
        random=False,
    ),
    "cocktail_party": Start(
        lambda problems, context: unmix(problems, context.seed), has_mixtures, random=False
    ),
    "imprint": Start(
        lambda problems, _: invert_imprint(problems),
        lambda o: o.work.local_steps == 1 and has_imprint(o.model),
        random=False,
    ),
    "loki": Start(
        lambda problems, _: invert_sections(problems),
        lambda o: o.work.local_steps == 1 and has_sections(o.model),
        random=False,
    ),
    "traps": Start(lambda problems, _: invert_traps(problems), has_traps, random=False),
    "thresholds": Start(
        lambda problems, _: read_thresholds(problems), can_read_thresholds, random=False
    ),
    "ares": Start(
        lambda problems, _: recover_activations(problems), can_recover_activations, random=False
    ),
    "synthetic": Start(_synthetic(invert_by_ridge), _single_image, random=False),
    "synthetic_network": Start(_synthetic(invert_by_network), _single_image, random=False),
    "public": Start(_public(invert_by_ridge), _single_image, needs_public=True, random=False),
    "public_network": Start(
        _public(invert_by_network), _single_image, needs_public=True, random=False
    ),
}
