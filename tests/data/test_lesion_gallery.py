"""Galleries of painted lesions: every kind and mimic, beside the slice as it was."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
from typer.testing import CliRunner

from groundglass.cli.main import app
from groundglass.data.preview import lesion_gallery
from groundglass.imaging.phantom import make_phantom


def test_all_kinds_and_mimics_are_drawn_in_colour() -> None:
    pixels = make_phantom(np.random.default_rng(0), level=0.5, size=256).slice.pixels
    gallery = lesion_gallery(pixels, 0.6, np.random.default_rng(0))
    assert gallery.shape == (3 * 256, 4 * 256, 3)
    tiles = [gallery[y : y + 256, x : x + 256] for y in range(0, 768, 256) for x in range(0, 1024, 256)]
    below_caption = [tile[24:, :170] for tile in tiles[:11]]
    assert not any((tile == below_caption[0]).all() for tile in below_caption[1:])
    assert not tiles[11].any(), "one place is left over"
    assert (tiles[1] != tiles[1][:, :, :1]).any(), "the outline has a colour"
    again = lesion_gallery(pixels, 0.6, np.random.default_rng(0))
    np.testing.assert_array_equal(gallery, again)


def test_the_command_draws_and_tells_what_it_left_out(tmp_path: Path) -> None:
    folder = tmp_path / "slices"
    folder.mkdir()
    for number in range(3):
        pixels = make_phantom(np.random.default_rng(number), level=0.5, size=128).slice.pixels
        cv2.imwrite(str(folder / f"{number}.png"), pixels)
    words = ["data", "preview", "--lesions", str(folder), "--output", str(tmp_path / "out"), "--most", "2"]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.output
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["00000-0.png", "00001-1.png"]
    (folder / "0.png").write_bytes(b"\x89PNG broken")
    assert CliRunner().invoke(app, words).exit_code == 3


def test_nothing_to_paint_is_not_success(tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "blank.png"), np.full((64, 64), 128, np.uint8))
    words = ["data", "preview", "--lesions", str(tmp_path / "blank.png"), "--output", str(tmp_path / "out")]
    assert CliRunner().invoke(app, words).exit_code == 3
