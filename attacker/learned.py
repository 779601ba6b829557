"""Learned inversion in closed form: ridge regression from quantized updates to images."""

import torch
from torch import Tensor

from attacker.labels import recover_labels
from attacker.problems import Problems
from attacker.synthetic import synthetic_images
from fl_sim.public_images import PublicImages
from fl_sim.quantizers.cell import Cell
from fl_sim.seeding import Purpose, torch_rng
from fl_sim.updates import Update, one_hot

MOST_PUBLIC, MOST_SYNTHETIC = 2000, 1500
"""Example images used at most; the cost grows with their square."""

RIDGES = (0.01, 0.03, 0.1, 0.3, 1.0)
"""Ridges tried, as shares of the kernel's mean diagonal."""

_CHUNK = 100
_IMAGES_PER_PIXEL = 4  # more examples of small pictures teach nothing


def invert_by_ridge(problems: Problems, images: Tensor, seed: int) -> Tensor:
    """Predict single images from their quantized updates by regression on example images.

    The server computes the update that every example *would have caused with the label it
    recovered from the victim's update*, sends it through the same quantizer, and regresses images
    on codes (each tensor scaled to unit norm: at trained weights the sizes of updates vary a
    thousandfold and tell of the loss, not of the image). One regression serves all victims of a
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
    labels = recover_labels(problems)[:, 0]
    found = images.new_zeros(len(problems), *problems.image_shape)
    for label in torch.unique(labels):
        members = (labels == label).nonzero().squeeze(1)
        known = _codes(problems, images, int(label), seed)
        asked = _scaled(problems.cell.center[members], problems.cell)
        found[members, 0] = _regress(known, images, asked)
    return found


def public_examples(public: PublicImages) -> Tensor:
    """Return as many of the public images as a regression uses, ``(N, C, H, W)``."""
    return public.images[: _enough(MOST_PUBLIC, public.images[0])]


def synthetic_examples(shape: tuple[int, int, int], seed: int) -> Tensor:
    """Return as many synthetic images as a regression uses, ``(N, C, H, W)``."""
    return synthetic_images(shape, _enough(MOST_SYNTHETIC, torch.empty(shape)), seed)


def _enough(most: int, image: Tensor) -> int:
    return min(most, _IMAGES_PER_PIXEL * image.numel())


def _codes(problems: Problems, images: Tensor, label: int, seed: int) -> Tensor:
    """Return scaled codes ``(N, d)`` of example images, as if of class ``label``."""
    quantizer, layout = problems.quantizer, problems.flat_model.layout
    rng = torch_rng(seed, Purpose.ATTACK, label)
    targets = one_hot(torch.full((len(images), 1), label), problems.model.classes)
    codes = []
    for chunk in torch.arange(len(images)).chunk(-(-len(images) // _CHUNK)):
        with torch.no_grad():
            updates = problems.candidate(images[chunk, None], targets[chunk])
        payloads = [quantizer.encode(Update(update, layout), rng) for update in updates]
        cell = Cell.stack([quantizer.cell(payload) for payload in payloads])
        codes.append(_scaled(cell.center, cell))
    return torch.cat(codes)


def _scaled(codes: Tensor, cell: Cell) -> Tensor:
    pieces = torch.split(codes, list(cell.sizes), dim=-1)
    unit = [torch.nn.functional.normalize(piece, dim=-1) for piece in pieces]
    return torch.cat(unit, dim=-1)


def _regress(known: Tensor, images: Tensor, asked: Tensor) -> Tensor:
    """Ridge regression in its dual form: as many unknowns as examples."""
    mean_code, mean_image = known.mean(dim=0), images.mean(dim=0)
    centered, values = known - mean_code, (images - mean_image).flatten(1)
    kernel = centered @ centered.T
    weights = _dual(kernel, values, _best_ridge(kernel, values))
    prediction = (asked - mean_code) @ centered.T @ weights
    return prediction.reshape(-1, *images.shape[1:]) + mean_image


def _best_ridge(kernel: Tensor, values: Tensor) -> float:
    """Return the ridge that predicts a third of the examples best from the others."""
    fit = len(values) * 2 // 3
    errors = []
    for ridge in RIDGES:
        weights = _dual(kernel[:fit, :fit], values[:fit], ridge)
        errors.append(float((kernel[fit:, :fit] @ weights - values[fit:]).square().mean()))
    return RIDGES[errors.index(min(errors))]


def _dual(kernel: Tensor, values: Tensor, ridge: float) -> Tensor:
    """Solve (K + ridge mean(diag K) I) w = values."""
    scale = kernel.diagonal().mean().clamp_min(torch.finfo(kernel.dtype).tiny)
    shifted = kernel + ridge * scale * torch.eye(len(kernel))
    return torch.cholesky_solve(values, torch.linalg.cholesky(shifted))
