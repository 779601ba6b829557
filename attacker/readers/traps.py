"""Images read from units that few images pass, which a malicious server planted."""

import torch
from torch import Tensor

from attacker.matching.problems import Problems
from attacker.readers.order import expected_slopes, in_order_of_labels
from attacker.readers.pixels import pixel_rows
from fl_sim.observed.observations import Observation
from fl_sim.specs import Spec
from fl_sim.updates.layers import Layer, find_relu_input

_SILENT = 1e-6  # relative to the unit of the largest bias gradient; less is rounding error
_ALIKE = 3e-3  # mean squared difference of two readings of one image
_AGREE = 4.0  # mean squared differences of pure readings, relative to the smallest
_ROUNDING = 1e-9  # mean squared difference of two readings without noise
_INSIDE = 1e-3  # mean squared excess over the range of a pixel, of an image that was alone


def has_traps(observation: Observation) -> bool:
    """Tell whether the server planted trap weights, and the update is one step."""
    plan = Spec.parse(observation.server)
    while plan.inner is not None:
        plan = Spec.parse(plan.inner)
    return plan.name == "traps" and observation.work.local_steps == 1


def invert_traps(problems: Problems) -> Tensor:
    """Read the images of batches from the units of a planted first layer.

    The weight gradient of a unit, divided by its bias gradient, is the image that it passed; a mean
    of images, if it passed several ("When the Curious Abandon Honesty", Boenisch et al. 2021, arXiv
    2112.02918). An image that passes several units alone is read several times, whereas means
    differ from unit to unit: what is read most often is taken first. Readings of one image are
    averaged. Images that pass no unit alone stay grey.

    Returns
    -------
    Tensor
        ``(B, n, C, H, W)`` in [0, 1]; exact on unquantized updates where an image passes a unit
        alone, in the order of `recover_labels`.
    """
    layer = find_relu_input(problems.model)
    assert layer is not None
    assert layer.weight is not None
    assert layer.bias is not None
    rows, biases = pixel_rows(problems, layer.weight, layer.bias), problems.decoded(layer.bias)
    shown = problems.shown(layer.weight)
    count = problems.work.images
    read = [_images(*one, shown, count) for one in zip(rows, biases, strict=True)]
    images = torch.stack(read).reshape(-1, *problems.image_shape)
    return in_order_of_labels(problems, images, _errors(problems, images, biases * count, layer))


def _images(rows: Tensor, biases: Tensor, shown: Tensor, count: int) -> Tensor:
    """Return ``(count, pixels)`` images that the units ``(K, pixels)`` of one batch passed."""
    loud = biases.abs() > _SILENT * biases.abs().max()
    rows, biases, shown = rows[loud], biases[loud], shown[loud]
    images = rows.new_full((count, rows.shape[1]), 0.5)
    if not len(rows):
        return images
    readings = rows / biases[:, None]
    excess = ((readings - readings.clamp(0, 1)).square() * shown).sum(1) / shown.sum(1)
    left = excess <= max(_INSIDE, float(excess.min()))
    apart = _distances(readings, shown)
    for place in range(count):
        if not left.any():
            break
        alike = (apart <= _ALIKE) & left
        best = int((alike.sum(dim=1) - excess / (1 + excess)).masked_fill(~left, -1).argmax())
        members = alike[best].nonzero()[:, 0]
        own = members[_purest(apart[members][:, members])]
        images[place] = _mean(rows[own], biases[own], shown[own])
        left[members] = False
    return images.clamp(0, 1)


def _distances(readings: Tensor, shown: Tensor) -> Tensor:
    """Return the mean squared differences ``(K, K)`` of readings, where both are shown."""
    seen = readings * shown
    squares = seen.square() @ shown.T
    apart = squares + squares.T - 2 * seen @ seen.T
    return apart / (shown @ shown.T).clamp_min(1)


def _purest(apart: Tensor) -> Tensor:
    """Return which readings ``(m,)`` agree best, given their distances ``(m, m)``.

    Those of units that passed the image alone differ by the noise of the payload, and by nothing
    without noise; those of units that passed a little of another image too differ by more.
    """
    others = apart + torch.diag(torch.full_like(apart[0], torch.inf))
    nearest, place = others.min(dim=1).values.min(dim=0)
    same = others[place] <= _AGREE * nearest + _ROUNDING
    same[place] = True
    return same


def _mean(rows: Tensor, biases: Tensor, shown: Tensor) -> Tensor:
    """Return the least-squares image ``(pixels,)`` behind units that passed the same one.

    A pixel that is hidden in all of them is as bright as the others on average.
    """
    weight = biases.square() @ shown
    image = biases @ (rows * shown) / weight.clamp_min(torch.finfo(rows.dtype).tiny)
    return torch.where(weight > 0, image, image[weight > 0].mean())


def _errors(problems: Problems, images: Tensor, biases: Tensor, layer: Layer) -> Tensor:
    """Return how badly each label suits each image of a batch, ``(B, n, classes)``.

    ``biases`` ``(B, K)`` are the summed bias gradients. At a unit that one image passes alone they
    are its own.
    """
    expected = expected_slopes(problems, problems.work.inputs(images), layer)
    passed = expected.abs().amax(dim=2) > 0
    alone = passed & (passed.sum(dim=1, keepdim=True) == 1)
    return ((expected - biases[:, None, None]).square() * alone[:, :, None]).sum(dim=3)
