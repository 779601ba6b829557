"""Weights of a model in a safetensors file, by the names of its state dict."""

import hashlib
from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from fl_sim.storage.files import write_bytes


def write_weights(path: Path, module: nn.Module) -> None:
    """Write the parameters and buffers of a model."""
    tensors = {name: one.detach().cpu().contiguous() for name, one in module.state_dict().items()}
    write_bytes(path, save(tensors))


def read_weights(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a safetensors file; raise `ValueError` if it cannot be read."""
    try:
        return load_file(path)
    except (OSError, SafetensorError, ValueError) as error:
        raise ValueError(f"cannot be read as safetensors ({error})") from error


def digest_of(tensors: Mapping[str, Tensor]) -> str:
    """Return 16 hexadecimal digits that stand for names, shapes, types and values of tensors."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        one = tensors[name].contiguous()
        digest.update(repr((name, tuple(one.shape), str(one.dtype))).encode())
        digest.update(one.flatten().view(-1).numpy().tobytes())
    return digest.hexdigest()[:16]


def load_weights(module: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Copy tensors into a model.

    Raises
    ------
    ValueError
        If a name or a shape differs, or a value is not finite; one line names the first.
    """
    own = module.state_dict()
    for name in own:
        if name not in tensors:
            raise ValueError(f"has no tensor {name!r}, which the model has")
    for name, one in tensors.items():
        if name not in own:
            raise ValueError(f"has a tensor {name!r}, which the model has not")
        if one.shape != own[name].shape:
            shapes = f"{tuple(one.shape)}, and {tuple(own[name].shape)} in the model"
            raise ValueError(f"has a tensor {name!r} of shape {shapes}")
        if not bool(one.isfinite().all()):
            raise ValueError(f"has a tensor {name!r} with values that are not finite")
    module.load_state_dict(dict(tensors))
