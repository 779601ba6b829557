"""Images read off the sum of updates of clients that were each sent a section of their own."""

from math import prod

import torch
from torch import Tensor

from attacker.matching.problems import Problems
from attacker.readers.imprints.bins import alone_in_bins
from attacker.readers.imprints.imprint import filled
from fl_sim.models import ModelSpec
from fl_sim.models.loki import Loki
from fl_sim.updates.local_update import flat_model

_EMPTY = 1e-4  # relative to the brightest bin; rounding errors in empty bins are smaller
_OCCUPIED = 0.02  # of a section's brightest bin, relative to that of all; noise is fainter
_BLACK = 1e-6  # least brightness, of a pixel's range


def has_sections(model: ModelSpec) -> bool:
    """Tell whether the model has the layers of LOKI, which only a malicious server adds."""
    return isinstance(flat_model(model).module, Loki)


def invert_sections(problems: Problems) -> Tensor:
    """Read the images of all clients whose updates were added up, or those of one client.

    In the section of a client, the difference of two neighbouring units' weight gradients is the
    image whose brightness lies between their thresholds, times its error signal (LOKI, Zhao et al.
    2023, arXiv 2303.12233). Error signals of all clients add up in the bias gradient; they are
    shared out such that every image has the brightness of its bin. All occupied sections are
    taken to hold equally many images.

    Returns
    -------
    Tensor
        ``(B, n, C, H, W)`` in [0, 1], client by client; within a client, the dark images first.
        What no bin holds stays grey. The order has nothing to do with that of `recover_labels`.
    """
    pixels = prod(problems.model.shape)
    rows = alone_in_bins(filled(problems))  # (B, bins, clients * pixels)
    sections = rows.reshape(*rows.shape[:2], -1, pixels).transpose(1, 2)
    errors = alone_in_bins(problems.decoded("imprint.bias"))
    planted = problems.flat_model.layout.unflatten(problems.weights)
    thresholds = -planted["imprint.bias"] / (planted["imprint.weight"][:, 0] * pixels)
    count = problems.work.images
    read = [_read(*one, thresholds, count) for one in zip(sections, errors, strict=True)]
    return torch.stack(read).reshape(-1, *problems.image_shape)


def _read(sections: Tensor, errors: Tensor, thresholds: Tensor, count: int) -> Tensor:
    """Return ``(count, pixels)`` images of sections ``(clients, bins, pixels)`` of one sum."""
    size = sections.mean(dim=2)  # brightness times error signal, of each bin of each client
    full = size.abs() > _EMPTY * size.abs().max()
    images = sections.new_full((count, sections.shape[2]), 0.5)
    loudest = size.abs().amax(dim=1)
    occupied = (loudest > _OCCUPIED * loudest.max()).nonzero()[:count, 0].tolist()
    share = _shares(size * full, errors, thresholds)
    for number, client in enumerate(occupied):
        each = count // len(occupied)
        largest = size[client].abs().topk(min(each, len(errors))).indices.sort().values
        bins = largest[full[client, largest]]
        read = sections[client, bins] / share[client, bins, None]
        images[number * each : number * each + len(bins)] = read
    return images.clamp(0, 1)


def _shares(size: Tensor, errors: Tensor, thresholds: Tensor) -> Tensor:
    """Return the error signal of each bin of each client, ``(clients, bins)``.

    Those of all clients add up to ``errors`` ``(bins,)``, and the brightness of each image, which
    is its ``size`` divided by its error signal, lies in its bin.
    """
    low = thresholds.clamp_min(_BLACK)
    high = torch.cat([thresholds[1:], thresholds.new_ones(1)]).clamp_min(_BLACK)
    guess = size / ((low + high) / 2)
    missing = errors - guess.sum(dim=0)
    part = guess.abs() / guess.abs().sum(dim=0).clamp_min(torch.finfo(guess.dtype).tiny)
    return size.sign() * ((guess + missing * part) * size.sign()).clamp(
        size.abs() / high, size.abs() / low
    )
