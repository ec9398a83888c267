"""What happens to lung slices on their way to a user, some of it harmless, some of it to be refused."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import cv2
import numpy as np

from groundglass.imaging.slice import Grey

Alteration = Callable[[Grey], Grey]


def _turned(pixels: Grey, turns: int) -> Grey:
    return np.ascontiguousarray(np.rot90(pixels, turns))


def _tilted(pixels: Grey, degrees: float) -> Grey:
    height, width = pixels.shape
    turn = cv2.getRotationMatrix2D((width / 2, height / 2), degrees, 1)
    return np.asarray(cv2.warpAffine(pixels, turn, (width, height), borderMode=cv2.BORDER_REPLICATE))


def compressed(quality: int) -> Alteration:
    """Bring slices to one container: 8-bit grey, encoded as JPEG at their own size, and decoded again.

    Args:
        quality: of the JPEG, 1 to 100.
    """

    def compress(pixels: Grey) -> Grey:
        content = cv2.imencode(".jpg", pixels, [cv2.IMWRITE_JPEG_QUALITY, quality])[1]
        return np.asarray(cv2.imdecode(content, cv2.IMREAD_GRAYSCALE))

    return compress


def _halved(pixels: Grey) -> Grey:
    height, width = pixels.shape
    size = (max(1, width // 2), max(1, height // 2))
    return np.asarray(cv2.resize(pixels, size, interpolation=cv2.INTER_AREA))


def _noisy(pixels: Grey) -> Grey:
    grain = np.random.default_rng(0).normal(0, 20, pixels.shape)
    return np.asarray(np.clip(pixels + grain, 0, 255), np.uint8)


def _framed(pixels: Grey) -> Grey:
    height, width = pixels.shape
    return np.pad(pixels, ((height // 2, height // 2), (width // 2, width // 2)))


HARMLESS: Mapping[str, Alteration] = {
    "mirrored": lambda pixels: np.ascontiguousarray(pixels[:, ::-1]),
    "upside down": lambda pixels: np.ascontiguousarray(pixels[::-1]),
    "turned by 180 degrees": lambda pixels: _turned(pixels, 2),
    "tilted by 10 degrees": lambda pixels: _tilted(pixels, 10),
    "JPEG of quality 30": compressed(30),
    "half as large": _halved,
    "noise of 20 grey values": _noisy,
    "in a black frame twice as wide": _framed,
}
"""A person would still judge these."""

SPOILING: Mapping[str, Alteration] = {
    "turned by 90 degrees to the left": lambda pixels: _turned(pixels, 1),
    "turned by 90 degrees to the right": lambda pixels: _turned(pixels, 3),
    "black and white exchanged": lambda pixels: np.subtract(255, pixels, dtype=np.uint8),
    "left half alone": lambda pixels: np.ascontiguousarray(pixels[:, : max(1, pixels.shape[1] // 2)]),
    "twice, side by side": lambda pixels: np.hstack([pixels, pixels]),
}
"""These are to be refused: the network learned from nothing like it."""
