"""Previews: one picture per slice, bad files left out and told."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from typer.testing import CliRunner

from groundglass.cli.main import app
from groundglass.data.preview import binarise, write_previews
from groundglass.errors import ImageError
from groundglass.imaging.crop import Preprocessing
from groundglass.imaging.phantom import make_phantom


@pytest.fixture
def slices(tmp_path: Path) -> Path:
    folder = tmp_path / "slices"
    folder.mkdir()
    for number in range(2):
        phantom = make_phantom(np.random.default_rng(number), level=0.5, size=128)
        cv2.imwrite(str(folder / f"a b{number}.png"), phantom.slice.pixels)
    return folder


def test_three_pictures_stand_side_by_side(slices: Path, tmp_path: Path) -> None:
    first, second = write_previews(slices, tmp_path / "out", Preprocessing(size=64))
    assert first.name == "00000-a_b0.png"
    picture = cv2.imread(str(second), cv2.IMREAD_GRAYSCALE)
    assert picture.shape == (320, 3 * 320 + 2 * 6)
    middle = picture[:, 326:646]
    assert ((middle < 30) | (middle > 225)).mean() > 0.9


def test_the_mask_is_two_valued() -> None:
    phantom = make_phantom(np.random.default_rng(0), level=0.5, size=128)
    assert set(np.unique(binarise(phantom.slice.pixels))) == {0, 255}


def test_bad_files_are_told_and_left_out(slices: Path, tmp_path: Path) -> None:
    (slices / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n broken")
    done = CliRunner().invoke(app, ["data", "preview", str(slices), "--output", str(tmp_path / "out")])
    assert done.exit_code == 3
    assert "broken.png" in done.stderr
    assert len(list((tmp_path / "out").iterdir())) == 2


def test_nothing_readable_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="nothing"):
        list(write_previews(tmp_path / "nothing", tmp_path / "out", Preprocessing()))
    assert not (tmp_path / "out").exists()
