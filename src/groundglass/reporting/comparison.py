"""Slices beside what was made of them."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray


def side_by_side(pictures: Sequence[NDArray[np.uint8]], height: int, gap: int = 6) -> NDArray[np.uint8]:
    """Pictures brought to one height and set in a row with white gaps.

    Args:
        pictures: uint8, shapes (H, W) grey, or all of them (H, W, 3) in colour.
        height: of the row in pixels.
        gap: width of the white space between two pictures in pixels.

    Returns:
        uint8, shape (height, W) or (height, W, 3).
    """
    row: list[NDArray[np.uint8]] = []
    for picture in pictures:
        width = max(1, round(picture.shape[1] * height / picture.shape[0]))
        shrinking = picture.shape[0] > height
        resized = cv2.resize(
            picture, (width, height), interpolation=cv2.INTER_AREA if shrinking else cv2.INTER_LINEAR
        )
        row += [np.full((height, gap, *picture.shape[2:]), 255, np.uint8), np.asarray(resized, np.uint8)]
    return np.hstack(row[1:])
