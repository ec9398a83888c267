"""Pictures of predictions: what they show, what they are called, and that they carry nothing else."""

from __future__ import annotations

import base64
from pathlib import Path

import cv2
import numpy as np
import pytest

from groundglass.imaging.crop import Preprocessing
from groundglass.imaging.phantom import make_phantom
from groundglass.imaging.slice import CTSlice, Origin
from groundglass.inference.prediction import Evidence
from groundglass.inference.report import evidence_picture, picture_name, save_picture, small_data_uri


def evidence(pixels: np.ndarray, activation_map: np.ndarray | None) -> Evidence:
    return Evidence(
        CTSlice(pixels, Origin("x", "PNG")), Preprocessing(size=64).apply(pixels), activation_map, None
    )


@pytest.fixture(scope="module")
def pixels() -> np.ndarray:
    return make_phantom(np.random.default_rng(0), 0.5, 0.5, size=128).slice.pixels


def test_slice_and_map_stand_side_by_side(pixels: np.ndarray) -> None:
    picture = evidence_picture(evidence(pixels, np.ones((4, 4), np.float32)))
    assert picture.shape == (320, 646, 3)
    orange = picture[160, 500].astype(int)
    assert orange[0] > orange[2] + 30
    plain = evidence_picture(evidence(pixels, None))
    assert plain.shape == (320, 646, 3)
    cropped = plain[:, 330:].astype(int)
    assert (cropped.max(axis=-1) == cropped.min(axis=-1)).all(), "a refused slice has no map"


@pytest.mark.parametrize("shape", [(1, 1), (1, 3000), (3000, 1), (40, 2000), (2000, 40)])
def test_slices_of_any_shape_can_be_shown(shape: tuple[int, int]) -> None:
    picture = evidence_picture(evidence(np.full(shape, 90, np.uint8), np.ones((2, 2), np.float32)))
    assert picture.shape[0] == 320
    assert picture.shape[1] <= 2 * 320 + 6 + 320


def test_names_follow_from_file_and_frame_and_are_never_shared() -> None:
    names = [
        picture_name(file, frame)
        for file in (
            "a/1.png",
            "b/1.png",
            "a/1.dcm",
            "s.zip!a/1.png",
            "<é>\n\udcff.png",
            "...",
            "",
            "x" * 5000,
        )
        for frame in (None, 0, 1)
    ]
    assert len(set(names)) == len(names)
    assert picture_name("a/1.png", None) == picture_name("a/1.png", None)
    for name in names:
        assert name.isascii()
        assert name.endswith(".png")
        assert len(name) < 120
        assert not set(name) - set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-")
        assert not name.startswith((".", "-", "_"))


def test_a_saved_picture_carries_no_metadata(tmp_path: Path, pixels: np.ndarray) -> None:
    path = tmp_path / "x.png"
    save_picture(evidence_picture(evidence(pixels, None)), path)
    content = path.read_bytes()
    kinds, position = [], 8
    while position < len(content):
        length = int.from_bytes(content[position : position + 4], "big")
        kinds.append(content[position + 4 : position + 8])
        position += 12 + length
    assert set(kinds) == {b"IHDR", b"IDAT", b"IEND"}


def test_small_pictures_come_from_the_saved_ones(tmp_path: Path, pixels: np.ndarray) -> None:
    path = tmp_path / "x.png"
    picture = evidence_picture(evidence(pixels, np.ones((4, 4), np.float32)))
    save_picture(picture, path)
    uri = small_data_uri(path)
    assert uri is not None
    head, _, body = uri.partition(",")
    assert head == "data:image/jpeg;base64"
    small = cv2.imdecode(np.frombuffer(base64.b64decode(body), np.uint8), cv2.IMREAD_COLOR)
    assert small is not None
    assert small.shape == (208, 420, 3)
    expected = cv2.resize(picture, (420, 208), interpolation=cv2.INTER_AREA)[:, :, ::-1]
    assert np.abs(small.astype(int) - expected).mean() < 4, "colours are not swapped"


@pytest.mark.parametrize("content", [None, b"", b"no picture", b"\x89PNG\r\n\x1a\n"])
def test_a_missing_or_damaged_picture_is_none(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "x.png"
    if content is not None:
        path.write_bytes(content)
    assert small_data_uri(path) is None
