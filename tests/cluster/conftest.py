"""What tests of prediction by many processes share: a bundle, and one Ray for all of them."""

from __future__ import annotations

import importlib.util
import os
import zipfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import cv2
import numpy as np
import pytest

from groundglass.cluster.ray import ray_session
from groundglass.imaging.phantom import make_phantom, write_dicom
from groundglass.inference.bundle import Bundle

DEADLY = """
import os, signal
import groundglass.imaging.raster as raster

decode = raster.decode_raster

def kill(content, name, limits):
    if name.endswith("deadly.png"):
        os.kill(os.getpid(), signal.SIGKILL)
    if name.endswith("faulty.png"):
        raise_from_nowhere()
    return decode(content, name, limits)

raster.decode_raster = kill
"""


@pytest.fixture(scope="session")
def bundle(tiny_bundle: Path) -> Bundle:
    return Bundle.open(tiny_bundle, threads=1)


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """300 slices in ``many``, ten, a series, a zip, and what can go wrong: broken, coloured, empty, no image, no UTF-8."""
    folder = tmp_path_factory.mktemp("slices")
    for name in ("many", "series"):
        (folder / name).mkdir()
    for number in range(10):
        phantom = make_phantom(np.random.default_rng(number), 0.4, 0.5, size=128)
        cv2.imwrite(str(folder / f"{number}.png"), phantom.slice.pixels)
        if number < 3:
            write_dicom(phantom, folder / "series" / f"{number}.dcm")
    for number in range(300):
        os.link(folder / f"{number % 10}.png", folder / "many" / f"{number}.png")
    (folder / "3b.png").write_bytes((folder / "3.png").read_bytes()[:500])
    (folder / "empty.png").touch()
    (folder / "notes.txt").write_text("no image")
    os.link(folder / "3.png", folder / "ä\udcff.png")
    cv2.imwrite(str(folder / "5b.png"), np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8))
    with zipfile.ZipFile(folder / "study.zip", "w") as archive:
        for name in ("0.png", "3b.png"):
            archive.write(folder / name, f"inside/{name}")
    return folder


@pytest.fixture(scope="session")
def two_workers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A Ray in whose workers some files kill their reader."""
    # Not imported here: Ray must be told to keep to this machine before it is.
    if importlib.util.find_spec("ray") is None:
        pytest.skip("Ray is not installed")
    code = tmp_path_factory.mktemp("code")
    (code / "sitecustomize.py").write_text(DEADLY)
    with ExitStack() as running:
        # Ray's processes keep what they start with; the tests that come after must not.
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("PYTHONPATH", str(code), prepend=os.pathsep)
            running.enter_context(ray_session(None, 2))
        yield
