"""The gallery: random victims, and what the attack recovers of them under each quantizer."""

import textwrap
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from results.figures.styles import VERDICT_COLOURS
from results.tables.verdicts import STAR

ACROSS = 16
"""Images in a row."""

_PITCH = 1.27  # inches from row to row; an image is one inch wide
_LETTER, _LINE = 0.06, 0.14  # inches, in the note


class GalleryRow(NamedTuple):
    """One quantizer's reconstructions of the victims.

    Attributes
    ----------
    label : str
        Quantizer.
    verdict : str
        A key of `results.figures.styles.VERDICT_COLOURS`; it colours the label.
    shown : str
        The verdict as it is written, with a star if it is not established.
    images : Tensor
        ``(k, C, H, W)``; an image that is not finite is crossed out.
    errors : sequence of float
        MSE of each image.
    """

    label: str
    verdict: str
    shown: str
    images: Tensor
    errors: Sequence[float]


def gallery_figure(
    truth: Tensor, captions: Sequence[str], rows: Sequence[GalleryRow], server: str
) -> Figure:
    """Draw a row of private images and a row per quantizer, with the MSE under each image.

    More than `ACROSS` images continue below, in a block of the same rows. A note at the end names
    the server plan and explains the star, if there is one.

    Parameters
    ----------
    truth : Tensor
        ``(k, C, H, W)`` victims in [0, 1], drawn by seed.
    captions : sequence of str
        The text under each victim, e.g. its round and client.
    rows : sequence of GalleryRow
        Reconstructions of the same victims in the same order.
    server : str
        A sentence on the server plan: `results.tables.verdicts.server_plans`.
    """
    margin = 0.3 + 0.08 * max(len("not established"), *(len(row.label) for row in rows), 0)
    width = margin + min(len(truth), ACROSS) + 0.1
    starred = any(row.shown.endswith("*") for row in rows)
    sentences = [server] + [f"* {STAR}"] * starred
    note = [line for one in sentences for line in textwrap.wrap(one, int(width / _LETTER))]
    starts = range(0, len(truth), ACROSS)
    block = len(rows) + 1
    bottom = _PITCH * block * len(starts) + 0.1
    height = bottom + _LINE * len(note)
    figure = Figure(figsize=(width, height), dpi=120)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_xlim(-margin, width - margin)
    axes.set_ylim(height, 0)
    axes.axis("off")
    for number, start in enumerate(starts):
        _draw_block(axes, number * block, slice(start, start + ACROSS), truth, captions, rows)
    axes.text(0.1 - margin, bottom, "\n".join(note), va="top", fontsize=7)
    return figure


def _draw_block(
    axes: Axes,
    first: int,
    some: slice,
    truth: Tensor,
    captions: Sequence[str],
    rows: Sequence[GalleryRow],
) -> None:
    """Draw some of the images, from the row ``first`` on."""
    own, given = truth[some], captions[some]
    _draw_row(axes, first, label="private images", colour="black", images=own, captions=given)
    for number, row in enumerate(rows, start=first + 1):
        errors = ["failed" if not np.isfinite(e) else f"MSE {e:.2g}" for e in row.errors[some]]
        label, colour = f"{row.label}\n{row.shown}", VERDICT_COLOURS[row.verdict]
        images = row.images[some]
        _draw_row(axes, number, label=label, colour=colour, images=images, captions=errors)


def picture(image: Tensor) -> "np.ndarray[tuple[int, ...], np.dtype[np.uint8]]":
    """Return ``(C, H, W)`` pixels as ``(H, W)`` or ``(H, W, 3)`` bytes, clamped first.

    Without the clamp a pixel of 1.01 would wrap around to black.
    """
    pixels = (image.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).cpu().numpy()
    return pixels[:, :, 0] if pixels.shape[2] == 1 else pixels


def _draw_row(
    axes: Axes, number: int, *, label: str, colour: str, images: Tensor, captions: Sequence[str]
) -> None:
    top = _PITCH * number + 0.08
    axes.text(-0.12, top + 0.46, label, ha="right", va="center", fontsize=9, color=colour)
    for column, (image, caption) in enumerate(zip(images, captions, strict=True)):
        extent = (column + 0.03, column + 0.97, top + 0.94, top)
        if bool(image.isfinite().all()):
            axes.imshow(picture(image), cmap="gray", vmin=0, vmax=255, extent=extent, aspect="auto")
        else:
            left, right, bottom, upper = extent
            axes.plot([left, right, right, left], [bottom, upper, bottom, upper], color="#999999")
        axes.text(column + 0.5, top + 0.97, caption, ha="center", va="top", fontsize=6.5)
