"""Maps judged cell by cell against masks that are known to the pixel."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from groundglass.evaluation.map_scores import NEAR, Truth, reframe, score_map
from groundglass.imaging.framing import Box, Framing
from groundglass.imaging.phantom import make_phantom

GRID = (5, 5)
WHOLE: Box = (0, 0, 100, 100)


def _mask(top: int, bottom: int, left: int, right: int, side: int = 100) -> NDArray[np.bool_]:
    mask = np.zeros((side, side), np.bool_)
    mask[top:bottom, left:right] = True
    return mask


def _truth(lesion: NDArray[np.bool_], box: Box = WHOLE, size: int = 100) -> Truth:
    return Truth.of(lesion, np.ones_like(lesion), box, size, GRID)


def _hot(row: int, column: int) -> NDArray[np.float32]:
    heat = np.zeros(GRID, np.float32)
    heat[row, column] = 3
    return heat


def test_cells_know_their_share_of_the_lesion() -> None:
    truth = _truth(_mask(0, 20, 0, 30))
    np.testing.assert_allclose(truth.lesion[0], [1, 0.5, 0, 0, 0], atol=1e-12)
    assert truth.lesion[1:].sum() == 0
    assert truth.centre[0, 0]
    assert truth.centre.sum() == 1, "half of the second cell is lesion, but its centre is just outside"


@pytest.mark.parametrize("size", [64, 160, 224])
def test_the_mask_goes_through_the_frame_as_the_picture_does(size: int) -> None:
    """A picture that is its own mask, framed, has the brightness that the truth says."""
    phantom = make_phantom(np.random.default_rng(3), severity=0.6, level=0.5, size=256)
    framed = Framing(size=size, margin=0.4).frame(phantom.slice.pixels)
    left, top, right, bottom = framed.box
    assert min(left, top) < 0 or max(right, bottom) > 256, "the frame reaches beyond the picture"
    truth = Truth.of(phantom.lesions, phantom.lungs, framed.box, size, (8, 8))
    area = (right - left) * (bottom - top)
    assert truth.lesion.mean() == pytest.approx(phantom.lesions.sum() / area, rel=0.03)
    assert truth.lungs.mean() == pytest.approx(phantom.lungs.sum() / area, rel=0.02)
    row, column = np.unravel_index(np.argmax(truth.lesion), truth.lesion.shape)
    height, width = (bottom - top) / 8, (right - left) / 8
    cell = phantom.lesions[
        round(top + row * height) : round(top + (row + 1) * height),
        round(left + column * width) : round(left + (column + 1) * width),
    ]
    assert truth.lesion[row, column] == pytest.approx(cell.mean(), abs=0.05)


def test_a_hot_cell_in_the_lesion_is_a_hit() -> None:
    truth = _truth(_mask(40, 60, 40, 60))
    hit, miss = score_map(_hot(2, 2), truth), score_map(_hot(2, 3), truth)
    names = ("pointing", "near", "energy", "energy_of_lungs", "energy_in_lungs", "blank")
    assert [hit[name] for name in names] == [1, 1, 1, 1, 1, 0]
    assert [miss[name] for name in names] == [0, 0, 0, 0, 1, 0]


def test_a_lesion_in_the_corner_of_the_hottest_cell_is_near() -> None:
    truth = _truth(_mask(40, 50, 40, 45))
    scored = score_map(_hot(2, 2), truth)
    assert (scored["pointing"], scored["near"]) == (0, 1)
    assert scored["energy"] == pytest.approx(50 / 400)
    assert NEAR < 50 / 400


def test_energy_counts_what_speaks_for_covid_alone() -> None:
    heat = np.full(GRID, -5.0)
    heat[0, 0], heat[0, 1] = 3, 1
    scored = score_map(heat, _truth(_mask(0, 20, 0, 20)))
    assert scored["energy"] == pytest.approx(0.75)


def test_a_map_with_nothing_positive_says_so() -> None:
    scored = score_map(np.full(GRID, -1.0), _truth(_mask(0, 20, 0, 20)))
    assert (scored["blank"], scored["energy"]) == (1, 0)


def test_even_maps_reach_chance() -> None:
    lungs, lesion = _mask(0, 100, 0, 60), _mask(0, 20, 0, 50)
    truth = Truth.of(lesion, lungs, WHOLE, 100, GRID)
    chance = truth.chance()
    even, in_lungs = score_map(np.ones(GRID), truth), score_map(truth.lungs, truth)
    assert even["energy"] == pytest.approx(chance["lesion_of_frame"]) == pytest.approx(0.1)
    assert even["energy_in_lungs"] == pytest.approx(chance["lungs_of_frame"]) == pytest.approx(0.6)
    assert in_lungs["energy"] == pytest.approx(chance["lesion_of_lungs"]) == pytest.approx(1000 / 6000)
    assert (chance["near_of_frame"], chance["near_of_lungs"]) == pytest.approx((3 / 25, 3 / 15))


def test_a_map_of_the_lungs_alone_is_chance_on_a_coarse_grid() -> None:
    """Lungs that end within a cell: a map of the grid leaks, and points where most lung is."""
    lungs, lesion = _mask(0, 100, 0, 50), _mask(0, 100, 40, 50)
    truth = Truth.of(lesion, lungs, WHOLE, 100, GRID)
    chance = truth.chance()
    assert chance["lesion_of_lungs"] == pytest.approx(0.2)
    assert chance["even_energy"] == pytest.approx(0.5 * 0.5 / 2.5)
    assert chance["even_energy_in_lungs"] == pytest.approx((2 + 0.5 * 0.5) / 2.5)
    assert chance["even_energy_of_lungs"] == pytest.approx(0.25 / 2.25)
    assert chance["even_pointing"] == 0, "no cell's centre lies in the lesion"
    assert score_map(np.ones(GRID), truth)["energy_of_lungs"] == pytest.approx(0.2)


def test_no_map_exceeds_the_best_of_its_grid() -> None:
    truth = _truth(_mask(33, 71, 12, 55))
    best = truth.chance()["best_energy"]
    rng = np.random.default_rng(0)
    assert max(score_map(rng.normal(size=GRID), truth)["energy"] for _ in range(200)) < best
    assert score_map((truth.lesion == truth.lesion.max()).astype(float), truth)["energy"] == pytest.approx(
        best
    )


def test_a_map_in_its_own_frame_stays_what_it_is() -> None:
    heat = np.random.default_rng(0).normal(size=GRID)
    np.testing.assert_allclose(reframe(heat, (3, -4, 77, 81), (3, -4, 77, 81)), heat, atol=1e-12)


def test_a_frame_moved_by_a_cell_moves_the_map() -> None:
    heat = np.random.default_rng(0).normal(size=GRID)
    moved = reframe(heat, (0, 0, 50, 100), (10, 0, 60, 100))
    np.testing.assert_allclose(moved[:, :4], heat[:, 1:], atol=1e-12)
    np.testing.assert_allclose(moved[:, 4], 0, atol=1e-12)


def test_a_wider_frame_gathers_all_of_a_map() -> None:
    heat = np.random.default_rng(0).normal(size=GRID)
    wide = reframe(heat, (13, 21, 74, 88), (0, 0, 100, 100))
    assert wide.sum() == pytest.approx(heat.sum())
    assert not np.allclose(wide, heat)
