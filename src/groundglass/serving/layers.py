"""Pictures of a slice that lie exactly on each other: grey, outlines, heat map; and its Hounsfield units."""

from __future__ import annotations

import base64
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from groundglass.imaging.crop import Box
from groundglass.inference.prediction import Evidence
from groundglass.reporting.overlay import AGAINST_COVID, FOR_COVID, FRAME
from groundglass.serving.results import KeptSlice

_STRENGTH = 0.62
"""Opacity of the strongest place, as in the report's pictures."""


def grey_png(kept: KeptSlice) -> bytes:
    """The slice in the lung window, or in grey as its file has it."""
    return _png(kept.pixels())


def heat_map_png(kept: KeptSlice) -> bytes | None:
    """The activation map, transparent where it says nothing; None unless the slice was classified."""
    if kept.activation_map is None:
        return None
    return _png(_heat_map(kept.activation_map, kept.cropped.box, kept.shape))


def heat_map_uri(evidence: Evidence) -> str | None:
    """The same as ``data:image/png;base64,...``."""
    if evidence.activation_map is None:
        return None
    rows, columns = evidence.slice.pixels.shape
    content = _png(_heat_map(evidence.activation_map, evidence.cropped.box, (rows, columns)))
    return "data:image/png;base64," + base64.b64encode(content).decode("ascii")


def outline_svg(kept: KeptSlice) -> bytes:
    """Outlines of the lungs and of what the network was shown, as lines without a fill."""
    rows, columns = kept.shape
    mask = kept.lung_mask().astype(np.uint8)
    contours = cv2.findContours(mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)[0]
    path = " ".join(
        "M" + " L".join(f"{column + 0.5:g},{row + 0.5:g}" for column, row in contour[:, 0, :].tolist()) + " Z"
        for contour in contours
    )
    left, top, right, bottom = kept.cropped.box
    colour = "rgb({},{},{})".format(*FRAME)
    style = f'fill="none" stroke="{colour}" vector-effect="non-scaling-stroke"'
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {columns} {rows}" '
        f'width="{columns}" height="{rows}">'
        f'<path class="lungs" d="{path}" {style} stroke-width="1"/>'
        f'<rect class="frame" x="{left}" y="{top}" width="{right - left}" height="{bottom - top}" '
        f'{style} stroke-width="2"/></svg>'
    ).encode()


def hounsfield_bytes(kept: KeptSlice) -> bytes | None:
    """Hounsfield units row by row, little-endian signed 16-bit numbers; None where the file has none."""
    return None if kept.hounsfield is None else kept.hounsfield.astype("<i2").tobytes()


def _heat_map(activation_map: NDArray[np.float32], box: Box, shape: tuple[int, int]) -> NDArray[np.uint8]:
    """Colours as in the report's pictures: orange for COVID, blue against it.

    Returns:
        Blue, green, red, opacity, shape (H, W, 4); what of the box lies outside the slice is left out.
    """
    left, top, right, bottom = box
    finite = np.nan_to_num(activation_map, nan=0.0, posinf=0.0, neginf=0.0)
    size = (max(1, right - left), max(1, bottom - top))
    smooth = np.asarray(cv2.resize(finite, size, interpolation=cv2.INTER_CUBIC), np.float32)
    peak = float(np.abs(smooth).max())
    share = smooth * np.float32(_STRENGTH / peak) if peak > 0 else np.zeros_like(smooth)
    coloured = np.where(
        (share >= 0)[:, :, None],
        np.array(FOR_COVID[::-1], np.uint8),
        np.array(AGAINST_COVID[::-1], np.uint8),
    )
    patch = np.dstack([coloured, np.rint(np.abs(share) * 255).astype(np.uint8)])
    picture = np.zeros((*shape, 4), np.uint8)
    rows = slice(max(top, 0), min(bottom, shape[0]))
    columns = slice(max(left, 0), min(right, shape[1]))
    inside = patch[rows.start - top : rows.stop - top, columns.start - left : columns.stop - left]
    picture[rows, columns] = inside
    return picture


def _png(pixels: NDArray[Any]) -> bytes:
    # Level 1 is 4 times as fast as the default, and the files are a tenth larger.
    return bytes(cv2.imencode(".png", pixels, [cv2.IMWRITE_PNG_COMPRESSION, 1])[1].tobytes())
