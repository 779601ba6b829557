"""What a client does with its private images in a round: public facts, known to an attacker."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from math import cos, inf, isfinite, pi
from typing import Any, get_args

import torch
from torch import Tensor

from fl_sim.choices import MAX_IMAGES, Schedule, UpdateKind


@dataclass(frozen=True)
class LocalWork:
    """Public facts of a client's work in one round: what it computes from its private images.

    Attributes
    ----------
    kind : "gradient" or "delta"
        The mean gradient of one batch (FedSGD), or the change of the weights over local SGD
        steps (FedAvg), as *old minus new*, so that both point up the loss.
    batch_size : int
        Images in one batch.
    learning_rate : float
        Step size of local SGD; a ``gradient`` does not use it.
    local_steps : int
        Steps of local SGD; 1 for a ``gradient``.
    local_batches : int
        Distinct batches drawn in a round; the steps cycle through them.
    fixed_batch : bool
        Whether a client uses the same images in every round, as one with few images does.
    momentum, weight_decay : float
        Of local SGD, as in `torch.optim.SGD`; a client starts every round without momentum.
    schedule : "constant", "linear" or "cosine"
        How the step size falls over the local steps of a round, towards 0.
    decay : float
        Factor of the step size from one round to the next.
    shuffled : bool
        Whether a client deals its images to batches anew in every epoch, in an order that nobody
        else knows.
    augmented : bool
        Whether a client changes its images at random (crops, flips) before it uses them. Attacks
        search for the images that it used; reports say so.
    quantized_statistics : bool
        Whether what a client sends of BatchNorm's running statistics is quantized as its update is.
    mean, std : tuple of float
        What is subtracted from the pixels of each channel before the model sees them, and what the
        difference is divided by; one number counts for all channels. Empty: pixels are not changed.
    example_clip : float
        Norm to which the gradient of each image is clipped before gradients are averaged (DP-SGD);
        0: they are not clipped.

    Examples
    --------
    One epoch over eight images in batches of four, as Flower's quick-start trains:

    >>> from fl_sim import LocalWork
    >>> work = LocalWork("delta", batch_size=4, learning_rate=0.1, local_steps=2, local_batches=2)
    >>> work.images
    8

    Five epochs of a usual recipe, on inputs that are normalised:

    >>> usual = {"momentum": 0.9, "weight_decay": 5e-4, "shuffled": True}
    >>> work = LocalWork("delta", 4, 0.1, 10, 2, mean=(0.5,), std=(0.25,), **usual)
    >>> work.epochs
    5
    """

    kind: UpdateKind = "gradient"
    batch_size: int = 1
    learning_rate: float = 0.1
    local_steps: int = 1
    local_batches: int = 1
    fixed_batch: bool = False
    momentum: float = 0.0
    weight_decay: float = 0.0
    schedule: Schedule = "constant"
    decay: float = 1.0
    shuffled: bool = False
    augmented: bool = False
    quantized_statistics: bool = False
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    example_clip: float = 0.0

    def __post_init__(self) -> None:
        for name in ("mean", "std"):  # lists, where they were read from a file
            object.__setattr__(self, name, tuple(getattr(self, name)))
        counts = (self.batch_size, self.local_steps, self.local_batches)
        if not all(type(count) is int and 1 <= count <= MAX_IMAGES for count in counts):
            raise ValueError(
                f"Batch size, steps and batches {counts} must be from 1 to {MAX_IMAGES}."
            )
        if self.images > MAX_IMAGES:
            raise ValueError(f"{self.images} images in one update are more than {MAX_IMAGES}.")
        if self.kind not in get_args(UpdateKind) or not isinstance(self.fixed_batch, bool):
            raise ValueError(f"An update is a gradient or a delta, not {self.kind!r}.")
        if not isinstance(self.learning_rate, float | int) or not isfinite(self.learning_rate):
            raise ValueError(f"A learning rate of {self.learning_rate!r} is not a finite number.")
        if not _number(self.example_clip) or self.example_clip < 0:
            raise ValueError(f"A clip of {self.example_clip!r} is not 0 or larger.")
        self._check_descent()

    def _check_descent(self) -> None:
        if not _number(self.momentum) or not 0 <= self.momentum < 1:
            raise ValueError(f"A momentum of {self.momentum!r} is not from 0 to below 1.")
        if not _number(self.weight_decay) or self.weight_decay < 0:
            raise ValueError(f"A weight decay of {self.weight_decay!r} is not 0 or larger.")
        if not _number(self.decay) or not 0 < self.decay <= 1:
            raise ValueError(f"A decay of {self.decay!r} is not above 0 and at most 1.")
        flags = self.shuffled, self.augmented, self.quantized_statistics
        if self.schedule not in get_args(Schedule) or any(type(one) is not bool for one in flags):
            raise ValueError(f"A schedule is one of {get_args(Schedule)}, not {self.schedule!r}.")
        plain = not (self.momentum or self.weight_decay or self.shuffled)
        plain = plain and (self.schedule, self.decay) == ("constant", 1)
        if self.kind == "gradient" and not plain:
            raise ValueError("A gradient takes no steps: its work has no momentum, decay or order.")
        if not all(map(_number, (*self.mean, *self.std))) or any(one <= 0 for one in self.std):
            raise ValueError(
                f"Means {self.mean} and deviations {self.std} cannot normalise pixels."
            )
        if len(self.mean) != len(self.std):
            raise ValueError(f"Means {self.mean} and deviations {self.std} are not equally many.")

    @property
    def images(self) -> int:
        """Number of private images that enter one update."""
        return self.batch_size * self.local_batches

    @property
    def epochs(self) -> int:
        """Number of passes over the images in a round; the last may be a part of one."""
        return -(-self.local_steps // self.local_batches)

    @property
    def reorders(self) -> bool:
        """Whether a client's batches differ from epoch to epoch, in a way that nobody knows."""
        return self.shuffled and self.epochs > 1 and self.local_batches > 1

    @property
    def rates(self) -> list[float]:
        """Step size of each local step."""
        shares = [step / self.local_steps for step in range(self.local_steps)]
        if self.schedule == "linear":
            return [self.learning_rate * (1 - share) for share in shares]
        if self.schedule == "cosine":
            return [self.learning_rate * (1 + cos(pi * share)) / 2 for share in shares]
        return [self.learning_rate] * self.local_steps

    @property
    def reach(self) -> float:
        """Update by a gradient of 1 that is the same at every step, without weight decay."""
        if self.kind == "gradient":
            return 1.0
        if not self.momentum and self.schedule == "constant":
            return self.learning_rate * self.local_steps
        velocity = total = 0.0
        for rate in self.rates:
            velocity = self.momentum * velocity + 1
            total += rate * velocity
        return total

    @property
    def image_norm(self) -> float:
        """Bound on what one image adds to an update; of several steps, on all that images add.

        Infinite unless gradients are clipped. Another image in its place moves the update by at
        most twice as much: after one step, weight decay adds what the server knows anyway.
        """
        if not self.example_clip or (self.local_steps > 1 and self.weight_decay):
            return inf
        bound = self.reach * self.example_clip
        return bound / self.batch_size if self.local_steps == 1 else bound

    @property
    def facts(self) -> dict[str, Any]:
        """The facts by name, without those that most clients do not depart from."""
        usual = {one.name: one.default for one in fields(self)[_FIRST_FACTS:]}
        return {k: v for k, v in asdict(self).items() if k not in usual or v != usual[k]}

    def of_clients(self, clients: int) -> "LocalWork":
        """Return the work whose update is the mean of those of some clients, at equal weights.

        Raises
        ------
        ValueError
            If clients take several steps: their mean is not the update of one client.
        """
        if clients > 1 and self.local_steps != 1:
            raise ValueError(f"local_steps = {self.local_steps}: a sum is that of one step each")
        if clients == 1:
            return self
        return replace(self, batch_size=clients * self.batch_size, shuffled=False)

    def in_round(self, server_round: int) -> "LocalWork":
        """Return what a client does in a 1-based round: its step size is that of this round."""
        if self.decay == 1:
            return self
        rate = self.learning_rate * self.decay ** (server_round - 1)
        return replace(self, learning_rate=rate, decay=1.0)

    def rows(self, step: int, order: Tensor | None = None) -> Tensor | slice:
        """Return which images a step uses, given their ``order`` as of `local_update`."""
        epoch, index = divmod(step, self.local_batches)
        rows = slice(index * self.batch_size, (index + 1) * self.batch_size)
        return rows if order is None else order[epoch, rows]

    def inputs(self, images: Tensor) -> Tensor:
        """Return what a model sees of images ``(..., C, H, W)`` in [0, 1]."""
        if not self.mean:
            return images
        return (images - _of_channels(self.mean, images)) / _of_channels(self.std, images)

    def pixels(self, inputs: Tensor) -> Tensor:
        """Return the images of which a model sees ``inputs`` ``(..., C, H, W)``."""
        if not self.mean:
            return inputs
        return inputs * _of_channels(self.std, inputs) + _of_channels(self.mean, inputs)


_FIRST_FACTS = 6  # that every file and message names


def _number(value: object) -> bool:
    return type(value) in (float, int) and isfinite(value)  # type: ignore[arg-type]


def _of_channels(values: Sequence[float], images: Tensor) -> Tensor:
    """Return one value for each channel of images, ``(C, 1, 1)``.

    Raises
    ------
    ValueError
        If there are not as many values as channels.
    """
    if len(values) not in (1, images.shape[-3]):
        raise ValueError(
            f"{len(values)} means and deviations cannot normalise {images.shape[-3]} channels."
        )
    return torch.tensor(values, dtype=images.dtype, device=images.device)[:, None, None]


def draw_orders(work: LocalWork, generator: torch.Generator) -> Tensor | None:
    """Draw the order of the images in each epoch, as of `local_update`; None if it stays."""
    if not work.shuffled:
        return None
    drawn = [torch.randperm(work.images, generator=generator) for _ in range(work.epochs)]
    return torch.stack(drawn)
