"""Pictures of findings: the slice with lungs and frame outlined, beside what the network made of it."""

from __future__ import annotations

import base64
import hashlib
import re
from pathlib import Path

import cv2
import numpy as np

from groundglass.inference.finding import Evidence
from groundglass.inference.findings_file import file_errors, readable
from groundglass.reporting.comparison import side_by_side
from groundglass.reporting.overlay import Picture, fit, grey_picture, outlined_slice, overlay

_HEIGHT = 320
_SMALL_WIDTH = 420
_LONGEST_STEM = 60
_QUALITY = 80


def evidence_picture(evidence: Evidence) -> Picture:
    """A slice and, where it was classified, its framed slice under the activation map; 320 pixels high.

    Returns:
        Shape (320, W, 3).
    """
    pixels, framed = evidence.slice.pixels, evidence.framed
    side = min(round(_HEIGHT * max(pixels.shape) / pixels.shape[0]), 2 * _HEIGHT)
    pictures = [_upright(outlined_slice(pixels, framed.lungs, framed.box, side))]
    if evidence.activation_map is not None:
        pictures.append(overlay(fit(framed.pixels, _HEIGHT), evidence.activation_map))
    else:
        pictures.append(grey_picture(fit(framed.pixels, _HEIGHT)))
    return side_by_side(pictures, _HEIGHT)


def _upright(picture: Picture) -> Picture:
    """A picture with black above and below, 320 pixels high: what is very wide is not blown up."""
    missing = max(_HEIGHT - picture.shape[0], 0)
    return np.pad(picture, ((missing // 2, missing - missing // 2), (0, 0), (0, 0)))


def picture_name(file: str, frame: int | None) -> str:
    """Name of a finding's picture: follows from file and frame alone, and no two share one."""
    key = f"{readable(file)}\0{frame}".encode()
    stem = re.sub(r"[^A-Za-z0-9._-]+", "_", Path(file.replace("!", "/")).stem)[:_LONGEST_STEM].lstrip("._-")
    parts = [stem or "slice", *([] if frame is None else [str(frame)]), hashlib.sha256(key).hexdigest()[:12]]
    return "-".join(parts) + ".png"


def save_picture(picture: Picture, path: Path) -> None:
    """Write a picture as PNG without any metadata."""
    # Level 1 is 4 times as fast as the default, and the files are a tenth larger.
    _, content = cv2.imencode(
        ".png", cv2.cvtColor(picture, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_PNG_COMPRESSION, 1]
    )
    with file_errors(path):
        path.write_bytes(content.tobytes())


def small_data_uri(path: Path) -> str | None:
    """A saved picture made small, as a data URI; None where it is missing or damaged."""
    try:
        content = np.frombuffer(path.read_bytes(), np.uint8)
        picture = cv2.imdecode(content, cv2.IMREAD_COLOR) if len(content) else None
    except (OSError, cv2.error):
        return None
    if picture is None:
        return None
    small = fit(np.asarray(picture, np.uint8), min(_SMALL_WIDTH, max(picture.shape[:2])))
    _, encoded = cv2.imencode(".jpg", small, [cv2.IMWRITE_JPEG_QUALITY, _QUALITY])
    return "data:image/jpeg;base64," + base64.b64encode(encoded.tobytes()).decode("ascii")
