"""The gate's lessons: lung slices stay lung slices, and nothing of the measured set is among what it is taught."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from groundglass.data import out_of_distribution as lessons
from groundglass.data.out_of_distribution import write_out_of_distribution
from groundglass.imaging.crop import find_lungs
from groundglass.imaging.phantom import make_phantom


@pytest.fixture(scope="module")
def lungs() -> list[NDArray[np.uint8]]:
    return [make_phantom(np.random.default_rng(seed), level=0.5, size=160).slice.pixels for seed in range(6)]


def test_a_varied_slice_still_shows_its_lungs(lungs: Sequence[NDArray[np.uint8]]) -> None:
    rng = np.random.default_rng(0)
    varied = [lessons.vary(pixels, rng) for _ in range(10) for pixels in lungs]
    assert sum(find_lungs(pixels)[1] for pixels in varied) > 0.9 * len(varied)
    assert len({pixels.shape for pixels in varied}) > 10
    assert all(pixels.dtype == np.uint8 and min(pixels.shape) > 32 for pixels in varied)


def test_a_sickened_slice_changes_within_its_lungs_alone(lungs: Sequence[NDArray[np.uint8]]) -> None:
    rng = np.random.default_rng(1)
    changed = []
    for pixels in lungs * 3:
        before = pixels.copy()
        sick = lessons.sicken(pixels, rng)
        np.testing.assert_array_equal(pixels, before)
        mask, _ = find_lungs(pixels)
        around = cv2.dilate(mask.astype(np.uint8), np.ones((9, 9), np.uint8)) > 0
        assert np.abs(sick.astype(int) - pixels)[~around].max() <= 2
        changed.append(np.abs(sick.astype(int) - pixels)[mask].mean())
    assert np.median(changed) > 10


@pytest.mark.parametrize("prepare", [lessons.vary, lessons.sicken])
def test_a_slice_without_lungs_does_no_harm(prepare: object) -> None:
    for shape in ((40, 60), (300, 50)):
        assert callable(prepare)
        assert prepare(np.full(shape, 120, np.uint8), np.random.default_rng(0)).dtype == np.uint8


@pytest.mark.slow
def test_all_kinds_are_taught_and_follow_from_the_seed(lungs: Sequence[NDArray[np.uint8]]) -> None:
    first = list(lessons.foreign_slices(lungs, 0, effort=0.03))
    again = list(lessons.foreign_slices(lungs, 0, effort=0.03))
    other = list(lessons.foreign_slices(lungs, 1, effort=0.03))
    assert [kind for kind, _ in first] == [kind for kind, _ in again]
    assert all(np.array_equal(a, b) for (_, a), (_, b) in zip(first, again, strict=True))
    assert not all(np.array_equal(a, b) for (_, a), (_, b) in zip(first, other, strict=False))
    kinds = Counter(kind for kind, _ in first)
    assert set(kinds) == {
        lessons.TURNED,
        lessons.OTHER_VIEW,
        lessons.OTHER_PART,
        lessons.INVERTED,
        lessons.NO_SCAN,
    }


def test_without_lung_slices_the_invented_kinds_remain() -> None:
    kinds = {kind for kind, _ in lessons.foreign_slices([], 0, effort=0.01)}
    assert kinds == {lessons.TURNED, lessons.OTHER_VIEW, lessons.OTHER_PART, lessons.NO_SCAN}


def test_a_turned_slice_turned_back_is_the_slice(lungs: Sequence[NDArray[np.uint8]]) -> None:
    turned = [pixels for kind, pixels in lessons.foreign_slices(lungs, 0, 0.03) if kind == lessons.TURNED]
    known = {pixels.tobytes() for pixels in lungs}
    back = [{np.ascontiguousarray(np.rot90(pixels, turn)).tobytes() for turn in (1, 3)} for pixels in turned]
    assert sum(bool(known & each) for each in back) == len(lungs)


@pytest.mark.slow
def test_no_measured_picture_is_taught(lungs: Sequence[NDArray[np.uint8]], tmp_path: Path) -> None:
    """Not even with equal seeds."""
    measured = {
        cv2.imread(str(picture.path), cv2.IMREAD_GRAYSCALE).tobytes()
        for picture in write_out_of_distribution(tmp_path / "foreign", seed=0, per_kind=2)
        if picture.path.suffix == ".png"
    }
    taught = [pixels for _, pixels in lessons.foreign_slices(lungs, 0, effort=0.05)]
    assert len(measured) > 20 < len(taught)
    assert not measured & {pixels.tobytes() for pixels in taught}
