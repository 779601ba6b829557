"""Learned inversion: regression from quantized updates to images, and a network that refines it."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import torch
from torch import Tensor, nn

from attacker.matching.labels import recover_labels
from attacker.matching.problems import Problems
from attacker.readers.synthetic import synthetic_images
from fl_sim.coding.cell import Cell
from fl_sim.data.public_images import PublicImages
from fl_sim.seeding import Purpose, torch_rng
from fl_sim.updates.local_update import Update, one_hot

MOST_PUBLIC, MOST_SYNTHETIC = 2000, 1500
"""Example images used at most; the cost grows with their square."""

RIDGES = (0.01, 0.03, 0.1, 0.3, 1.0)
"""Ridges tried, as shares of the kernel's mean diagonal."""

_CHUNK = 100
_DILATIONS, _WIDTH = (1, 2, 4, 2, 1), 32  # of the network's convolutions
_STEPS, _BATCH, _RATE = 300, 32, 3e-3
_IMAGES_PER_PIXEL = 4  # more examples of small images do not help


def invert_by_ridge(problems: Problems, images: Tensor, seed: int) -> Tensor:
    """Predict single images from their quantized updates by regression on example images.

    The server computes the update that every example *would have caused with the label it
    recovered from the victim's update*, sends it through the same quantizer, and regresses images
    on codes. Each tensor is scaled to unit norm: at trained weights the norms of updates vary a
    thousandfold, with the loss and not with the image. One regression serves all victims of a
    round that share a label. A closed form of Learning to Invert (Wu et al. 2023, arXiv
    2210.10880), which trains a network on the examples' own labels.

    Parameters
    ----------
    problems : Problems
        B problems of one image each.
    images : Tensor
        ``(N, C, H, W)`` examples: `public_examples` or `synthetic_examples`.
    seed : int
        Seed of the quantizer's randomness on the examples.

    Returns
    -------
    Tensor
        ``(B, 1, C, H, W)``.
    """
    found = images.new_zeros(len(problems), *problems.image_shape)
    for members, regression, asked in _regressions(problems, images, seed):
        found[members, 0] = regression.predict(asked)
    return found


def invert_by_network(problems: Problems, images: Tensor, seed: int) -> Tensor:
    """Predict single images by a network whose first layer is the regression of `invert_by_ridge`.

    Convolutions refine the image that the regression predicts. They learn on the predictions for
    the examples, each by the regression that leaves it out, for all labels at once. Learning to
    Invert trains all layers, on 50,000 images for 200 epochs; with a first layer in closed form, a
    thousandth of that does. Parameters and result as `invert_by_ridge`.
    """
    found = images.new_zeros(len(problems), *problems.image_shape)
    blurred = []
    for members, regression, asked in _regressions(problems, images, seed):
        found[members, 0] = regression.predict(asked)
        blurred.append(regression.without_each())
    network = _trained(torch.cat(blurred), images.repeat(len(blurred), 1, 1, 1), seed)
    with torch.no_grad():
        refined: Tensor = network(found[:, 0])
    return refined[:, None]


def public_examples(public: PublicImages) -> Tensor:
    """Return as many of the public images as a regression uses, ``(N, C, H, W)``."""
    return public.images[: _enough(MOST_PUBLIC, public.images[0])]


def synthetic_examples(shape: tuple[int, int, int], seed: int) -> Tensor:
    """Return as many synthetic images as a regression uses, ``(N, C, H, W)``."""
    return synthetic_images(shape, _enough(MOST_SYNTHETIC, torch.empty(shape)), seed)


def _enough(most: int, image: Tensor) -> int:
    return min(most, _IMAGES_PER_PIXEL * image.numel())


def _regressions(
    problems: Problems, images: Tensor, seed: int
) -> Iterator[tuple[Tensor, "_Regression", Tensor]]:
    """Yield the victims of each label, the regression that serves them, and their codes."""
    labels = recover_labels(problems)[:, 0]
    for label in torch.unique(labels):
        members = (labels == label).nonzero().squeeze(1)
        regression = _Regression.of(_codes(problems, images, int(label), seed), images)
        yield members, regression, _scaled(problems.cell.decoded[members], problems)


