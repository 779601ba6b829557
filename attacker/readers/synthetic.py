"""Random images with natural-image statistics, for attackers without data."""

import torch
from torch import Tensor

from fl_sim.seeding import Purpose, torch_rng

_SLOPE = 1.3  # amplitude spectra of natural scenes fall about as 1 / frequency


def synthetic_images(shape: tuple[int, int, int], count: int, seed: int) -> Tensor:
    """Draw random images ``(count, C, H, W)`` in [0, 1].

    Gaussian fields whose amplitude falls with a power of the frequency, as in natural scenes
    (Field 1987), mostly grey, of random brightness and contrast.
    """
    channels, height, width = shape
    rng = torch_rng(seed, Purpose.ATTACK)
    rows, columns = torch.fft.fftfreq(height)[:, None], torch.fft.rfftfreq(width)
    frequency = (rows.square() + columns.square()).sqrt().clamp_min(1 / max(height, width))

    def fields(layers: int) -> Tensor:
        noise = torch.fft.rfft2(torch.randn(count, layers, height, width, generator=rng))
        field: Tensor = torch.fft.irfft2(noise / frequency**_SLOPE, s=(height, width))
        return field / field.std(dim=(2, 3), keepdim=True)

    def uniform(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(count, 1, 1, 1, generator=rng)

    pattern = 0.9 * fields(1) + 0.3 * fields(channels)
    tint = 0.05 * torch.randn(count, channels, 1, 1, generator=rng)
    return (uniform(0.25, 0.75) + tint + uniform(0.1, 0.3) * pattern).clamp(0, 1)
