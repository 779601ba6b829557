"""What a model is called, and how it is built from its name."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from hashlib import sha256
from uuid import uuid4

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parameter import is_lazy

from fl_sim.registry import one_line, resolve
from fl_sim.seeding import Purpose, torch_rng


@dataclass(frozen=True)
class ModelSpec:
    """Public description of a model: enough for anyone to build it again.

    Attributes
    ----------
    name : str
        A spec of the registry, such as ``lenet``; or one of this process, see `register_model`.
    shape : tuple[int, int, int]
        Channels, height and width of one image.
    classes : int
        Number of labels.
    """

    name: str
    shape: tuple[int, int, int]
    classes: int


_MAX_SIDE, _MAX_CLASSES = 4096, 65536


def check_spec(spec: ModelSpec) -> None:
    """Raise `ValueError` unless a model of this spec exists and has a sane size."""
    numbers = (*spec.shape, spec.classes)
    if not isinstance(spec.name, str) or len(spec.shape) != 3:
        raise ValueError(f"there is no model {spec.name!r} for images of shape {spec.shape}")
    _builder(spec.name)
    if not all(type(n) is int and n >= 1 for n in numbers):
        raise ValueError(
            f"shape {spec.shape} and {spec.classes!r} classes must be whole and positive"
        )
    if max(spec.shape) > _MAX_SIDE or spec.classes > _MAX_CLASSES:
        raise ValueError(f"shape {spec.shape} or {spec.classes} classes are too large")


def check_fits(spec: ModelSpec) -> None:
    """Raise `ValueError`, in one line, unless the model can be built and classifies its images.

    Nothing is computed: its shapes alone are.
    """
    check_spec(spec)
    size = "x".join(map(str, spec.shape))
    with torch.device("meta"):
        try:
            model = build_model(spec)
        except ValueError:
            raise
        except Exception as error:
            raise ValueError(f"{spec.name} cannot be built ({one_line(error)})") from error
        if not isinstance(model, nn.Module):
            raise ValueError(f"{spec.name} builds a {type(model).__name__}, not a torch.nn.Module")
        try:
            found = model.eval()(torch.empty(2, *spec.shape))
        except Exception as error:
            raise ValueError(
                f"{spec.name} cannot classify {size} images ({one_line(error)})"
            ) from error
    shape = tuple(found.shape) if isinstance(found, torch.Tensor) else type(found).__name__
    if shape != (2, spec.classes):
        raise ValueError(
            f"{spec.name} makes {shape} of 2 {size} images, not logits (2, {spec.classes})"
        )


_of_this_process: dict[str, Callable[[ModelSpec], nn.Module]] = {}


def register_model(name: str, build: Callable[[], nn.Module]) -> None:
    """Name a model of this process, such as that of an app that is audited."""
    _of_this_process[name] = lambda _: build()


def spec_of_app(
    build: Callable[[], nn.Module], shape: tuple[int, int, int], classes: int
) -> ModelSpec:
    """Register the model of an app in this process, and return a spec that names no other."""
    name = f"{getattr(build, '__qualname__', type(build).__qualname__)}:{uuid4().hex}"
    register_model(name, build)
    return ModelSpec(name, shape, classes)


def build_architecture(spec: ModelSpec) -> nn.Module:
    """Build a model with weights from torch's global random state.

    Layers that wait for a first input to know their size, such as ``LazyLinear``, have one.

    Raises
    ------
    ValueError
        If there is no model of this name.
    """
    model = _builder(spec.name)(spec)
    if isinstance(model, nn.Module) and any(map(is_lazy, model.state_dict().values())):
        modes = [(layer, layer.training) for layer in model.modules()]
        with torch.no_grad():
            model.eval()(torch.zeros(1, *spec.shape))
        for layer, mode in modes:
            layer.training = mode
    return model


def _builder(name: str) -> Callable[[ModelSpec], nn.Module]:
    return _of_this_process.get(name) or resolve("model", name)


def partly_trained(
    spec: ModelSpec, fixed: Mapping[str, Tensor], trained: Collection[str]
) -> ModelSpec:
    """Return a model of which only ``trained`` parameters are trained, and others are ``fixed``.

    Parameters
    ----------
    spec : ModelSpec
        The model.
    fixed : Mapping[str, Tensor]
        Values of parameters and buffers that nobody trains, by name. BatchNorm layers whose running
        statistics are among them are in evaluation mode, all others in training mode.
    trained : collection of str
        Names of parameters.
    """
    digest = sha256(repr((sorted(trained), sorted(fixed))).encode())
    for name in sorted(fixed):
        digest.update(fixed[name].numpy().tobytes())

    def build(_: ModelSpec) -> nn.Module:
        model = build_architecture(spec)
        tensors = model.state_dict()  # which shares their memory
        for name, value in fixed.items():
            tensors[name].copy_(value)
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name in trained)
        for name, layer in model.named_modules():
            if isinstance(layer, _BatchNorm):
                layer.train(f"{name}.running_mean" not in fixed)
        return model

    own = replace(spec, name=f"{spec.name}@{digest.hexdigest()[:16]}")
    _of_this_process.setdefault(own.name, build)
    return own


def build_model(spec: ModelSpec, seed: int = 0) -> nn.Module:
    """Build a model whose initial weights are a pure function of ``seed``.

    Parameters
    ----------
    spec : ModelSpec
        What to build.
    seed : int
        Seed of the run; the global random state is left as it was.

    Raises
    ------
    ValueError
        If there is no model of this name.
    """
    state = int(torch_rng(seed, Purpose.MODEL).initial_seed())
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(state)
        return build_architecture(spec)
