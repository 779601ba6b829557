"""Signs that a model was made to read its clients' images: numbers that honest training keeps low.

Every sign is zero or more, and larger is more suspicious. The value of a model is the largest over
its layers. They follow what published plans have in common: units that are copies, constant or
nearly empty ("Robbing the Fed", arXiv 2110.13057; LOKI, arXiv 2303.12233), weights that cancel too
evenly (arXiv 2112.02918), images that have a unit or a layer to themselves (SEER, arXiv
2306.03013), and jumps of weights and loss (arXiv 2511.10502).
"""

from collections.abc import Iterator, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from fl_sim.updates.local_update import FlatModel, one_hot

LIMITS: Mapping[str, float] = {
    "copies": 0.02,
    "alike": 0.5,
    "concentrated": 0.45,
    "empty": 0.01,
    "constant": 0.3,
    "even": 1.5,
    "biased": 0.5,
    "moved": 0.3,
    "still": 0.3,
    "lonely": 0.3,
    "disaggregated": 1.5,
    "surprise": 1.5,
}
"""What honest models stay below; ``benchmarks.inspection --limits`` prints what they reach.

``moved`` is that of one local step or few; clients that train for epochs give it a larger limit.
"""

_MOST_ROWS = 512  # of a layer that are compared with each other
_COPY = 0.99  # cosine of two rows that are copies
_NOTHING = 1e-3  # of a weight, relative to the rms of its layer
_ALONE = 0.9  # share of a unit's gradient that is due to one image
_TINY = 1e-12


class Layer(NamedTuple):
    """The rows ``(units, inputs)`` of a layer, and its biases ``(units,)`` if it has any."""

    rows: Tensor
    bias: Tensor | None


def layers_of(tensors: Mapping[str, Tensor]) -> Iterator[Layer]:
    """Yield the layers of a model with at least four units of four inputs each."""
    for name, tensor in tensors.items():
        if tensor.dim() > 1 and len(tensor) >= 4 and tensor[0].numel() >= 4:
            bias = tensors.get(name.removesuffix("weight") + "bias")
            fits = bias is not None and bias.shape == tensor.shape[:1]
            yield Layer(tensor.flatten(1).float(), bias if fits else None)


def signs_of_weights(tensors: Mapping[str, Tensor]) -> dict[str, float]:
    """Return the signs that weights alone give.

    ``copies``: share of units whose weights are those of another, times a number. ``alike``: cosine
    with the most similar unit. ``concentrated``: share of a unit's energy in one weight. ``empty``:
    share of weights that are next to nothing. ``constant``: how far a unit's weights are one
    number. ``even``: how little units differ in the balance of positive and negative weights.
    ``biased``: size of a bias, relative to the unit's weights. Means over the units of a layer.
    """
    found: dict[str, float] = {}
    for layer in layers_of(tensors):
        for name, value in _signs_of_layer(layer).items():
            found[name] = max(found.get(name, 0.0), value)
    return found


def _signs_of_layer(layer: Layer) -> dict[str, float]:
    rows, inputs = layer.rows, layer.rows.shape[1]
    norm = rows.norm(dim=1)
    rms = rows.square().mean().sqrt().clamp_min(_TINY)
    cosine = _largest_cosine(rows)
    found = {
        "copies": float((cosine > _COPY).float().mean()),
        "empty": float((rows.abs() < _NOTHING * rms).float().mean()),
    }
    if layer.bias is not None:
        found["biased"] = float((layer.bias.abs() / norm.clamp_min(float(rms))).mean())
    if inputs >= 9:
        peak = rows.abs().amax(dim=1) / norm.clamp_min(_TINY)
        found["concentrated"] = float(peak.square().mean())
        found["constant"] = float(
            (rows.mean(dim=1).abs() * inputs**0.5 / norm.clamp_min(_TINY)).mean()
        )
    if inputs >= 64:  # rows of fewer inputs are alike by chance
        found["alike"] = float(cosine.mean())
    if inputs >= 16:
        positive = rows.clamp_min(0).sum(dim=1).clamp_min(_TINY)
        negative = (-rows).clamp_min(0).sum(dim=1).clamp_min(_TINY)
        spread = (positive / negative).log().std() * inputs**0.5
        found["even"] = float(1 / spread.clamp_min(1e-3))
    return found


def _largest_cosine(rows: Tensor) -> Tensor:
    """Return the cosine of each row with the row that is most similar, either way up."""
    step = -(-len(rows) // _MOST_ROWS)
    unit = torch.nn.functional.normalize(rows[::step], dim=1)
    return (unit @ unit.T).abs().fill_diagonal_(0).amax(dim=1)


def signs_of_change(
    tensors: Mapping[str, Tensor], previous: Mapping[str, Tensor]
) -> dict[str, float]:
    """Return the signs that the change since the previous round gives.

    ``moved``: change of a layer, relative to it. ``still``: share of layers that did not change
    by a bit, while others did.
    """
    pairs = [(t, previous[n]) for n, t in tensors.items() if t.dim() > 1 and n in previous]
    moved = [float((t - old).norm() / old.norm().clamp_min(_TINY)) for t, old in pairs]
    still = sum(value == 0 for value in moved) / max(1, len(moved))
    return {"moved": max(moved, default=0.0), "still": still if still < 1 else 0.0}


def signs_of_batch(
    model: FlatModel, weights: Tensor, images: Tensor, labels: Tensor
) -> dict[str, float]:
    """Return the signs that a batch of the client's own gives, at least four images.

    ``lonely``: share of the units of a layer that get nine tenths of their gradient from one image;
    of those that get any. ``disaggregated``: gradient of one image in a layer, relative to those of
    all others together (the D-SNR of SEER, arXiv 2306.03013).

    Parameters
    ----------
    model : FlatModel
        The model.
    weights : Tensor
        ``(size,)``, as sent.
    images, labels : Tensor
        ``(n, C, H, W)`` in [0, 1], and ``(n,)``.
    """
    targets = one_hot(labels, model.spec.classes)
    norms: dict[str, list[Tensor]] = {}
    for image, target in zip(images, targets, strict=True):
        gradient = model.eager_gradient(weights, image[None], target[None])
        for name, tensor in model.layout.unflatten(gradient).items():
            if tensor.dim() > 1:
                norms.setdefault(name, []).append(tensor.flatten(1).norm(dim=1))
    found = {"lonely": 0.0, "disaggregated": 0.0}
    for each in norms.values():
        by_unit = torch.stack(each)  # (n, units)
        of_layer = by_unit.norm(dim=1)
        first = of_layer.max()
        share = first / (of_layer.sum() - first).clamp_min(_TINY)
        live = by_unit[:, by_unit.sum(dim=0) > _TINY]
        alone = live.amax(dim=0) > _ALONE * live.sum(dim=0)
        found["disaggregated"] = max(found["disaggregated"], float(share))
        found["lonely"] = max(found["lonely"], float(alone.sum()) / by_unit.shape[1])
    return found


def sign_of_loss(model: FlatModel, weights: Tensor, images: Tensor, labels: Tensor) -> float:
    """Return the loss of a batch of the client's own, relative to that of a blind guess."""
    targets = one_hot(labels, model.spec.classes)
    with torch.no_grad():
        loss = model.loss(weights, images, targets)
    return float(loss / torch.tensor(model.spec.classes).log())


def suspicion(signs: Mapping[str, float], limits: Mapping[str, float] = LIMITS) -> float:
    """Return the largest sign, relative to its limit: above 1 it is suspicious."""
    return max((value / limits[name] for name, value in signs.items()), default=0.0)