def _codes(problems: Problems, images: Tensor, label: int, seed: int) -> Tensor:
    """Return scaled codes ``(N, size)`` of example images, as if of class ``label``."""
    quantizer, layout = problems.quantizer, problems.flat_model.layout
    rng = torch_rng(seed, Purpose.ATTACK, label)
    targets = one_hot(torch.full((len(images), 1), label), problems.model.classes)
    codes = []
    for chunk in torch.arange(len(images)).chunk(-(-len(images) // _CHUNK)):
        with torch.no_grad():
            updates = problems.candidate(images[chunk, None], targets[chunk])
        payloads = [quantizer.encode(Update(update, layout), rng) for update in updates]
        cells = [problems.without_hidden(quantizer.cell(payload)) for payload in payloads]
        cell = Cell.stack(cells)
        codes.append(_scaled(cell.decoded, problems))
    return torch.cat(codes)


def _scaled(codes: Tensor, problems: Problems) -> Tensor:
    pieces = problems.flat_model.layout.split(codes)
    unit = [torch.nn.functional.normalize(piece, dim=-1) for piece in pieces]
    return torch.cat(unit, dim=-1)


@dataclass(frozen=True, eq=False)
class _Regression:
    """Ridge regression from codes to images in its dual form: as many unknowns as examples."""

    mean_code: Tensor  # (d,)
    centered: Tensor  # (N, d) codes of the examples
    images: Tensor  # (N, C, H, W) examples
    inverse: Tensor  # (N, N) of the kernel with the ridge

    @classmethod
    def of(cls, codes: Tensor, images: Tensor) -> "_Regression":
        mean_code = codes.mean(dim=0)
        centered = codes - mean_code
        kernel = centered @ centered.T
        ridge = _best_ridge(kernel, (images - images.mean(dim=0)).flatten(1))
        return cls(mean_code, centered, images, torch.cholesky_inverse(_factor(kernel, ridge)))

    @cached_property
    def weights(self) -> Tensor:
        """Dual weights ``(N, C H W)``."""
        return self.inverse @ (self.images - self.images.mean(dim=0)).flatten(1)

    def predict(self, codes: Tensor) -> Tensor:
        """Predict the images ``(b, C, H, W)`` of codes ``(b, d)``."""
        prediction = (codes - self.mean_code) @ self.centered.T @ self.weights
        return prediction.reshape(-1, *self.images.shape[1:]) + self.images.mean(dim=0)

    def without_each(self) -> Tensor:
        """Predict every example from all others, ``(N, C, H, W)``, without fitting again."""
        missing = self.weights / self.inverse.diagonal()[:, None]
        return self.images - missing.reshape(self.images.shape)


def _best_ridge(kernel: Tensor, values: Tensor) -> float:
    """Return the ridge that predicts a third of the examples best from the others."""
    fit = len(values) * 2 // 3
    errors = []
    for ridge in RIDGES:
        weights = torch.cholesky_solve(values[:fit], _factor(kernel[:fit, :fit], ridge))
        errors.append(float((kernel[fit:, :fit] @ weights - values[fit:]).square().mean()))
    return RIDGES[errors.index(min(errors))]


def _factor(kernel: Tensor, ridge: float) -> Tensor:
    """Cholesky factor of K + ridge mean(diag K) I."""
    scale = kernel.diagonal().mean().clamp_min(torch.finfo(kernel.dtype).tiny)
    factor: Tensor = torch.linalg.cholesky(kernel + ridge * scale * torch.eye(len(kernel)))
    return factor


class _Refiner(nn.Module):
    """Adds the output of a few dilated convolutions to an image; untrained, that is zero."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        widths = (channels, *(_WIDTH for _ in _DILATIONS[1:]), channels)
        layers: list[nn.Module] = []
        for (before, after), dilation in zip(pairwise(widths), _DILATIONS, strict=True):
            layers += [nn.Conv2d(before, after, 3, padding=dilation, dilation=dilation), nn.GELU()]
        self.body = nn.Sequential(*layers[:-1])
        last = self.body[-1]
        assert isinstance(last, nn.Conv2d)
        nn.init.zeros_(last.weight)

    def forward(self, images: Tensor) -> Tensor:
        refined: Tensor = images + self.body(images)
        return refined


def _trained(blurred: Tensor, images: Tensor, seed: int) -> _Refiner:
    """Train a network to map predictions to their images, by mean squared error."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = _Refiner(images.shape[1])
    rng = torch_rng(seed, Purpose.ATTACK, len(images))
    adam = torch.optim.Adam(network.parameters(), _RATE)
    schedule = torch.optim.lr_scheduler.OneCycleLR(adam, _RATE, _STEPS)
    for _ in range(_STEPS):
        batch = torch.randint(len(images), (_BATCH,), generator=rng)
        adam.zero_grad()
        (network(blurred[batch]) - images[batch]).square().mean().backward()
        adam.step()
        schedule.step()
    return network
