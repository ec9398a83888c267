"""The cache of cropped slices: same content, same slices; changed content or preprocessing, new ones."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from groundglass.data.load import load_dataset
from groundglass.errors import GroundglassError
from groundglass.imaging.crop import Preprocessing
from groundglass.imaging.read import read_slice
from groundglass.training import samples as module
from groundglass.training.samples import cache_folder, load_cropped


def test_without_context_it_is_the_frame(phantoms: Path, tmp_path: Path) -> None:
    records = load_dataset(phantoms).records[:5]
    preprocessing = Preprocessing(size=64)
    cropped = load_cropped(records, preprocessing, 0.0, tmp_path)
    for pixels, record in zip(cropped.pixels, records, strict=True):
        np.testing.assert_array_equal(pixels, preprocessing.apply(read_slice(record.path).pixels).pixels)
    assert cropped.lungs.any(axis=(1, 2)).all()


def test_the_second_time_comes_from_the_cache(
    phantoms: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    records = load_dataset(phantoms).records[:5]
    first = load_cropped(records, Preprocessing(size=64), 0.125, tmp_path)

    def unread(*_: object) -> None:
        raise AssertionError("read again")

    monkeypatch.setattr(module, "read_pixels", unread)
    again = load_cropped(records, Preprocessing(size=64, normalisation="min-max"), 0.125, tmp_path)
    np.testing.assert_array_equal(first.pixels, again.pixels)
    np.testing.assert_array_equal(first.lungs, again.lungs)
    assert first.sha256 == again.sha256
    with pytest.raises(AssertionError, match="read again"):
        load_cropped(records, Preprocessing(size=72), 0.125, tmp_path)


def test_changed_content_is_read_again(phantoms: Path, tmp_path: Path) -> None:
    records = load_dataset(phantoms).records
    before = load_cropped(records[:2], Preprocessing(size=64), 0.0, tmp_path)
    after = load_cropped((records[0], records[2]), Preprocessing(size=64), 0.0, tmp_path)
    assert before.sha256 != after.sha256
    assert (before.pixels[1] != after.pixels[1]).any()


def test_a_damaged_cache_is_made_again(phantoms: Path, tmp_path: Path) -> None:
    records = load_dataset(phantoms).records[:2]
    first = load_cropped(records, Preprocessing(size=64), 0.0, tmp_path)
    (stored,) = tmp_path.iterdir()
    stored.write_bytes(stored.read_bytes()[:1000])
    np.testing.assert_array_equal(
        load_cropped(records, Preprocessing(size=64), 0.0, tmp_path).pixels, first.pixels
    )


def test_an_unreadable_slice_is_named(phantoms: Path, tmp_path: Path) -> None:
    (tmp_path / "bad.png").write_bytes(b"not a picture")
    (tmp_path / "manifest.csv").write_text("path\nbad.png\n")
    with pytest.raises(GroundglassError, match=r"bad\.png"):
        load_cropped(
            load_dataset(tmp_path / "manifest.csv").records, Preprocessing(size=64), 0.0, tmp_path / "cache"
        )
    assert not (tmp_path / "cache").exists()


def test_the_cache_folder_can_be_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GROUNDGLASS_CACHE", "/somewhere")
    assert cache_folder() == Path("/somewhere")
