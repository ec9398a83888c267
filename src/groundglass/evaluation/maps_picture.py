"""What judged activation maps look like, on phantoms: the picture beside the tables holds no patient."""

from __future__ import annotations

from collections.abc import Iterable

import cv2
import numpy as np
from numpy.typing import NDArray

from groundglass.evaluation.map_scores import reframe
from groundglass.evaluation.painted_slices import PaintedSlice, Painting
from groundglass.evaluation.protocol import TrainedRun
from groundglass.imaging.framing import resize_mask
from groundglass.reporting.comparison import side_by_side
from groundglass.reporting.overlay import Picture, fit, grey_picture, outline_mask, overlay

_SIDE = 200
_GAP = 6
_QUALITY = 85
_SEVERITY = 0.5


def maps_picture(run: TrainedRun, slices: Iterable[PaintedSlice]) -> Picture:
    """A row for each slice: untouched, painted with the lesion's outline, map, map less the untouched one's.

    Args:
        run: whose maps they are.
        slices: at least one that has a painted copy; of each the one of middling severity is shown.
    """
    rows = [_row(run, piece) for piece in slices if piece.paintings]
    gap = np.full((_GAP, rows[0].shape[1], 3), 255, np.uint8)
    return np.asarray(np.vstack([part for row in rows for part in (row, gap)][:-1]), np.uint8)


def as_jpeg(picture: Picture) -> bytes:
    """The content of a JPEG file."""
    swapped = cv2.cvtColor(picture, cv2.COLOR_RGB2BGR)
    return bytes(cv2.imencode(".jpg", swapped, [cv2.IMWRITE_JPEG_QUALITY, _QUALITY])[1].tobytes())


def _row(run: TrainedRun, piece: PaintedSlice) -> NDArray[np.uint8]:
    painting = min(piece.paintings, key=_off_middling)
    pictures = (piece.pixels, painting.pixels)
    predictions = run.predict(pictures)
    twin_box, box = (run.framing.frame(pixels).box for pixels in pictures)
    twin, heat = predictions.activation_map
    untouched, framed = (fit(pixels, _SIDE) for pixels in predictions.framed)
    lesion = resize_mask(painting.lesion, box, _SIDE)
    maps = [overlay(framed, each) for each in (heat, heat - reframe(twin, twin_box, box))]
    outlined = [outline_mask(picture, lesion) for picture in (grey_picture(framed), *maps)]
    return side_by_side([grey_picture(untouched), *outlined], _SIDE, _GAP)


def _off_middling(painting: Painting) -> float:
    return abs(painting.severity - _SEVERITY)
