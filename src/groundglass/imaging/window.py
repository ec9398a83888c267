"""From Hounsfield units to grey values."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from groundglass.imaging.slice import Grey


@dataclass(frozen=True)
class Window:
    """A CT display window.

    Attributes:
        level: centre, in Hounsfield units.
        width: range shown from black to white, in Hounsfield units; positive.
    """

    level: float
    width: float

    def __post_init__(self) -> None:
        if not self.width > 0:
            raise ValueError(f"window width must be positive, not {self.width}")

    def apply(self, hounsfield: NDArray[np.generic]) -> Grey:
        """Map Hounsfield units linearly to 0..255, clipped at both ends of the window."""
        low = self.level - self.width / 2
        grey = (hounsfield.astype(np.float32) - np.float32(low)) * np.float32(255.0 / self.width)
        return np.asarray(np.clip(np.rint(grey), 0, 255), np.uint8)


LUNG = Window(level=-600.0, width=1500.0)
"""The lung window radiologists read pneumonia in; used whatever the file's header says."""
