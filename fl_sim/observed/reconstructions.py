"""What an attack makes of observations, and its store on disk."""

from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from fl_sim.storage.files import (
    StoreError,
    check_format,
    folder_name,
    read_facts,
    read_tensors,
    write_tensors,
)

FORMAT = 2  # version of a file of reconstructions; it rises when older code could not read it

Status = Literal["converged", "stalled", "diverged"]


@dataclass(frozen=True, eq=False)
class Reconstruction:
    """One attack's guess at one client's private batch.

    Attributes
    ----------
    trial, round, partition
        Of the observation it was made from (the last one, for attacks over several rounds).
    attack : str
        Name of the attack.
    images : Tensor
        ``(n, C, H, W)`` float32; not clamped, scoring does that.
    labels : Tensor
        ``(n,)`` int64 guessed labels, paired with ``images``.
    loss : float
        The attack's own loss at ``images``; what restarts choose by.
    status : "converged", "stalled" or "diverged"
        Of the optimizer alone; says nothing about the truth.
    objective : str
        Spec of the `AttackLoss` that was minimised, so that `results` can
        evaluate it at the truth.
    evaluations : int
        Gradient evaluations spent, over all restarts and guesses.
    evidence : tuple of float
        How well it was predicted what the attack did not see, mean nats of `BLOCKS` groups of
        elements (`fl_sim.observed.evidence.nats`); what attacks are compared by. Empty if nothing
        was held back.
    others : Tensor
        ``(k, n, C, H, W)`` float32 guesses that were not chosen; only to tell, with the truth, how
        good the choice was.
    """

    trial: str
    round: int
    partition: int
    attack: str
    images: Tensor
    labels: Tensor
    loss: float
    status: Status
    objective: str
    evaluations: int
    evidence: tuple[float, ...] = ()
    others: Tensor = field(default_factory=lambda: torch.zeros(0, 0, 0, 0, 0))


def reconstruction_path(root: Path, trial: str, attack: str, server_round: int) -> Path:
    """Return the file of one attack on one round of one trial below ``root``."""
    return root / trial / folder_name(attack) / f"round-{server_round:05d}.safetensors"


def save_reconstructions(path: Path, reconstructions: Sequence[Reconstruction], key: str) -> None:
    """Write one attack's reconstructions of one round to one file, atomically.

    ``key`` fingerprints what they were made from, so that a later run knows whether they stand.
    """
    tensors: dict[str, Tensor] = {}
    facts: list[dict[str, Any]] = []
    for number, made in enumerate(reconstructions):
        tensors |= {f"{name}.{number}": getattr(made, name) for name in _TENSORS}
        facts.append(
            {f.name: getattr(made, f.name) for f in fields(made) if f.name not in _TENSORS}
        )
    write_tensors(path, tensors, {"format": FORMAT, "key": key, "reconstructions": facts})


def load_reconstructions(path: Path) -> tuple[list[Reconstruction], str]:
    """Read what `save_reconstructions` wrote: the reconstructions and their key.

    Raises
    ------
    StoreError
        If the file is truncated, altered, of another format version, or not a reconstruction.
    """
    tensors, facts = read_tensors(path)
    check_format(path, facts, FORMAT)
    try:
        made = [
            Reconstruction(
                images=tensors[f"images.{number}"],
                labels=tensors[f"labels.{number}"],
                others=tensors[f"others.{number}"],
                **entry | {"evidence": tuple(entry["evidence"])},
            )
            for number, entry in enumerate(facts["reconstructions"])
        ]
        for one in made:
            check_types(one)
        return made, str(facts["key"])
    except (KeyError, TypeError) as error:
        raise StoreError(f"{path.name} in {path.parent} holds no reconstructions") from error


def check_types(made: Reconstruction) -> None:
    """Raise `TypeError` unless a reconstruction is of the types that a file holds."""
    for name, kind in _KINDS.items():
        if type(getattr(made, name)) is not kind:
            raise TypeError(f"{name} is not of type {kind.__name__}")
    images, labels = made.images, made.labels
    if images.dtype != torch.float32 or images.dim() != 4 or labels.dtype != torch.int64:
        raise TypeError(f"images are {images.dtype}, labels {labels.dtype}")
    if labels.shape != images.shape[:1]:
        raise TypeError(f"images are {tuple(images.shape)}, labels {tuple(labels.shape)}")
    if made.others.dtype != torch.float32 or made.others.dim() != 5:
        raise TypeError(f"others are {made.others.dtype}, {tuple(made.others.shape)}")
    if not all(type(nats) is float for nats in made.evidence):
        raise TypeError("evidence is not of type float")
    if made.status not in get_args(Status):
        raise TypeError(f"status is {made.status!r}, not one of {', '.join(get_args(Status))}")


def reconstruction_key(path: Path) -> str:
    """Return the key of a file that `save_reconstructions` wrote, from its header alone.

    Raises
    ------
    StoreError
        If the file is truncated, of another format version, or not a reconstruction.
    """
    facts = read_facts(path)
    check_format(path, facts, FORMAT)
    try:
        return str(facts["key"])
    except (KeyError, TypeError) as error:
        raise StoreError(f"{path.name} in {path.parent} holds no reconstructions") from error


_TENSORS = ("images", "labels", "others")
_KINDS = {
    "trial": str,
    "round": int,
    "partition": int,
    "attack": str,
    "loss": float,
    "status": str,
    "objective": str,
    "evaluations": int,
    "evidence": tuple,
}
