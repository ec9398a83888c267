"""Previews: one picture per slice, bad files left out and reported."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from typer.testing import CliRunner

from groundglass.cli.main import app
from groundglass.data.preview import write_previews
from groundglass.imaging.crop import Preprocessing
from groundglass.imaging.phantom import make_phantom

SIDE = 256


@pytest.fixture
def slices(tmp_path: Path) -> Path:
    folder = tmp_path / "slices"
    folder.mkdir()
    for number in range(2):
        phantom = make_phantom(np.random.default_rng(number), level=0.5, size=128)
        cv2.imwrite(str(folder / f"a b{number}.png"), phantom.slice.pixels)
    return folder


def tiles(path: Path) -> list[np.ndarray]:
    """The tiles of a preview without their captions and without the copy in their corner."""
    picture = cv2.imread(str(path), cv2.IMREAD_COLOR)
    rows, columns = picture.shape[0] // SIDE, picture.shape[1] // SIDE
    assert picture.shape == (rows * SIDE, columns * SIDE, 3)
    return [
        picture[SIDE * row : SIDE * (row + 1), SIDE * column : SIDE * (column + 1)]
        for row in range(rows)
        for column in range(columns)
    ]


def test_slice_mask_crop_and_ten_painted_copies(slices: Path, tmp_path: Path) -> None:
    first, second = write_previews(slices, tmp_path / "out", Preprocessing(size=SIDE))
    assert [first.name, second.name] == ["00000-a_b0.png", "00001-a_b1.png"]
    drawn = tiles(first)
    assert len(drawn) == 16
    assert len({tile[24:170].tobytes() for tile in drawn[:13]}) == 13, "no two are alike"
    assert not any(tile.any() for tile in drawn[13:]), "places are left over"
    mask = drawn[1][24:]
    assert ((mask < 30) | (mask > 225)).mean() > 0.9
    coloured = [bool((tile != tile[..., :1]).any()) for tile in drawn[:13]]
    assert coloured == [False] * 3 + [True] * 10, "painted regions have an outline"
    (again,) = write_previews(slices, tmp_path / "again", Preprocessing(size=SIDE), most=1)
    assert again.read_bytes() == first.read_bytes()


def test_the_command_names_bad_files_and_leaves_them_out(slices: Path, tmp_path: Path) -> None:
    (slices / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n broken")
    words = ["data", "preview", str(slices), "--output", str(tmp_path / "out"), "--size", "96"]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 3
    assert "broken.png" in done.stderr
    assert len(list((tmp_path / "out").iterdir())) == 2
