"""Images read from the imprint layer that a malicious server planted."""

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torch.func import jvp

from attacker.matching.labels import recover_labels
from attacker.matching.problems import Problems
from attacker.readers.imprints.bins import alone_in_bins, within_bins
from attacker.readers.pixels import pixel_rows, pixel_weights
from fl_sim.models import ModelSpec
from fl_sim.models.imprint import Imprinted
from fl_sim.updates.local_update import flat_model

_LAYER = "imprint.weight", "imprint.bias"
_EMPTY = 1e-5  # relative to the brightest bin; float32 errors in empty bins are smaller
_BLACK = 1e-6  # least brightness, of a pixel's range


def has_imprint(model: ModelSpec) -> bool:
    """Tell whether the model has an imprint layer, which only a malicious server adds."""
    return isinstance(flat_model(model).module, Imprinted)


def invert_imprint(problems: Problems) -> Tensor:
    """Read the images of batches from the gradient of a planted imprint layer.

    Unit k sees the images brighter than its threshold, and all units have the same gradient at an
    image. The difference of the weight gradients of units k and k + 1, divided by that of their
    bias gradients, is therefore the image whose brightness lies between their thresholds, or a
    mean of those that do ("Robbing the Fed", Fowl et al. 2022, arXiv 2110.13057).

    Quantized bias gradients are corrected: each is moved by the least amount that puts the
    brightness of its image into its bin. The bins with the largest differences are read, as many
    as a batch has images; images without a bin stay grey.

    Returns
    -------
    Tensor
        ``(B, n, C, H, W)`` in [0, 1]; exact on unquantized updates where images are alone in
        their bins, in the order of `recover_labels`.
    """
    bias = alone_in_bins(problems.decoded("imprint.bias"))
    rows = alone_in_bins(filled(problems))
    brightness = rows.mean(dim=2)
    bins = brightness.abs().topk(problems.work.images, dim=1).indices
    empty = brightness.abs() <= _EMPTY * brightness.abs().amax(dim=1, keepdim=True)
    planted = pixel_weights(problems, *_LAYER)
    thresholds = -planted["imprint.bias"] / planted["imprint.weight"].sum(dim=1)
    limits = torch.cat([thresholds, thresholds.new_ones(1)]).clamp_min(_BLACK)
    share = within_bins(bias, brightness, limits[:-1], limits[1:]).masked_fill(empty, 1)
    images = (rows / share[:, :, None]).masked_fill(empty[:, :, None], 0.5).clamp(0, 1)
    share = share.gather(1, bins)
    images = images.gather(1, bins[:, :, None].expand(-1, -1, rows.shape[2]))
    images = images.reshape(-1, *problems.image_shape)
    order = _order(problems, images, share * problems.work.images)
    return torch.stack([batch[index] for batch, index in zip(images, order, strict=True)])


def filled(problems: Problems) -> Tensor:
    """Return the weight gradient ``(B, K, pixels)``, hidden elements as those of a unit next to it.

    Units between which no image lies have equal gradients; bias gradients tell which these are.
    """
    rows, bias = pixel_rows(problems, *_LAYER), problems.decoded("imprint.bias")
    seen = problems.shown("imprint.weight").expand_as(rows)
    far = (bias.diff(dim=1)).abs()
    far = torch.nn.functional.pad(far, (1, 1), value=torch.inf)  # to the unit before, and after
    before, after = torch.roll(rows, 1, dims=1), torch.roll(rows, -1, dims=1)
    seen_before, seen_after = torch.roll(seen, 1, dims=1), torch.roll(seen, -1, dims=1)
    nearer = (far[:, :-1] <= far[:, 1:])[:, :, None]
    use_before = (seen_before > 0) & (nearer | (seen_after == 0))
    return torch.where(seen > 0, rows, torch.where(use_before, before, after))


def _order(problems: Problems, images: Tensor, slopes: Tensor) -> list[list[int]]:
    """Return, for each recovered label of a batch, which of its images belongs to it.

    ``slopes`` ``(B, n)`` is how the loss of each image rises with its brightness, as observed. With
    probabilities p, that is the change of the logits times (p - label): it tells the label.
    """
    model, labels = problems.flat_model, recover_labels(problems)
    inputs = problems.work.inputs(images.flatten(0, 1))
    brighter = torch.zeros_like(problems.weights)
    model.layout.unflatten(brighter)["imprint.bias"][0] = 1  # this unit sees every image
    logits, change = jvp(  # type: ignore[misc]
        lambda weights: model.logits(weights, inputs),
        (problems.weights,),
        (brighter,),
    )
    mean_change = (logits.softmax(dim=1) * change).sum(dim=1, keepdim=True)
    expected = (mean_change - change).reshape(*slopes.shape, -1)
    of_label = expected.gather(2, labels[:, None, :].expand(-1, slopes.shape[1], -1))
    cost = (of_label - slopes[:, :, None]).abs().transpose(1, 2)
    return [linear_sum_assignment(one.detach().numpy())[1].tolist() for one in cost]
