"""What the lesion painter does, as pictures: each slice beside its painted copies, with their outlines."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from groundglass.atomic import write_bytes
from groundglass.errors import ImageError
from groundglass.imaging.decoys import Decoy, paint_decoy
from groundglass.imaging.framing import Framing, find_lungs
from groundglass.imaging.lesions import Kind, Painted, paint_lesion
from groundglass.imaging.preview import picture_name
from groundglass.imaging.read import read_slices
from groundglass.imaging.slice import Grey
from groundglass.reporting.overlay import AGAINST_COVID, FOR_COVID, Picture, grey_picture, outline_mask

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
    """Write one PNG per slice of ``path``: the slice, the lesions of COVID-19, the decoys.

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
    framing = Framing(size=_SIDE, margin=0.1)
    pieces = ((piece, framing.frame(piece.pixels)) for piece in read_slices(path, on_error=on_error))
    shown = ((piece, framed.pixels) for piece, framed in pieces if framed.found)
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
    for decoy in Decoy:
        painted = paint_decoy(pixels, lungs, decoy, rng)
        pictures.append(_outlined(painted, decoy.value, AGAINST_COVID))
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
