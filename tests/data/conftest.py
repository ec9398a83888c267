"""Pictures to read."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image


def save_image(path: Path, pixels: int | NDArray[np.uint8] = 90) -> Path:
    """Write a picture; of one grey value it is 6 x 8 pixels large."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((8, 6), pixels, np.uint8) if isinstance(pixels, int) else pixels).save(path)
    return path
