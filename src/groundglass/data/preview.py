"""What preprocessing and the lesion painter do to a slice, as one picture of captioned tiles."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path

import cv2
import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from groundglass.errors import ImageError
from groundglass.files import write_bytes
from groundglass.imaging.crop import Preprocessing, resize_box
from groundglass.imaging.lesions import Kind, Mimic, paint_lesion, paint_mimic
from groundglass.imaging.lungs import shipped, squared
from groundglass.imaging.read import lying_in, read_slices
from groundglass.imaging.slice import Grey
from groundglass.reporting.overlay import LESION, OTHER, grey_picture, outline_mask

_Picture = NDArray[np.uint8]
_SIDE = 256
_COLUMNS = 4
_LONGEST_NAME = 60


def write_previews(
    path: Path,
    output: Path,
    preprocessing: Preprocessing,
    *,
    severity: float = 0.5,
    seed: int = 0,
    on_error: Callable[[ImageError], None] | None = None,
) -> Iterator[Path]:
    """Write one PNG per slice of ``path``: the slice, its binarised mask, its crop, painted copies of the crop.

    The copies show every kind of COVID-19 lesion, of ``severity`` 0 to 1, and every sign of another disease, the
    painted region outlined; the same ``seed`` paints the same. They are missing where no lungs are found. The path of
    each picture is yielded once it is written; what lies in ``output`` already is not read. ``on_error`` is called for
    each file that cannot be read.

    Raises:
        ImageError: nothing can be read; without ``on_error``, a file cannot.
    """
    for number, ct_slice in enumerate(read_slices(path, on_error=on_error, skip=lying_in(output))):
        tiles = _tiles(ct_slice.pixels, preprocessing, severity, np.random.default_rng([seed, number]))
        tiles += [np.zeros_like(tiles[0])] * (-len(tiles) % _COLUMNS)
        rows = [np.hstack(tiles[start : start + _COLUMNS]) for start in range(0, len(tiles), _COLUMNS)]
        # The slice's own name in letters that every system takes, and its frame.
        stem = re.sub(r"[^A-Za-z0-9._-]+", "_", Path(ct_slice.origin.file).stem)[:_LONGEST_NAME]
        frame = "" if ct_slice.origin.frame is None else f"-{ct_slice.origin.frame}"
        target = output / f"{number:05d}-{stem}{frame}.png"
        _, png = cv2.imencode(".png", cv2.cvtColor(np.vstack(rows), cv2.COLOR_RGB2BGR))
        write_bytes(target, png.tobytes())
        yield target


def _tiles(pixels: Grey, preprocessing: Preprocessing, severity: float, rng: Generator) -> list[_Picture]:
    found = shipped()(pixels)
    cropped = preprocessing.apply(pixels, found)
    # The paper's binarised mask (its figure 12): white above Otsu's threshold.
    mask = np.asarray(cv2.threshold(pixels, 0, 255, cv2.THRESH_BINARY | cv2.THRESH_OTSU)[1], np.uint8)
    tiles = [_tile(pixels, "slice"), _tile(mask, "binarised mask"), _tile(cropped.pixels, "crop")]
    if not cropped.found:
        return tiles
    lungs = resize_box(found.view(np.uint8), cropped.box, preprocessing.size) > 0
    for kind in Kind:
        painted = paint_lesion(cropped.pixels, lungs, kind, severity, rng)
        tiles.append(_tile(painted.pixels, kind.value, painted.mask, LESION))
    for mimic in Mimic:
        painted = paint_mimic(cropped.pixels, lungs, mimic, rng)
        tiles.append(_tile(painted.pixels, mimic.value, painted.mask, OTHER))
    return tiles


def _tile(
    pixels: Grey, caption: str, mask: NDArray[np.bool_] | None = None, colour: tuple[int, int, int] = LESION
) -> _Picture:
    picture = grey_picture(pixels)
    picture = squared(picture if mask is None else outline_mask(picture, mask, colour), _SIDE)
    place, white = (6, 16), (255, 255, 255)
    written = cv2.putText(picture, caption, place, cv2.FONT_HERSHEY_SIMPLEX, 0.45, white, 1, cv2.LINE_AA)
    return np.asarray(written, np.uint8)
