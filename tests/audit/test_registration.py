"""Registration: known movements are found again, copies agree, other slices do not."""

from __future__ import annotations

from itertools import pairwise

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from groundglass.audit.duplicates import (
    COPY_CORRELATION,
    LOOKALIKE_CORRELATION,
    Registration,
    agreement,
    boxes_start,
    fingerprint,
    patches_start,
    register,
)
from groundglass.imaging.phantom import make_phantom, make_series

Grey = NDArray[np.uint8]


@pytest.fixture(scope="module")
def pixels() -> Grey:
    return make_phantom(np.random.default_rng([5, 0]), level=0.5, size=384).slice.pixels


def registered(first: Grey, second: Grey, mirrored: bool = False) -> Registration | None:
    prints = fingerprint(first), fingerprint(second)
    start = patches_start(*prints, mirrored)
    if start is None:
        return None
    return register(first, second, (prints[0].box, prints[1].box), start, mirrored)


def moved(found: Registration, point: tuple[float, float]) -> tuple[float, float]:
    x, y = np.array(found.affine) @ (*point, 1)
    return float(x), float(y)


def test_a_crop_is_found_where_it_was_cut(pixels: Grey) -> None:
    crop = pixels[60:330, 40:250]
    found = registered(pixels, crop)
    assert found is not None
    assert found.correlation > 0.97
    assert moved(found, (140, 160)) == pytest.approx((100, 100), abs=0.5)
    assert found.scale == pytest.approx((1, 1), abs=0.01)
    assert found.overlap[1] == pytest.approx(1, abs=0.03)
    assert found.overlap[0] < 0.75


def test_rescaling_is_found_along_each_side(pixels: Grey) -> None:
    copy = cv2.resize(pixels, (300, 220), interpolation=cv2.INTER_AREA)
    found = registered(pixels, copy)
    assert found is not None
    assert found.correlation > 0.95
    assert found.scale == pytest.approx((300 / 384, 220 / 384), rel=0.01)


def test_the_mirror_image_agrees_only_when_mirrored(pixels: Grey) -> None:
    mirror = np.ascontiguousarray(pixels[:, ::-1])
    found = registered(pixels, mirror, mirrored=True)
    assert found is not None
    assert found.mirrored
    assert found.correlation > 0.98
    plain = registered(pixels, mirror)
    assert plain is None or plain.correlation < LOOKALIKE_CORRELATION


def test_arrows_and_letters_do_not_hide_a_copy(pixels: Grey) -> None:
    drawn = pixels.copy()
    for x, y in ((100, 150), (130, 260), (280, 240), (300, 120)):
        cv2.arrowedLine(drawn, (x, y), (x + 20, y + 14), 255, 3, tipLength=0.4)
    cv2.putText(drawn, "B", (12, 44), cv2.FONT_HERSHEY_SIMPLEX, 1.4, 255, 3)
    found = registered(pixels, drawn)
    assert found is not None
    assert found.correlation >= COPY_CORRELATION


def test_other_people_are_not_registered(pixels: Grey) -> None:
    for number in range(1, 6):
        other = make_phantom(np.random.default_rng([5, number]), level=0.5, size=384).slice.pixels
        found = registered(pixels, other)
        assert found is None or found.correlation < LOOKALIKE_CORRELATION


def test_slices_of_one_person_two_centimetres_apart_are_no_copies() -> None:
    series = [phantom.slice.pixels for phantom in make_series(np.random.default_rng(2), 16, size=384)][3:13]
    for first, second in pairwise(series):
        found = registered(first, second)
        assert found is None or found.correlation < COPY_CORRELATION


def test_boxes_start_brings_one_box_onto_the_other() -> None:
    affine = boxes_start((10, 20, 110, 70), (0, 0, 50, 100), width=200, mirrored=False)
    assert affine @ (10, 20, 1) == pytest.approx((0, 0))
    assert affine @ (110, 70, 1) == pytest.approx((50, 100))
    affine = boxes_start((10, 20, 110, 70), (0, 0, 50, 100), width=200, mirrored=True)
    assert affine @ (90, 20, 1) == pytest.approx((0, 0))


def test_agreement_is_symmetric_and_falls_with_what_is_covered(pixels: Grey) -> None:
    assert agreement(pixels, pixels) > 0.98
    covered = pixels.copy()
    covered[:, :192] = 128
    assert agreement(pixels, covered) == pytest.approx(agreement(covered, pixels), abs=1e-6)
    assert agreement(pixels, covered) < 0.3
    assert agreement(np.zeros((64, 64), np.uint8), np.zeros((64, 64), np.uint8)) == pytest.approx(0, abs=1e-6)


def test_what_is_too_small_or_blank_is_not_registered(pixels: Grey) -> None:
    blank = np.zeros((300, 300), np.uint8)
    start = np.array([[1.0, 0, 0], [0, 1, 0]])
    assert register(pixels, blank, ((0, 0, 384, 384), (0, 0, 300, 300)), start, mirrored=False) is None
    tiny = pixels[:20, :20]
    assert register(pixels, tiny, ((0, 0, 384, 384), (0, 0, 20, 20)), start, mirrored=False) is None
