"""How well an activation map tells where a lesion lies, the lesion being known to the pixel.

- Pointing: whether the map's hottest place lies in the lesion (the pointing game of Zhang et al., Top-Down
  Neural Attention by Excitation Backprop, International Journal of Computer Vision 126, 2018).
- Energy: the share of the map's positive values that lies in the lesion (the energy-based pointing game of
  Wang et al., Score-CAM, CVPR Workshops 2020).

A map is taken as what it is, a grid of a few cells: a cell's value is spread evenly over it. Nothing is
enlarged by interpolation, which would invent detail. A cell wider than the lesion can therefore not be all
lesion, and the best energy that any map of this grid could reach stands beside.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from groundglass.imaging.framing import Box, resize_mask

NEAR = 0.1
"""Share of a cell that must be lesion for the cell to count as near to it."""

_Cells = NDArray[np.float64]


@dataclass(frozen=True)
class Truth:
    """What the cells of a map lie on, each of shape (h, w).

    Attributes:
        lesion: share of each cell that is lesion.
        lungs: share of each cell that is lung.
        centre: whether the cell's centre lies in the lesion.
    """

    lesion: _Cells
    lungs: _Cells
    centre: NDArray[np.bool_]

    @classmethod
    def of(
        cls,
        lesion: NDArray[np.bool_],
        lungs: NDArray[np.bool_],
        box: Box,
        size: int,
        grid: tuple[int, int],
    ) -> Truth:
        """Bring masks of a slice to the cells of the map of its framed slice.

        Args:
            lesion: bool, shape (H, W) of the slice.
            lungs: likewise, lesions included.
            box: of the frame in the slice.
            size: side of the framed slice.
            grid: rows and columns of the map.
        """
        framed = resize_mask(lesion, box, size)
        rows, columns = (((np.arange(cells) + 0.5) * size / cells).astype(np.intp) for cells in grid)
        return cls(
            _shares(framed, grid),
            _shares(resize_mask(lungs, box, size), grid),
            framed[rows[:, None], columns],
        )

    def chance(self) -> dict[str, float]:
        """What maps reach that know nothing of the lesion, and what the best map of this grid does.

        - ``lesion_of_frame``: what a map that is even over the frame reaches by pointing and by energy;
          ``near_of_frame`` and ``lungs_of_frame`` are the same for pointing near it and for energy in the
          lungs.
        - ``lesion_of_lungs``, ``near_of_lungs``: the same of a map that is even over the lungs to the pixel.
        - ``even_pointing``, ``even_energy``, ``even_energy_in_lungs``, ``even_energy_of_lungs``: what the
          scores of `score_map` are for a map of this grid that shows the lungs and nothing else.
        - ``best_energy``: of a map whose only hot cell is the one with the most lesion.
        """
        near = self.lesion >= NEAR
        share = self.lungs / max(float(self.lungs.sum()), 1e-9)
        even = score_map(self.lungs, self)
        return {
            "lesion_of_frame": float(self.lesion.mean()),
            "lesion_of_lungs": float(self.lesion.sum() / max(float(self.lungs.sum()), 1e-9)),
            "near_of_frame": float(near.mean()),
            "near_of_lungs": float((share * near).sum()),
            "lungs_of_frame": float(self.lungs.mean()),
            "even_pointing": float((share * self.centre).sum()),
            **{f"even_{name}": even[name] for name in ("energy", "energy_in_lungs", "energy_of_lungs")},
            "best_energy": float(self.lesion.max()),
        }


def score_map(heat: NDArray[np.floating], truth: Truth) -> dict[str, float]:
    """Judge a map.

    ``pointing`` is 1 where the hottest cell's centre lies in the lesion, ``near`` where at least a tenth of
    that cell is lesion, ``energy`` the share of the positive values in the lesion, ``energy_in_lungs`` in the
    lungs, and ``energy_of_lungs`` the share in the lesion of what is in the lungs, which a coarse grid spoils
    less; all three are 0 where nothing is positive, which ``blank`` says.

    Args:
        heat: the map, shape (h, w); larger speaks for COVID.
        truth: of the same grid.
    """
    hottest = np.unravel_index(int(np.argmax(heat)), heat.shape)
    positive = np.maximum(np.asarray(heat, np.float64), 0)
    total = float(positive.sum())
    share = positive / total if total > 0 else positive
    energy, in_lungs = float((share * truth.lesion).sum()), float((share * truth.lungs).sum())
    return {
        "pointing": float(truth.centre[hottest]),
        "near": float(truth.lesion[hottest] >= NEAR),
        "energy": energy,
        "energy_in_lungs": in_lungs,
        "energy_of_lungs": energy / in_lungs if in_lungs > 0 else 0.0,
        "blank": float(total <= 0),
    }


def reframe(heat: NDArray[np.floating], box: Box, onto: Box) -> _Cells:
    """A map in the frame of another, so that the two can be compared place by place.

    A lesion can change where the lungs are found and with them the frame. Each cell's value is spread evenly
    over the cell, and gathered by the cells of the other frame; what lies outside that is lost.

    Args:
        heat: the map, shape (h, w).
        box: of its frame in the slice.
        onto: of the other frame, which has the same grid.
    """
    rows, columns = heat.shape
    down = _overlaps(_edges(onto[1], onto[3], rows), _edges(box[1], box[3], rows))
    across = _overlaps(_edges(onto[0], onto[2], columns), _edges(box[0], box[2], columns))
    return np.asarray(down @ heat @ across.T, np.float64)


def _shares(mask: NDArray[np.bool_], grid: tuple[int, int]) -> _Cells:
    """Share of each cell that a mask covers."""
    height, width = mask.shape
    down = _overlaps(_edges(0, height, grid[0]), _edges(0, height, height))
    across = _overlaps(_edges(0, width, grid[1]), _edges(0, width, width))
    area = height * width / (grid[0] * grid[1])
    return np.asarray(down @ mask @ across.T / area, np.float64)


def _edges(start: int, end: int, cells: int) -> _Cells:
    return np.linspace(start, end, cells + 1)


def _overlaps(onto: _Cells, edges: _Cells) -> _Cells:
    """Share of each of M cells that lies in each of N others, shape (N, M), all given by their edges."""
    low = np.maximum(onto[:-1, None], edges[:-1])
    high = np.minimum(onto[1:, None], edges[1:])
    return np.asarray(np.clip(high - low, 0, None) / np.diff(edges), np.float64)
