"""Models sized to the data they see; none has buffers, so an update holds all they learn."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from hashlib import sha256
from itertools import pairwise

import torch
from torch import Tensor, nn

from fl_sim.seeding import Purpose, torch_rng

IMPRINT_BINS = 128
"""Units of an imprint layer; two images of a batch of 8 share a bin once in five batches."""


@dataclass(frozen=True)
class ModelSpec:
    """Public description of a model: enough for anyone to build it again.

    Attributes
    ----------
    name : str
        A key of ``MODELS``.
    shape : tuple[int, int, int]
        Channels, height and width of one image.
    classes : int
        Number of labels.
    """

    name: str
    shape: tuple[int, int, int]
    classes: int


class LeNet(nn.Module):
    """The LeNet of Deep Leakage from Gradients (Zhu et al. 2019): three 5x5 convolutions of 12.

    Strides 2, 2, 1 and no pooling: twice differentiable, which gradient matching needs.
    """

    def __init__(self, spec: ModelSpec, activation: Callable[[], nn.Module]) -> None:
        super().__init__()
        channels, height, width = spec.shape
        self.body = nn.Sequential(
            nn.Conv2d(channels, 12, 5, stride=2, padding=2),
            activation(),
            nn.Conv2d(12, 12, 5, stride=2, padding=2),
            activation(),
            nn.Conv2d(12, 12, 5, stride=1, padding=2),
            activation(),
        )
        features = 12 * (-(-height // 4)) * (-(-width // 4))
        self.head = nn.Linear(features, spec.classes)

    def forward(self, images: Tensor) -> Tensor:
        """Map images ``(n, C, H, W)`` to logits ``(n, classes)``."""
        logits: Tensor = self.head(self.body(images).flatten(1))
        return logits


class ConvNet(nn.Module):
    """Three 3x3 convolution blocks of 32, 64 and 128 channels with GroupNorm and GELU."""

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        widths = (spec.shape[0], 32, 64, 128)
        blocks: list[nn.Module] = []
        for inputs, outputs in pairwise(widths):
            blocks += [
                nn.Conv2d(inputs, outputs, 3, stride=2, padding=1),
                nn.GroupNorm(8, outputs),
                nn.GELU(),
            ]
        self.body = nn.Sequential(*blocks, nn.AdaptiveAvgPool2d(2))
        self.head = nn.Linear(widths[-1] * 4, spec.classes)

    def forward(self, images: Tensor) -> Tensor:
        """Map images ``(n, C, H, W)`` to logits ``(n, classes)``."""
        logits: Tensor = self.head(self.body(images).flatten(1))
        return logits


class MLP(nn.Module):
    """Two fully connected layers of 128 tanh units; its first layer leaks in closed form."""

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        channels, height, width = spec.shape
        self.body = nn.Sequential(
            nn.Linear(channels * height * width, 128), nn.Tanh(), nn.Linear(128, 128), nn.Tanh()
        )
        self.head = nn.Linear(128, spec.classes)

    def forward(self, images: Tensor) -> Tensor:
        """Map images ``(n, C, H, W)`` to logits ``(n, classes)``."""
        logits: Tensor = self.head(self.body(images.flatten(1)))
        return logits


class Imprinted(nn.Module):
    """A LeNet behind an imprint layer: ACTIVE threat model, a malicious server changes the model.

    The layer a server plants to read images of batches of any size ("Robbing the Fed", Fowl et al.
    2022, arXiv 2110.13057): `IMPRINT_BINS` ReLU units on the pixels, whose sum is added to every
    pixel. Adding up makes the gradient with respect to every unit the same, so that the difference
    of two units' gradients is due to the images that only one of them saw. The bins are public.
    """

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        channels, height, width = spec.shape
        self.imprint = nn.Linear(channels * height * width, IMPRINT_BINS)
        self.lenet = LeNet(spec, nn.Tanh)

    def forward(self, images: Tensor) -> Tensor:
        """Map images ``(n, C, H, W)`` to logits ``(n, classes)``."""
        shift = self.imprint(images.flatten(1)).relu().sum(dim=1)
        logits: Tensor = self.lenet(images + shift[:, None, None, None])
        return logits


def _lenet_dlg(spec: ModelSpec) -> nn.Module:
    model = LeNet(spec, nn.Sigmoid)
    for parameter in model.parameters():  # the paper's U(-0.5, 0.5)
        nn.init.uniform_(parameter, -0.5, 0.5)
    return model


def _resnet18(spec: ModelSpec) -> nn.Module:
    from torchvision.models.resnet import (  # noqa: PLC0415 - 130 MB, only where needed
        BasicBlock,
        ResNet,
    )

    model: nn.Module = ResNet(
        BasicBlock,
        [2, 2, 2, 2],
        num_classes=spec.classes,
        norm_layer=lambda width: nn.GroupNorm(min(32, width // 4), width),
    )
    # The CIFAR stem: small images do not survive the 7x7 stride-2 stem and its pooling.
    model.conv1 = nn.Conv2d(spec.shape[0], 64, 3, stride=1, padding=1, bias=False)
    model.maxpool = nn.Identity()
    return model


_MAX_SIDE, _MAX_CLASSES = 4096, 65536


def check_spec(spec: ModelSpec) -> None:
    """Raise `ValueError` unless a model of this spec exists and has a sane size."""
    numbers = (*spec.shape, spec.classes)
    if not isinstance(spec.name, str) or spec.name not in MODELS or len(spec.shape) != 3:
        raise ValueError(f"there is no model {spec.name!r} for images of shape {spec.shape}")
    if not all(type(n) is int and n >= 1 for n in numbers):
        raise ValueError(
            f"shape {spec.shape} and {spec.classes!r} classes must be whole and positive"
        )
    if max(spec.shape) > _MAX_SIDE or spec.classes > _MAX_CLASSES:
        raise ValueError(f"shape {spec.shape} or {spec.classes} classes are too large")


MODELS: dict[str, Callable[[ModelSpec], nn.Module]] = {
    "lenet_dlg": _lenet_dlg,
    "lenet": lambda spec: LeNet(spec, nn.Tanh),
    "convnet": ConvNet,
    "mlp": MLP,
    "resnet18": _resnet18,
    "imprint_lenet": Imprinted,
}


def register_model(name: str, build: Callable[[], nn.Module]) -> None:
    """Make somebody else's model one that can be attacked, under a name of its own."""
    MODELS[name] = lambda _: build()


def partly_trained(
    spec: ModelSpec, fixed: Mapping[str, Tensor], trained: Collection[str]
) -> ModelSpec:
    """Return a model of which only ``trained`` parameters are trained, and others are ``fixed``.

    Parameters
    ----------
    spec : ModelSpec
        The model.
    fixed : Mapping[str, Tensor]
        Values of parameters and buffers that nobody trains, by name.
    trained : collection of str
        Names of parameters.
    """
    digest = sha256(repr((sorted(trained), sorted(fixed))).encode())
    for name in sorted(fixed):
        digest.update(fixed[name].numpy().tobytes())

    def build(_: ModelSpec) -> nn.Module:
        model = MODELS[spec.name](spec)
        tensors = model.state_dict()  # which shares their memory
        for name, value in fixed.items():
            tensors[name].copy_(value)
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name in trained)
        return model

    own = replace(spec, name=f"{spec.name}@{digest.hexdigest()[:16]}")
    MODELS.setdefault(own.name, build)
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
    KeyError
        If ``spec.name`` is not in ``MODELS``.
    """
    build = MODELS[spec.name]
    state = int(torch_rng(seed, Purpose.MODEL).initial_seed())
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(state)
        return build(spec)
