"""Fingerprints: what they keep of a slice, whatever was done to it."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from groundglass.audit.duplicates import fingerprint, mirrored_codes, mirrored_hash
from groundglass.imaging.phantom import make_phantom

Grey = NDArray[np.uint8]


@pytest.fixture(scope="module")
def slices() -> list[Grey]:
    return [make_phantom(np.random.default_rng([5, n]), size=320).slice.pixels for n in range(3)]


def differing(first: NDArray[np.bool_] | None, second: NDArray[np.bool_] | None) -> int:
    assert first is not None
    assert second is not None
    return int((first != second).sum())


@pytest.mark.parametrize("colour", [0, 255])
def test_margins_are_no_part_of_the_picture(slices: list[Grey], colour: int) -> None:
    plain = fingerprint(slices[0])
    cropped = cv2.copyMakeBorder(slices[0], 20, 30, 40, 10, cv2.BORDER_CONSTANT, value=colour)
    found = fingerprint(cropped)
    expected = np.array(plain.box) + np.array([40, 20, 40, 20])
    assert np.abs(np.array(found.box) - expected).max() <= 4
    assert differing(found.hash, plain.hash) <= 40


def test_a_letter_in_the_margin_does_not_make_it_a_picture(slices: list[Grey]) -> None:
    height, width = slices[0].shape
    page = np.full((height, width + 80), 255, np.uint8)
    page[:, 40:-40] = slices[0]
    cv2.putText(page, "A", (8, 20), cv2.FONT_HERSHEY_SIMPLEX, 0.4, 0, 1)
    left, _, right, _ = fingerprint(page).box
    assert abs(left - 40) <= 4
    assert abs(right - (width + 40)) <= 4


def test_hash_survives_rescaling_gamma_and_recompression(slices: list[Grey]) -> None:
    original = fingerprint(slices[0])
    small = cv2.resize(slices[0], (150, 170), interpolation=cv2.INTER_AREA)
    gamma = np.rint(255 * (np.arange(256) / 255) ** 0.6).astype(np.uint8)[small]
    recoded = cv2.imdecode(cv2.imencode(".jpg", gamma, [cv2.IMWRITE_JPEG_QUALITY, 50])[1], 0)
    copy = fingerprint(recoded)
    assert differing(copy.hash, original.hash) <= 40
    for other in slices[1:]:
        assert differing(copy.hash, fingerprint(other).hash) > 40


def test_hash_and_codes_of_the_mirror_image_follow_from_the_original(slices: list[Grey]) -> None:
    original = fingerprint(slices[0])
    mirror = fingerprint(np.ascontiguousarray(slices[0][:, ::-1]))
    assert original.hash is not None
    assert differing(mirrored_hash(original.hash), mirror.hash) <= 4
    assert differing(original.hash, mirror.hash) > 60
    expected = original.points * (-1, 1) + (slices[0].shape[1] - 1, 0)
    apart = np.linalg.norm(expected[:, None] - mirror.points[None], axis=2)
    here, there = np.nonzero((apart < 1.5) & (apart == apart.min(axis=1, keepdims=True)))
    assert len(here) >= 50
    same = mirrored_codes(original.codes)[here] == mirror.codes[there]
    assert same.mean() > 0.7
    assert (original.codes[here] == mirror.codes[there]).mean() < 0.05


def test_without_patches_nothing_is_kept_of_them(slices: list[Grey]) -> None:
    print_ = fingerprint(slices[0], patches=False)
    assert print_.codes.shape == (0, 6)
    assert print_.points.shape == (0, 2)
    assert fingerprint(slices[0]).codes.shape[0] == fingerprint(slices[0]).points.shape[0] > 50


@pytest.mark.parametrize("shape", [(1, 1), (2, 300), (300, 2), (7, 9), (3000, 40), (60, 4000)])
@pytest.mark.parametrize("content", ["black", "noise", "one bright pixel"])
def test_any_picture_has_a_fingerprint(shape: tuple[int, int], content: str) -> None:
    pixels = np.zeros(shape, np.uint8)
    if content == "noise":
        pixels = np.random.default_rng(0).integers(0, 256, shape).astype(np.uint8)
    elif content == "one bright pixel":
        pixels[shape[0] // 2, shape[1] // 2] = 255
    print_ = fingerprint(pixels)
    left, top, right, bottom = print_.box
    assert 0 <= left < right <= shape[1]
    assert 0 <= top < bottom <= shape[0]
    assert np.isfinite(print_.points).all()


def test_blank_pictures_have_no_hash() -> None:
    assert fingerprint(np.full((200, 200), 90, np.uint8)).hash is None
