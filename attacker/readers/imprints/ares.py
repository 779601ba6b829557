"""Images recovered from the activations that a malicious server separated in the second layer."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from attacker.matching.problems import Problems
from attacker.readers.imprints.bins import alone_in_bins, within_bins
from attacker.readers.imprints.lasso import Layer, sparse_recovery
from fl_sim.models import ModelSpec
from fl_sim.observed.observations import Observation
from fl_sim.plans.chain import Chain, find_chain
from fl_sim.updates.local_update import LocalWork, flat_model

_EMPTY = 1e-5  # relative to the loudest jump; less is rounding error


@dataclass(frozen=True, eq=False)
class _Planted:
    """What the plan ``ares`` plants.

    Attributes
    ----------
    chain : Chain
        The layers.
    kernel, offset : Tensor
        Weight and bias of the first layer.
    thresholds : Tensor
        ``(K,)`` mean activation from which an image passes each unit of the second layer.
    gains : Tensor
        ``(K,)`` error signals of the units, relative to that of the first.
    slopes : Tensor
        ``(classes,)`` weights of the first unit in the last layer.
    """

    chain: Chain
    kernel: Tensor
    offset: Tensor
    thresholds: Tensor
    gains: Tensor
    slopes: Tensor

    @classmethod
    def of(cls, model: ModelSpec, weights: Tensor) -> "_Planted | None":
        """Recognise what was planted; None if these weights are others."""
        chain = find_chain(model)
        if chain is None:
            return None
        tensors = flat_model(model).layout.unflatten(weights)
        rows, head = tensors[chain.hidden.weight], tensors[chain.head.weight]
        scale = rows[0, 0]
        live = int((rows[:, 0] != 0).sum())
        expected = torch.zeros_like(rows)
        expected[:live] = scale
        if live < 2 or scale <= 0 or not torch.equal(rows, expected):
            return None
        thresholds = -tensors[chain.hidden.bias][:live] / (scale * rows.shape[1])
        gains = head[0, :live] / head[0, 0]
        outer = torch.zeros_like(head)
        outer[:, :live] = torch.outer(head[:, 0], gains)
        if bool((thresholds.diff() < 0).any()) or not torch.allclose(head, outer):
            return None
        first = tensors[chain.first.weight], tensors[chain.first.bias]
        return cls(chain, *first, thresholds, gains, head[:, 0])


def has_separation(model: ModelSpec, work: LocalWork, weights: Tensor) -> bool:
    """Tell whether weights are those that the plan ``ares`` plants, and the update is one step."""
    return work.local_steps == 1 and _Planted.of(model, weights) is not None


def can_recover_activations(observation: Observation) -> bool:
    """Tell whether a client was sent what the plan ``ares`` plants."""
    return has_separation(observation.model, observation.work, observation.weights)


def recover_activations(problems: Problems) -> Tensor:
    """Read the activations of each image of batches, and recover the images from them.

    Units of the second layer whose thresholds no image separates have equal gradients but for
    rounding, and these are averaged. The difference of two neighbouring averages, divided by that
    of the bias gradients, is the activations of the image in between, or a mean of those that
    share its bin ("ARES", Gong et al. 2026, arXiv 2603.17623). Rounded bias gradients are
    corrected as in `invert_imprint`: the mean activation of an image lies in its bin.

    Returns
    -------
    Tensor
        ``(B, n, C, H, W)`` in [0, 1], in the order of the labels; grey where no image was found.
    """
    planted, separated = _separated(problems)
    images = []
    for found in separated:
        order = found.labels(planted).argsort(stable=True)
        images.append(_images(planted, found, problems)[order])
    return torch.stack(images)


def read_labels(problems: Problems) -> Tensor:
    """Return the labels ``(B, n)`` of the images of `recover_activations`, sorted in each row."""
    planted, separated = _separated(problems)
    return torch.stack([found.labels(planted).sort().values for found in separated])


def _separated(problems: Problems) -> "tuple[_Planted, list[_Found]]":
    """Return what was planted, and what each batch of those that share weights tells."""
    planted = _Planted.of(problems.model, problems.weights)
    assert planted is not None
    units, names = len(planted.gains), planted.chain.hidden
    each = zip(
        problems.decoded(names.weight)[:, :units],
        problems.decoded(names.bias)[:, :units],
        _steps(problems, names.weight)[:, :units],
        strict=True,
    )
    return planted, [_separate(planted, *one, problems.work.images) for one in each]


def _steps(problems: Problems, tensor: str) -> Tensor:
    """Return the standard deviation of the error of each element, ``(B, *shape)``.

    It is infinite where an element is hidden. Behind a rotation all elements are taken to be
    equally noisy.
    """
    cell, layout = problems.cell, problems.flat_model.layout
    steps = cell.step / (problems.work.reach * (1 if cell.noise == "gaussian" else 12**0.5))
    if cell.transform is not None:
        mean_square = steps.square().nan_to_num(posinf=0).mean(dim=1, keepdim=True)
        steps = mean_square.sqrt().expand(-1, layout.size)
    return layout.unflatten(steps)[tensor]


@dataclass(frozen=True, eq=False)
class _Found:
    """The activations of the n images of a batch.

    Attributes
    ----------
    activations : Tensor
        ``(n, features)``.
    precision : Tensor
        ``(n, features)`` one over the variance of their errors; 0 where nothing is known.
    share : Tensor
        ``(n,)`` error signal of each image, as it enters the mean.
    full : Tensor
        ``(n,)`` bool: whether there is an image.
    """

    activations: Tensor
    precision: Tensor
    share: Tensor
    full: Tensor

    def labels(self, planted: _Planted) -> Tensor:
        """Return the label ``(n,)`` of which each image has the error signal."""
        slopes = (planted.slopes.mean() - planted.slopes) / len(self.share)
        return (self.share[:, None] - slopes).abs().argmin(dim=1)


def _separate(planted: _Planted, rows: Tensor, biases: Tensor, steps: Tensor, count: int) -> _Found:
    """Return the activations of a batch of ``count`` images.

    Parameters
    ----------
    planted : _Planted
        What was planted.
    rows, biases : Tensor
        ``(K, features)`` and ``(K,)`` gradients of the second layer.
    steps : Tensor
        ``(K, features)`` standard deviations of the errors of ``rows``.
    count : int
        Images of the batch.
    """
    gains = planted.gains.double()
    rows, biases = rows / gains[:, None], biases / gains
    precision = 1 / (steps / gains[:, None]).square().clamp_min(torch.finfo(torch.float32).tiny)
    jumps = alone_in_bins(_mean(rows, precision)[None])[0].abs()
    bins = jumps.topk(min(count, len(biases))).indices.sort().values
    plateau = torch.bucketize(torch.arange(len(biases), device=bins.device), bins)
    known = torch.cat([precision, precision.mean(dim=1, keepdim=True)], dim=1)
    weight = rows.new_zeros(len(bins) + 1, known.shape[1]).index_add(0, plateau, known)
    total = torch.zeros_like(weight).index_add(
        0, plateau, known * torch.cat([rows, biases[:, None]], dim=1)
    )
    level = total / weight.clamp_min(torch.finfo(weight.dtype).tiny)
    level[-1], weight[-1] = 0, torch.inf  # above all images: no gradient
    jump, precise = level[:-1] - level[1:], 1 / (1 / weight[:-1] + 1 / weight[1:])
    loudness = _mean(jump[:, :-1], precise[:, :-1])
    limits = torch.cat([planted.thresholds, planted.thresholds.new_tensor([torch.inf])])
    share = within_bins(jump[:, -1], loudness, limits[bins], limits[bins + 1])
    full = (loudness.abs() > _EMPTY * loudness.abs().max()) & (share != 0)
    share = torch.where(full, share, 1)
    missing = (0, 0, 0, count - len(bins))
    return _Found(
        F.pad(jump[:, :-1] / share[:, None], missing),
        F.pad(precise[:, :-1] * share[:, None].square(), missing),
        F.pad(share, missing[2:], value=1.0),
        F.pad(full, missing[2:]),
    )


def _mean(rows: Tensor, precision: Tensor) -> Tensor:
    """Return the mean of each row ``(K, features)``, weighted by precision."""
    total = precision.sum(dim=1).clamp_min(torch.finfo(precision.dtype).tiny)
    return (rows * precision).sum(dim=1) / total


def _images(planted: _Planted, found: _Found, problems: Problems) -> Tensor:
    """Return images ``(n, C, H, W)`` in [0, 1], grey where there is none."""
    shape, work = problems.model.shape, problems.work
    images = torch.full((len(found.full), *shape), 0.5)
    if bool(found.full.any()):
        own = found.activations[found.full], found.precision[found.full]
        layer = Layer(planted.kernel, planted.offset, shape)
        images[found.full] = work.pixels(sparse_recovery(layer, *own))
    return images.clamp(0, 1)
