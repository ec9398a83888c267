"""What framing does, as pictures: original, mask and framed slice in a row (figure 12 of the paper)."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path

import cv2
import numpy as np

from groundglass.atomic import write_bytes
from groundglass.errors import ImageError
from groundglass.imaging.framing import Framing
from groundglass.imaging.read import read_slices
from groundglass.imaging.slice import CTSlice, Grey
from groundglass.reporting.comparison import side_by_side

_HEIGHT = 320
_LONGEST_NAME = 60


def write_previews(
    path: Path, output: Path, framing: Framing, on_error: Callable[[ImageError], None] | None = None
) -> Iterator[Path]:
    """Write one PNG per slice of ``path``: the slice, its binarised mask, the framed slice.

    Args:
        path: file, folder or zip of slices.
        output: folder of the pictures.
        framing: how slices are framed.
        on_error: called for each file of a folder or zip that cannot be read; without it the first one is
            raised.

    Yields:
        The path of each picture as it is written.

    Raises:
        ImageError: nothing can be read.
    """
    for number, ct_slice in enumerate(read_slices(path, on_error=on_error)):
        target = output / f"{number:05d}-{picture_name(ct_slice)}.png"
        _, png = cv2.imencode(".png", preview(ct_slice.pixels, framing))
        write_bytes(target, png.tobytes())
        yield target


def preview(pixels: Grey, framing: Framing) -> Grey:
    """The slice, its binarised mask and the framed slice in a row, shape (320, W)."""
    return side_by_side([pixels, binarise(pixels), framing.frame(pixels).pixels], _HEIGHT)


def binarise(pixels: Grey) -> Grey:
    """The mask of the paper: white above Otsu's threshold, black below."""
    return np.asarray(cv2.threshold(pixels, 0, 255, cv2.THRESH_BINARY | cv2.THRESH_OTSU)[1], np.uint8)


def picture_name(ct_slice: CTSlice) -> str:
    """A file name for a picture of a slice: its own, in letters that every system takes, and its frame."""
    stem = re.sub(r"[^A-Za-z0-9._-]+", "_", Path(ct_slice.origin.file).stem)[:_LONGEST_NAME]
    return stem if ct_slice.origin.frame is None else f"{stem}-{ct_slice.origin.frame}"
