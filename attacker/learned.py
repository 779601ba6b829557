"""Learned inversion in closed form: kernel ridge regression from quantized updates to images."""

import torch
from torch import Tensor

from attacker.labels import recover_labels
from attacker.problems import Problems
from fl_sim.public_images import PublicImages
from fl_sim.quantizers.cell import Cell
from fl_sim.seeding import Purpose, torch_rng
from fl_sim.updates import Update, one_hot

MOST_IMAGES = 3000
"""Public images used; the cost grows with their square."""

RIDGE = 0.1
"""Ridge, as a share of the kernel's mean diagonal."""

_CHUNK = 100


def invert_by_ridge(problems: Problems, public: PublicImages, seed: int) -> Tensor:
    """Predict single images from their quantized updates by regression on public images.

    The server computes the update that every public image *would have caused with the label it
    recovered from the victim's update*, sends it through the same quantizer, and regresses images
    on codes (each tensor scaled to unit norm, then divided by the root of their number: at trained
    weights the sizes of updates vary a thousandfold and tell of the loss, not of the image). One
    regression serves all victims of a round that share a label. A closed form of Learning to
    Invert (Wu et al. 2023, arXiv 2210.10880), which trains a network on the images' own labels.

    Returns ``(B, 1, C, H, W)``.
    """
    labels = recover_labels(problems)[:, 0]
    images = public.images[:MOST_IMAGES]
    found = images.new_zeros(len(problems), *problems.image_shape)
    for label in torch.unique(labels):
        members = (labels == label).nonzero().squeeze(1)
        known = _public_codes(problems, images, int(label), seed)
        asked = _scaled(problems.cell.center[members], problems.cell)
        found[members, 0] = _regress(known, images, asked)
    return found


def _public_codes(problems: Problems, images: Tensor, label: int, seed: int) -> Tensor:
    """Return scaled codes ``(N, d)`` of public images, as if of class ``label``."""
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
    """Ridge regression in its dual form: as many unknowns as public images."""
    mean_code, mean_image = known.mean(dim=0), images.mean(dim=0)
    centered = known - mean_code
    kernel = centered @ centered.T
    ridge = RIDGE * kernel.diagonal().mean()
    kernel.diagonal().add_(ridge.clamp_min(torch.finfo(kernel.dtype).tiny))
    factor = torch.linalg.cholesky(kernel)
    weights = torch.cholesky_solve((images - mean_image).flatten(1), factor)
    prediction = (asked - mean_code) @ centered.T @ weights
    return prediction.reshape(-1, *images.shape[1:]) + mean_image
