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
from attacker.readers.low_rank import completed, truncated
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
    work, shape = observation.work, observation.model.shape
    if work.local_steps != 1:
        return False
    layer = find_input(observation.model)
    if layer is None or layer.bias is None:
        return False
    units = {one.name: one.shape[0] for one in observation.payload.layout.segments if one.shape}
    channels, height, width = shape
    differences = channels * (height * (width - 1) + width * (height - 1))
    return work.images <= min(units[layer.bias], differences // 2)


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
    assert layer.weight is not None
    assert layer.bias is not None
    gradient, shown = (
        torch.cat([of(layer.weight), of(layer.bias)[..., None]], dim=-1).double()
        for of in (problems.decoded, problems.shown)
    )
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

    Each source, an image with a one, may come out at any scale and with any sign.
    """
    if len(rows) < 2:
        return torch.eye(len(rows), dtype=rows.dtype)
    pictures = rows[:, :-1].reshape(-1, *shape)
    across, down = pictures.diff(dim=-1).flatten(1), pictures.diff(dim=-2).flatten(1)
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
        analysis.fit(torch.cat([across, down], dim=1).T.numpy())
    return torch.from_numpy(analysis.components_)
