"""Segmentation against true masks: every figure by hand, by scipy and scikit-learn, and at its edges."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.stats import spearmanr

from groundglass.data.manifest import Label, Record
from groundglass.errors import ImageError
from groundglass.evaluation.segmentation import (
    SEGMENTATION_TITLES,
    CountedEstimate,
    Masks,
    Segmentation,
    read_masks,
)

SHAPE = (20, 30)


def box(top: int = 0, left: int = 0, bottom: int = 0, right: int = 0) -> NDArray[np.bool_]:
    mask = np.zeros(SHAPE, bool)
    mask[top:bottom, left:right] = True
    return mask


def peak(row: int, column: int) -> NDArray[np.float32]:
    lesion_map = np.full(SHAPE, -4, np.float32)
    lesion_map[row, column] = 3
    return lesion_map


LUNGS = box(0, 0, 10, 10)  # 100 pixels
NOTHING = box()


def measure(tally: Segmentation) -> dict[str, CountedEstimate]:
    return tally.figures(resamples=100, seed=0)


def test_figures_of_two_ill_slices_and_a_clear_one() -> None:
    tally = Segmentation()
    # Found half of a lesion of 20 pixels, nothing else; the map is highest in it.
    tally.add("a", Masks(LUNGS, box(0, 0, 2, 10)), LUNGS, box(0, 0, 1, 10), peak(0, 4))
    # A lesion of 40 pixels of which the predicted lungs hold 20; found beside it; higher still outside the lungs.
    beside, outside = peak(9, 9), box(19, 19, 20, 20)
    beside[outside] = 9
    tally.add("b", Masks(LUNGS, box(0, 0, 4, 10)), box(2, 0, 10, 10), box(8, 0, 10, 10), beside)
    tally.add("c", Masks(LUNGS, NOTHING), LUNGS, box(5, 0, 6, 10), peak(0, 0))
    measured = measure(tally)
    assert list(measured) == list(SEGMENTATION_TITLES)
    assert {name: (each.slices, each.estimate.value) for name, each in measured.items()} == {
        "lung_dice": (3, pytest.approx((1 + 160 / 180 + 1) / 3)),
        "lesion_dice": (2, pytest.approx((20 / 30 + 0) / 2)),
        "lesion_dice_pooled": (3, pytest.approx(20 / (30 + 60 + 10))),
        "pointing": (2, 0.5),
        "lesion_in_lungs": (2, pytest.approx(40 / 60)),
        "opacity_spearman": (3, pytest.approx(spearmanr([20, 40, 0], [10, 25, 10]).statistic)),
        "opacity_error": (3, pytest.approx((10 + 15 + 10) / 3)),
        "clear_opacity_median": (1, 10.0),
        "clear_opacity_95": (1, 10.0),
    }


def known(tally: Segmentation) -> dict[str, float | None]:
    """Figures that some slice was counted in."""
    return {name: each.estimate.value for name, each in measure(tally).items() if each.slices}


LESION = box(0, 0, 2, 10)


@pytest.mark.parametrize(
    ("true", "found", "figures"),
    [
        ((LUNGS, None), (LUNGS, NOTHING, peak(0, 0)), {"lung_dice": 1}),
        (
            (None, LESION), (LUNGS, LESION, peak(0, 0)),
            dict.fromkeys(("lesion_dice", "lesion_dice_pooled", "pointing", "lesion_in_lungs"), 1),
        ),
        ((None, None), (LUNGS, NOTHING, peak(0, 0)), {}),
        # A network without a lesion map is measured by its lungs.
        ((LUNGS, LESION), (LUNGS,), {"lung_dice": 1, "lesion_in_lungs": 1}),
        # Lungs that were not found miss the lesion and have no opacity.
        (
            (LUNGS, LESION), (NOTHING, NOTHING, peak(0, 0)),
            dict.fromkeys(
                ("lung_dice", "lesion_dice", "lesion_dice_pooled", "pointing", "lesion_in_lungs"), 0
            ),
        ),
        # A slice without lungs counts only where lungs are predicted.
        ((NOTHING, None), (NOTHING,), {}),
        ((NOTHING, None), (LUNGS,), {"lung_dice": 0}),
    ],
)  # fmt: skip
def test_what_is_not_known_is_left_out(
    true: tuple[Any, Any], found: tuple[Any, ...], figures: dict[str, float]
) -> None:
    tally = Segmentation()
    assert tally.figures() == {}
    tally.add("a", Masks(*true), *found)
    assert known(tally) == figures
    measured = measure(tally)
    assert list(measured) == list(SEGMENTATION_TITLES)
    assert all(each.estimate.low is None for each in measured.values()), "one patient only"


def test_true_masks_come_from_the_manifest(tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "lungs.png"), LUNGS.astype(np.uint8) * 255)
    record = Record(tmp_path / "a.png", Label.COVID, "a", "s", None, lung_mask=tmp_path / "lungs.png")
    masks = read_masks(record, SHAPE)
    assert masks.lungs is not None
    np.testing.assert_array_equal(masks.lungs, LUNGS)
    assert masks.lesions is None
    with pytest.raises(ImageError, match=r"lungs\.png.*30 x 20 pixels for a slice of 20 x 20"):
        read_masks(record, (20, 20))
