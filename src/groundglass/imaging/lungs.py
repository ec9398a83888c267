"""The lung fields of a slice, disease included, by LungNet in ONNX Runtime; no torch."""

from __future__ import annotations

import hashlib
import json
from functools import cache
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from groundglass.errors import BundleError
from groundglass.files import one_line
from groundglass.imaging.slice import Grey

Lungs = NDArray[np.bool_]
"""Lung mask, shape (H, W) of its slice."""

SHIPPED = Path(__file__).parent.parent / "bundles" / "default" / "lungs.onnx"
"""The model that comes with the installation."""

SIDE = 192
"""The network sees the slice in the middle of a black square, resized to so many pixels a side."""

NOTES = "groundglass"
"""Key of the model's metadata under which a JSON object says how it was trained and how well it does."""

INPUT, OUTPUT = "slice", "lung"

# Parts smaller than this share of the largest are specks, and with less lung than this share of the picture there is
# none to be classified.
_LEAST_PART, _LEAST_LUNG = 0.04, 0.01
# Even a lung full of pneumonia holds air somewhere: a twentieth of it is darker than this grey. Shoulders are brighter.
_LEAST_AIR, _BRIGHTEST_AIR = 0.05, 150
# A part smaller than this share of the largest is the table, and no lung, where most of it lies outside the convex hull
# of the tissue, brighter than this grey, that covers at least this share of the picture and so is the body.
_SMALL_PART, _TISSUE, _LEAST_BODY = 0.25, 110, 0.2
# With less lung that holds air than this share of the square, at its ends shoulders, liver and bowel look consolidated,
# but nine of ten of their logits are below this one; those of disease are higher.
_LITTLE_AIR, _SURE = 0.035, 5.0
# Beside much fluid the network may overlook a chest altogether, and see it in the mirror. That counts where it is this
# share of the picture: less may be bowel.
_OVERLOOKED = 0.08
# Below this standard deviation of grey there is nothing to see, whatever the network makes of it.
_BLANK = 4.0


class LungSegmenter:
    """Finds lung fields by a ``model``, the content of an ONNX file, which messages call ``name``.

    Raises:
        BundleError: it is no such model.
    """

    def __init__(self, model: bytes, name: str = "lungs.onnx", threads: int = 1) -> None:
        import onnxruntime  # noqa: PLC0415 - 0.1 s, and `--help` does not need it

        self.model, self.sha256 = model, hashlib.sha256(model).hexdigest()
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 4
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        try:
            self._session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
            ends = [each.name for each in (*self._session.get_inputs(), *self._session.get_outputs())]
            self.notes: dict[str, Any] = json.loads(self._session.get_modelmeta().custom_metadata_map.get(NOTES, "{}"))
        except Exception as error:  # noqa: BLE001 - the runtime raises its own, undocumented kinds
            raise BundleError(f"{name}: cannot be loaded ({one_line(str(error), 200)})") from None
        if ends != [INPUT, OUTPUT]:
            raise BundleError(f"{name}: no model of lung fields; expected the input {INPUT} and the output {OUTPUT}")

    def __reduce__(self) -> tuple[type[LungSegmenter], tuple[bytes]]:
        return type(self), (self.model,)

    def __call__(self, pixels: Grey) -> Lungs:
        """The lung mask of a slice, uint8, shape (H, W); all False where no lung is seen."""
        mask = self._find(pixels)
        if not mask.any():
            mirrored = self._find(np.ascontiguousarray(pixels[:, ::-1]))
            if np.count_nonzero(mirrored) >= _OVERLOOKED * mask.size:
                mask = np.ascontiguousarray(mirrored[:, ::-1])
        return mask

    def _find(self, pixels: Grey) -> Lungs:
        height, width = pixels.shape
        square, inside = squared(pixels), _inside(pixels.shape, SIDE)
        logit = self._session.run([OUTPUT], {INPUT: square[None, None] * np.float32(1 / 255)})[0][0, 0]
        logit = cv2.resize(logit, (SIDE, SIDE), interpolation=cv2.INTER_LINEAR)
        inner = _of_lungs(logit[inside], square[inside])
        # Logits are enlarged, not the mask: the edge stays smooth.
        mask = cv2.resize(inner, (width, height), interpolation=cv2.INTER_LINEAR) > 0
        seen = cv2.meanStdDev(square[inside])[1].item() >= _BLANK and np.count_nonzero(mask) >= _LEAST_LUNG * mask.size
        return mask if seen else np.zeros_like(mask)


