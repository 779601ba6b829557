"""Pictures in folders: one sub-folder a class, every picture by its own depth and colour."""

import logging
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from PIL import Image, ImageOps, PngImagePlugin

from fl_sim.study.settings import SettingsError

log = logging.getLogger("fl_sim.data")

Pixels = np.ndarray[Any, np.dtype[np.uint8]]
_SUFFIXES = {
    ".bmp",
    ".gif",
    ".jfif",
    ".jpe",
    ".jpeg",
    ".jpg",
    ".pbm",
    ".pgm",
    ".png",
    ".pnm",
    ".ppm",
    ".tif",
    ".tiff",
    ".webp",
}
_GREY = {"1", "L", "LA", "I;16", "I;16B", "I;16L", "I"}
PngImagePlugin.MAX_TEXT_CHUNK = PngImagePlugin.MAX_TEXT_MEMORY  # colour profiles reach megabytes


def class_names(root: Path) -> tuple[str, ...]:
    """Return the names of the sub-folders, hidden ones left out, in order."""
    return tuple(sorted(p.name for p in root.iterdir() if p.is_dir() and not _hidden(p.name)))


def read_classes(root: Path, classes: tuple[str, ...]) -> tuple[Pixels, list[int]]:
    """Return the pictures below ``root/<class>``, ``(N, H, W, C)``, and the index of their class.

    All have three channels if one has colour, else one. What is skipped, and further frames of a
    picture, are counted in a warning.

    Raises
    ------
    SettingsError
        If a class has no pictures, a picture cannot be read, or their sizes differ.
    """
    pictures: list[Pixels] = []
    labels: list[int] = []
    skipped: Counter[str] = Counter()
    animated: list[str] = []
    for label, name in enumerate(classes):
        files = _files(root / name)
        paths = [path for path in files if path.suffix.lower() in _SUFFIXES]
        skipped.update(p.suffix or p.name for p in files if p.suffix.lower() not in _SUFFIXES)
        if not paths:
            raise SettingsError("data_dir", str(root / name), "a class needs at least one image")
        for path in paths:
            try:
                picture, moves = read_picture(path)
            except ValueError as error:
                raise SettingsError("data_dir", str(path), str(error)) from error
            pictures.append(picture)
            labels.append(label)
            if moves:
                animated.append(str(path.relative_to(root)))
            if pictures[-1].shape[:2] != pictures[0].shape[:2]:
                (height, width), (first, second) = (
                    p.shape[:2] for p in (pictures[-1], pictures[0])
                )
                raise SettingsError(
                    "data_dir",
                    str(path),
                    f"images must share one size, not {width}x{height} beside {second}x{first}",
                )
    if skipped:
        kinds = ", ".join(f"{count} of {kind}" for kind, count in sorted(skipped.items()))
        log.warning("%s: skipped what is no image: %s", root, kinds)
    if animated:
        text = "%s: only the first frame is read of %d file(s) with several frames, such as %s"
        log.warning(text, root, len(animated), animated[0])
    warn_of_others(root, classes)
    return stack_pictures(pictures), labels


def stack_pictures(pictures: Sequence[Pixels]) -> Pixels:
    """Return pictures ``(N, H, W, C)``, of three channels if one of them has colour.

    Raises
    ------
    ValueError
        If their sizes differ.
    """
    sizes = {picture.shape[:2] for picture in pictures}
    if len(sizes) != 1:
        shown = ", ".join(f"{width}x{height}" for height, width in sorted(sizes)[:3])
        raise ValueError(f"images must share one size, not {shown or 'none'}")
    channels = max(picture.shape[2] for picture in pictures)
    return np.stack([np.broadcast_to(p, (*p.shape[:2], channels)) for p in pictures])


def warn_of_others(root: Path, used: tuple[str, ...]) -> None:
    """Name in a warning what lies in a folder beside what is read of it."""
    others = [p.name for p in sorted(root.iterdir()) if not (p.name in used or _hidden(p.name))]
    if others:
        log.warning("%s: skipped %s; the folders read are %s", root, _few(others), _few(used))


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if names[5:] else "")


def _hidden(name: str) -> bool:
    return name.startswith(".") or name == "__MACOSX"


def _files(root: Path) -> list[Path]:
    """Return the files at any depth, but for hidden ones (checkpoints, AppleDouble files)."""
    return sorted(
        path
        for path in root.rglob("*")
        if path.is_file() and not any(map(_hidden, path.relative_to(root).parts))
    )


def read_picture(file: Path | str | BinaryIO) -> tuple[Pixels, bool]:
    """Return the first frame of a picture, and whether it has more.

    The frame is upright, ``(H, W, 1)`` if its file is grey, else ``(H, W, 3)``; transparency is
    left out.

    Raises
    ------
    ValueError
        If it cannot be read.
    """
    try:
        with Image.open(file) as opened:
            moves = getattr(opened, "is_animated", False)
            if opened.mode == "F" or (opened.mode == "I" and opened.format != "PNG"):
                raise ValueError("pixels must have 8 or 16 bits")
            return _pixels(ImageOps.exif_transpose(opened)), moves
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"is not an image that can be read ({reason})") from error


def _pixels(image: Image.Image) -> Pixels:
    if image.mode.startswith("I"):
        deep = np.asarray(image).astype(np.float64)
        return np.rint(deep / 257).astype(np.uint8)[..., None]
    if image.mode in _GREY:
        return np.asarray(image.convert("L"))[..., None]
    if "transparency" in image.info:
        image = image.convert("RGBA")
    return np.asarray(image.convert("RGB"))
