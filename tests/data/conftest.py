"""COVID-CT as its authors ship it: images packed into zips, with what macOS and tar leave behind."""

from __future__ import annotations

import os
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image


def save_image(path: Path, pixels: int | NDArray[np.uint8] = 90) -> Path:
    """Write a picture; of one grey value it is 6 x 8 pixels large."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((8, 6), pixels, np.uint8) if isinstance(pixels, int) else pixels).save(path)
    return path


def pack(folder: Path, archive: Path) -> None:
    """Zip a class folder with junk entries that carry the images' names, before and after the images."""
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_STORED) as opened:
        opened.writestr(f"{folder.name}/", b"")
        images = sorted(folder.iterdir())
        for image in images[:20]:
            opened.writestr(f"{folder.name}/PaxHeader/{image.name}", b"17 gid=1234567890\n")
        for image in images:
            opened.write(image, f"{folder.name}/{image.name}")
        for image in images[:20]:
            opened.writestr(f"__MACOSX/{folder.name}/._{image.name}", b"\x00\x05\x16\x07")
        opened.writestr(f"{folder.name}/.DS_Store", b"\x00\x00\x00\x01Bud1")


@pytest.fixture(scope="session")
def packed_images(covid_ct: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with ``CT_COVID.zip`` and ``CT_NonCOVID.zip``; not to be written to."""
    folder = tmp_path_factory.mktemp("packed")
    for name in ("CT_COVID", "CT_NonCOVID"):
        pack(covid_ct / "Images-processed" / name, folder / f"{name}.zip")
    return folder


@pytest.fixture(scope="session")
def clone(covid_ct: Path, packed_images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clone of upstream's repository: zips and split files; not to be written to."""
    folder = tmp_path_factory.mktemp("COVID-CT-master")
    (folder / "Images-processed").mkdir()
    for archive in packed_images.iterdir():
        (folder / "Images-processed" / archive.name).hardlink_to(archive)
    shutil.copytree(covid_ct / "Data-split", folder / "Data-split", copy_function=shutil.copyfile)
    return folder


@pytest.fixture
def extracted(covid_ct: Path, tmp_path: Path) -> Path:
    """An extracted copy whose images may be deleted, replaced and added to (they are links)."""
    shutil.copytree(
        covid_ct / "Images-processed", tmp_path / "COVID-CT" / "Images-processed", copy_function=os.symlink
    )
    return tmp_path / "COVID-CT"
