"""What a server keeps of one client in one round, and its store on disk."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from fl_sim.files import StoreError, read_tensors, write_tensors
from fl_sim.models import ModelSpec
from fl_sim.quantizers.payload import Payload, PayloadError
from fl_sim.updates import LocalWork, flat_model


@dataclass(frozen=True, eq=False)
class Observation:
    """All an honest-but-curious server knows of one client's update; never data, never labels.

    Attributes
    ----------
    trial : str
        Name of the trial (one quantizer x one seed), also the folder it is stored in.
    round : int
        1-based training round.
    partition : int
        Which client.
    model : ModelSpec
        The architecture, public.
    work : LocalWork
        Update kind, batch size, learning rate, local steps: public.
    weights : Tensor
        ``(size,)`` float32 weights the client was given; one tensor shared by a round.
    payload : Payload
        The bytes received; ``payload.spec`` names the quantizer.
    """

    trial: str
    round: int
    partition: int
    model: ModelSpec
    work: LocalWork
    weights: Tensor
    payload: Payload


def round_path(root: Path, trial: str, server_round: int) -> Path:
    """Return the file of one round of one trial below ``root``."""
    return root / trial / f"round-{server_round:05d}.safetensors"


def save_observations(root: Path, observations: Sequence[Observation]) -> None:
    """Write the observations of one round of one trial to one file, atomically."""
    first = observations[0]
    tensors = {f"payload.{o.partition}": _as_bytes(o.payload) for o in observations}
    facts = {
        "trial": first.trial,
        "round": first.round,
        "model": asdict(first.model),
        "work": asdict(first.work),
    }
    path = round_path(root, first.trial, first.round)
    write_tensors(path, {"weights": first.weights, **tensors}, facts)


def load_observations(path: Path) -> list[Observation]:
    """Read the observations of one round, sorted by partition.

    Raises
    ------
    StoreError
        If the file is truncated, altered, or does not hold what `save_observations` wrote.
    """
    tensors, facts = read_tensors(path)
    try:
        model = facts["model"]
        spec = ModelSpec(model["name"], tuple(model["shape"]), model["classes"])
        work = LocalWork(**facts["work"])
        layout = flat_model(spec).layout
        weights = tensors.pop("weights")
        if weights.shape != (layout.size,) or weights.dtype != torch.float32:
            raise ValueError(f"weights of shape {tuple(weights.shape)} are not the model's")
        payloads = {
            int(name.removeprefix("payload.")): Payload.from_bytes(raw.numpy().tobytes(), layout)
            for name, raw in tensors.items()
        }
        return [
            Observation(
                facts["trial"], facts["round"], partition, spec, work, weights, payloads[partition]
            )
            for partition in sorted(payloads)
        ]
    except (KeyError, TypeError, ValueError, PayloadError) as error:
        raise StoreError(f"{path.name} in {path.parent} is not an observation: {error}") from error


def _as_bytes(payload: Payload) -> Tensor:
    return torch.frombuffer(bytearray(payload.to_bytes()), dtype=torch.uint8)
