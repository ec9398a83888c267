"""Overlays: where colour falls, and what outlines and data URIs hold."""

from __future__ import annotations

import base64

import cv2
import numpy as np
import pytest

from groundglass.reporting import overlay

GREY = np.full((64, 64), 100, np.uint8)


def test_lesions_are_orange_the_surer_the_stronger() -> None:
    lesion_map = np.full((4, 4), -9, np.float32)
    lesion_map[0, 0], lesion_map[3, 3] = 9, 0
    picture = overlay.overlay(GREY, lesion_map).astype(int)
    assert picture.shape == (64, 64, 3)
    sure, even, none = picture[4, 4], picture[60, 60], picture[4, 60]
    assert sure[0] - sure[2] > 1.7 * (even[0] - even[2]) > 60
    assert np.abs(none - 100).max() <= 1


def test_a_map_that_is_no_number_shows_nothing() -> None:
    plain = overlay.grey_picture(GREY)
    assert (overlay.overlay(GREY, np.full((3, 3), np.nan)) == plain).all()
    assert (overlay.overlay(GREY, np.full((3, 3), -np.inf)) == plain).all()


def test_a_layer_is_opaque_over_lesions_of_its_box_alone() -> None:
    layer = overlay.map_layer(np.full((4, 4), 9, np.float32), (-10, 20, 30, 60), (50, 70))
    rows, columns = np.nonzero(layer[..., 3])
    assert layer.shape == (50, 70, 4)
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (20, 49, 0, 29)
    assert layer[30, 5].tolist() == pytest.approx([*overlay.LESION[::-1], 158], abs=2)


def test_outlines_are_drawn_on_copies() -> None:
    picture = overlay.grey_picture(GREY)
    mask = np.zeros((64, 64), bool)
    mask[10:30, 10:30] = True
    outlined = overlay.outline_mask(picture, mask)
    assert outlined[10, 20].tolist() == pytest.approx(overlay.OUTLINE, abs=16)
    assert tuple(outlined[20, 20]) == (100, 100, 100)
    boxed = overlay.outline_box(picture, (-5, 8, 40, 90))
    assert boxed[30, 0].tolist() == pytest.approx(overlay.OUTLINE, abs=16)
    assert boxed[63, 20].tolist() == pytest.approx(overlay.OUTLINE, abs=16)
    assert boxed[30, 39].tolist() == pytest.approx(overlay.OUTLINE, abs=16)
    assert (picture == 100).all()


def test_fit_keeps_the_proportions() -> None:
    assert overlay.fit(np.zeros((100, 50), np.uint8), 320).shape == (320, 160)
    assert overlay.fit(np.zeros((10, 2000, 3), np.uint8), 100).shape == (1, 100, 3)


def test_data_uri_holds_the_picture() -> None:
    picture = np.random.default_rng(0).integers(0, 256, (5, 7, 3)).astype(np.uint8)
    head, _, body = overlay.png_data_uri(picture).partition(",")
    assert head == "data:image/png;base64"
    decoded = cv2.imdecode(np.frombuffer(base64.b64decode(body), np.uint8), cv2.IMREAD_COLOR)
    assert decoded is not None
    assert (decoded[:, :, ::-1] == picture).all()


def test_a_slice_is_outlined_to_scale() -> None:
    lungs = np.zeros((200, 100), bool)
    lungs[80:120, 40:60] = True
    picture = overlay.outlined_slice(np.full((200, 100), 100, np.uint8), lungs, (20, 40, 80, 160), 400)
    assert picture.shape == (400, 200, 3)
    assert picture[200, 40].tolist() == pytest.approx(overlay.OUTLINE, abs=16), "the crop's left edge"
    assert picture[200, 80].tolist() == pytest.approx(overlay.OUTLINE, abs=90), "the lungs' left edge"
    assert tuple(picture[200, 100]) == (100, 100, 100), "nothing within the lungs"
    assert tuple(picture[20, 100]) == (100, 100, 100), "nothing outside the crop"


@pytest.mark.parametrize("shape", [(1, 1), (1, 900), (900, 1)])
def test_a_slice_of_any_shape_is_outlined(shape: tuple[int, int]) -> None:
    picture = overlay.outlined_slice(
        np.zeros(shape, np.uint8), np.zeros(shape, bool), (0, 0, *shape[::-1]), 320
    )
    assert max(picture.shape[:2]) == 320


@pytest.mark.parametrize("channels", [(), (3,)], ids=["grey", "colour"])
def test_pictures_side_by_side(channels: tuple[int, ...]) -> None:
    pictures = [np.zeros((10, 20, *channels), np.uint8), np.zeros((40, 40, *channels), np.uint8)]
    row = overlay.side_by_side(pictures, 20, gap=4)
    assert row.shape == (20, 40 + 4 + 20, *channels)
    assert (row[:, 40:44] == 255).all()
