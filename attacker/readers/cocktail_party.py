"""Images of a batch unmixed from a fully connected layer by independent component analysis.

The cocktail-party attack (Kariyappa et al. 2023, arXiv 2209.05578): the gradient of a layer that
sees the pixels is ``G = D [X, 1]``, so its rows are mixtures of the images ``X`` of the batch, as
microphones hear mixtures of voices. The published attack unmixes the pixels by gradient descent
with priors. Here FastICA (Hyvarinen 1999) unmixes the differences of neighbouring pixels: they are
sparse, and those of two images are nearer to independent than pixels, which all share the mean.
What is found has any scale and sign; the one that stands beside the pixels, from the layer's bias,
tells both.
"""

import warnings

import torch
from sklearn.decomposition import FastICA
from sklearn.exceptions import ConvergenceWarning
from torch import Tensor

from attacker.matching.problems import Problems
from attacker.readers.low_rank import completed, mixtures_of, truncated, units_of
from attacker.readers.order import expected_slopes, in_order_of_labels
from fl_sim.observed.observations import Observation
from fl_sim.seeding import Purpose, torch_rng
from fl_sim.updates.layers import find_input

_ITERATIONS, _TOLERANCE = 400, 1e-5  # of FastICA


def has_mixtures(observation: Observation) -> bool:
    """Tell whether one step was taken on a batch that `unmix` can tell apart.

    It needs a fully connected layer on the pixels, with a bias and at least as many units as
    images, and more differences of neighbouring pixels than images.
    """
    channels, height, width = observation.model.shape
    differences = channels * (height * (width - 1) + width * (height - 1))
    units = units_of(observation, find_input(observation.model))
    return observation.work.images <= min(units, differences // 2)


def unmix(problems: Problems, seed: int) -> Tensor:
    """Read the images of batches from the gradient of a first layer, whatever follows it.

    Returns
    -------
    Tensor
        ``(B, n, C, H, W)`` in [0, 1], in the order of `recover_labels`. Images that are not found
        are grey.
    """
    layer = find_input(problems.model)
    assert layer is not None
    gradient, shown = mixtures_of(problems, layer)
    count, shape = problems.work.images, problems.image_shape
    grey = problems.work.inputs(torch.full(shape[1:], 0.5).double()).flatten()
    images, slopes = [], []
    for key, one in zip(problems.keys, gradient, strict=True):
        generator = torch_rng(seed, Purpose.ATTACK, *key, 0, 3)
        whole = completed(one, shown, count, generator)
        _, values, rows = truncated(whole, count, generator)
        rank = int((values > torch.finfo(torch.float32).eps * values[0]).sum())
        sources = unmixing(rows[:rank], shape[1:], generator) @ rows[:rank]
        found = (sources / sources[:, -1:])[:, :-1]
        found = torch.where(found.isfinite(), found, grey)
        found = torch.cat([found, grey.expand(count - len(found), -1)])
        images.append(problems.work.pixels(found.reshape(shape)).clamp(0, 1))
        seen = problems.work.inputs(images[-1]).flatten(1)
        seen = torch.cat([seen, torch.ones_like(seen[:, :1])], dim=1)
        slopes.append(torch.linalg.lstsq(seen.T, whole.T).solution)  # (n, K)
    read = torch.stack(images).to(problems.weights.dtype)
    expected = expected_slopes(problems, problems.work.inputs(read), layer).double()
    own = count * torch.stack(slopes)[:, :, None]
    return in_order_of_labels(problems, read, (expected - own).square().sum(dim=3))


def unmixing(rows: Tensor, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Return the matrix ``(r, r)`` that unmixes mixtures ``(r, p + 1)`` of images with a one.

    Each source, an image with a one, may come out at any scale and with any sign. Where the images
    have too few differences of pixels to tell them apart, nothing is unmixed: the identity.
    """
    pictures = rows[:, :-1].reshape(-1, *shape)
    across, down = pictures.diff(dim=-1).flatten(1), pictures.diff(dim=-2).flatten(1)
    differences = torch.cat([across, down], dim=1)
    nothing = torch.eye(len(rows), dtype=rows.dtype)
    if len(rows) < 2 or torch.linalg.matrix_rank(differences) < len(rows):
        return nothing
    seed = int(torch.randint(2**31, (), generator=generator))
    analysis = FastICA(
        len(rows),
        whiten="unit-variance",
        fun="exp",
        max_iter=_ITERATIONS,
        tol=_TOLERANCE,
        random_state=seed,
    )
    with warnings.catch_warnings():  # of noise: what was found by then is as good as any
        warnings.simplefilter("ignore", ConvergenceWarning)
        analysis.fit(differences.T.numpy())
    found = torch.from_numpy(analysis.components_)
    return found if bool(found.isfinite().all()) else nothing
