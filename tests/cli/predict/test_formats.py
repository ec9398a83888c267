"""Formats: how many rows a picture or volume gives, with which status, and whether any library speaks."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import tifffile
from numpy.typing import NDArray
from tests.cli.predict.conftest import Run

from groundglass.imaging.phantom import make_phantom

Pixels = NDArray[Any]


def _nifti(path: Path, voxels: Pixels, **elements: int) -> None:
    image = nibabel.Nifti1Image(voxels, np.diag([-1.0, -1, 5, 1]))
    image.header.set_data_dtype(voxels.dtype)
    image.to_filename(path)
    content = bytearray(path.read_bytes())
    header = nibabel.Nifti1Header(bytes(content[:348]), check=False)
    for name, value in elements.items():
        header[name] = value
    content[:348] = header.binaryblock
    path.write_bytes(content)


@pytest.fixture(scope="module")
def hounsfield() -> Pixels:
    """Two slices of a chest, shape (2, 256, 256)."""
    grey = make_phantom(np.random.default_rng(0), size=256).slice.pixels.astype(float)
    return np.maximum(np.stack([grey, grey[:, ::-1]]) * (1500 / 255) - 1350, -1000)


CASES: list[tuple[str, Callable[[Path, Pixels], object], int, int, str | None]] = [
    (
        "a.nii",
        lambda path, hu: _nifti(path, hu.T.astype(np.int16), pixdim=0, sform_code=0, qform_code=0),
        2,
        0,
        None,
    ),
    ("a.nii", lambda path, hu: _nifti(path, hu.T.astype(np.int16), vox_offset=0), 1, 4, "its vox_offset, 0,"),
    ("a.nii", lambda path, hu: _nifti(path, (hu.T / 1000).astype(np.float32)), 1, 4, "fit no known scale"),
    ("a.nii", lambda path, hu: _nifti(path, (hu.T > -300).astype(np.uint8) * 200), 2, 4, "a label map"),
    ("a.tif", lambda path, hu: tifffile.imwrite(path, (hu + 32768).astype("u2"), imagej=True), 2, 0, None),
    ("a.tif", lambda path, hu: tifffile.imwrite(path, hu[0]), 1, 0, None),
    ("a.tif", lambda path, hu: tifffile.imwrite(path, hu[0] + 0j), 1, 4, "complex numbers"),
]


@pytest.mark.parametrize(("name", "write", "count", "status", "reason"), CASES)
def test_a_picture_or_volume(
    run: Run,
    tmp_path: Path,
    hounsfield: Pixels,
    name: str,
    write: Callable[[Path, Pixels], object],
    count: int,
    status: int,
    reason: str | None,
) -> None:
    write(tmp_path / name, hounsfield)
    done = run(tmp_path / name, "--json")
    assert done.status == status
    assert len(done.rows) == count
    for row in done.rows:
        assert row["file"] == str(tmp_path / name)
        assert (row["reason"] or "").startswith(reason or "") or reason in row["reason"]
    assert len(done.err.splitlines()) == 1, "the summary, and nothing from a library"