def squared(picture: NDArray[np.uint8], side: int = SIDE) -> NDArray[np.uint8]:
    """A picture (H, W) or (H, W, 3) in the middle of a black square of ``side`` pixels, its aspect kept."""
    square = np.zeros((side, side, *picture.shape[2:]), np.uint8)
    inside = square[_inside(picture.shape[:2], side)]
    interpolation = cv2.INTER_AREA if side < max(picture.shape[:2]) else cv2.INTER_LINEAR
    inside[...] = cv2.resize(picture, inside.shape[1::-1], interpolation=interpolation)
    return square


def _inside(shape: tuple[int, ...], side: int) -> tuple[slice, slice]:
    """Where in that square the picture lies."""
    rows, columns = (max(1, round(length * (side / max(shape)))) for length in shape)
    top, left = (side - rows) // 2, (side - columns) // 2
    return slice(top, top + rows), slice(left, left + columns)


@cache
def shipped() -> LungSegmenter:
    """The model that comes with the installation, loaded once."""
    return LungSegmenter(SHIPPED.read_bytes(), str(SHIPPED))


def open_segmenter(path: Path | None) -> LungSegmenter:
    """A model by its path; the shipped one for None.

    Raises:
        BundleError: it cannot be read or is no such model.
    """
    try:
        return shipped() if path is None else LungSegmenter(path.read_bytes(), str(path))
    except OSError as error:
        raise BundleError(f"{path}: cannot be read ({error.strerror})") from None


def _of_lungs(logit: NDArray[np.float32], square: NDArray[np.uint8]) -> NDArray[np.float32]:
    """The logits with those of what is no lung pushed below 0: specks, tissue without air, the table, shoulders."""
    count, labels, stats, _ = cv2.connectedComponentsWithStats((logit > 0).astype(np.uint8), connectivity=4)
    area, airy = stats[:, cv2.CC_STAT_AREA], square <= _BRIGHTEST_AIR
    aired = np.bincount(labels[airy], minlength=count)
    largest = area[1:].max(initial=0)
    wrong = (area < _LEAST_PART * largest) | (aired < _LEAST_AIR * area)
    small = [part for part in np.flatnonzero(~wrong & (area < _SMALL_PART * largest)) if part]
    if small:
        body = _hull_of_body(square)
        wrong[[part for part in small if np.median(body[labels == part]) == 0]] = True
    logit = np.where(wrong[labels], np.float32(-1), logit) if wrong[1:].any() else logit
    if aired[1:][~wrong[1:]].sum() >= _LITTLE_AIR * SIDE**2:
        return logit
    lung = logit > 0
    beyond = lung & (cv2.dilate((lung & airy).astype(np.uint8), np.ones((5, 5), np.uint8)) == 0)
    count, labels = cv2.connectedComponents(beyond.astype(np.uint8), connectivity=4)
    unsure = [part for part in range(1, count) if np.percentile(logit[labels == part], 90) < _SURE]
    return np.where(np.isin(labels, unsure), np.float32(-1), logit)


def _hull_of_body(square: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """1 inside the convex hull of the largest connected tissue, 0 outside; 1 everywhere where that is no body."""
    tissue = (square > _TISSUE).astype(np.uint8)
    _, labels, stats, _ = cv2.connectedComponentsWithStats(tissue, connectivity=4)
    area = stats[1:, cv2.CC_STAT_AREA]
    if area.max(initial=0) < _LEAST_BODY * square.size:
        return np.ones_like(tissue)
    hull = cv2.convexHull(cv2.findNonZero((labels == 1 + area.argmax()).astype(np.uint8)))
    return np.asarray(cv2.fillConvexPoly(np.zeros_like(tissue), hull, 1), np.uint8)
