"""What the lesion painter does, as pictures: each slice beside its painted copies, with their outlines.

What preprocessing does, as pictures: original, mask and cropped slice in a row (figure 12 of the paper).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from groundglass.errors import ImageError
from groundglass.files import write_bytes
from groundglass.imaging.crop import Preprocessing, find_lungs
from groundglass.imaging.lesions import Kind, Mimic, Painted, paint_lesion, paint_mimic
from groundglass.imaging.read import read_slices
from groundglass.imaging.slice import CTSlice, Grey
from groundglass.reporting.overlay import (
    AGAINST_COVID,
    FOR_COVID,
    Picture,
    grey_picture,
    outline_mask,
    side_by_side,
)

_HEIGHT = 320
_LONGEST_NAME = 60


def write_previews(
    path: Path,
    output: Path,
    preprocessing: Preprocessing,
    on_error: Callable[[ImageError], None] | None = None,
) -> Iterator[Path]:
    """Write one PNG per slice of ``path``: the slice, its binarised mask, the cropped slice.

    Args:
        path: file, folder or zip of slices.
        output: folder of the pictures.
        preprocessing: how slices are cropped.
        on_error: called for each file of a folder or zip that cannot be read; without it the first one is
            raised.

    Yields:
        The path of each picture as it is written.

    Raises:
        ImageError: nothing can be read.
    """
    for number, ct_slice in enumerate(read_slices(path, on_error=on_error)):
        target = output / f"{number:05d}-{picture_name(ct_slice)}.png"
        _, png = cv2.imencode(".png", preview(ct_slice.pixels, preprocessing))
        write_bytes(target, png.tobytes())
        yield target


def preview(pixels: Grey, preprocessing: Preprocessing) -> Grey:
    """The slice, its binarised mask and the cropped slice in a row, shape (320, W)."""
    return side_by_side([pixels, binarise(pixels), preprocessing.apply(pixels).pixels], _HEIGHT)


def binarise(pixels: Grey) -> Grey:
    """The mask of the paper: white above Otsu's threshold, black below."""
    return np.asarray(cv2.threshold(pixels, 0, 255, cv2.THRESH_BINARY | cv2.THRESH_OTSU)[1], np.uint8)


def picture_name(ct_slice: CTSlice) -> str:
    """A file name for a picture of a slice: its own, in letters that every system takes, and its frame."""
    stem = re.sub(r"[^A-Za-z0-9._-]+", "_", Path(ct_slice.origin.file).stem)[:_LONGEST_NAME]
    return stem if ct_slice.origin.frame is None else f"{stem}-{ct_slice.origin.frame}"


_SIDE = 256
_COLUMNS = 4


def write_lesion_galleries(
    path: Path,
    output: Path,
    *,
    severity: float,
    seed: int,
    most: int,
    on_error: Callable[[ImageError], None] | None = None,
) -> Iterator[Path]:
    """Write one PNG per slice of ``path``: the slice, the lesions of COVID-19, the mimics.

    Args:
        path: file, folder or zip of slices.
        output: folder of the pictures.
        severity: of the lesions, 0 to 1.
        seed: the same seed paints the same.
        most: slices that are drawn.
        on_error: called for each file of a folder or zip that cannot be read; without it the first one is
            raised.

    Yields:
        The path of each picture as it is written. Slices in which no lungs are found are passed over.

    Raises:
        ImageError: nothing can be read.
    """
    preprocessing = Preprocessing(size=_SIDE, margin=0.1)
    pieces = ((piece, preprocessing.apply(piece.pixels)) for piece in read_slices(path, on_error=on_error))
    shown = ((piece, cropped.pixels) for piece, cropped in pieces if cropped.found)
    for number, (piece, pixels) in enumerate(islice(shown, most)):
        gallery = lesion_gallery(pixels, severity, np.random.default_rng([seed, number]))
        target = output / f"{number:05d}-{picture_name(piece)}.png"
        _, png = cv2.imencode(".png", cv2.cvtColor(gallery, cv2.COLOR_RGB2BGR))
        write_bytes(target, png.tobytes())
        yield target


def lesion_gallery(pixels: Grey, severity: float, rng: np.random.Generator) -> Picture:
    """A slice and its painted copies in rows of four, captions included.

    Args:
        pixels: uint8, shape (H, W), in which lungs can be found.
        severity: of the lesions, 0 to 1.
        rng: draws everything random.
    """
    lungs, _ = find_lungs(pixels)
    pictures = [_captioned(grey_picture(pixels), "as it was")]
    for kind in Kind:
        painted = paint_lesion(pixels, lungs, kind, severity, rng)
        pictures.append(_outlined(painted, kind.value, FOR_COVID))
    for mimic in Mimic:
        painted = paint_mimic(pixels, lungs, mimic, rng)
        pictures.append(_outlined(painted, mimic.value, AGAINST_COVID))
    blank = np.zeros_like(pictures[0])
    pictures += [blank] * (-len(pictures) % _COLUMNS)
    rows = [np.hstack(pictures[start : start + _COLUMNS]) for start in range(0, len(pictures), _COLUMNS)]
    return np.asarray(np.vstack(rows), np.uint8)


def _outlined(painted: Painted, caption: str, colour: tuple[int, int, int]) -> Picture:
    """The painted slice, the outline of the paint on a copy at its corner."""
    picture = grey_picture(painted.pixels)
    side = picture.shape[0] // 3
    traced = outline_mask(picture, painted.mask, colour)
    picture[-side:, -side:] = cv2.resize(traced, (side, side), interpolation=cv2.INTER_AREA)
    return _captioned(picture, caption)


def _captioned(picture: NDArray[np.uint8], caption: str) -> Picture:
    written = cv2.putText(
        picture.copy(), caption, (6, 16), cv2.FONT_HERSHEY_SIMPLEX, 0.45, (255, 255, 255), 1, cv2.LINE_AA
    )
    return np.asarray(written, np.uint8)
