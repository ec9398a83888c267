"""``groundglass predict`` in this process or one of its own, and slices to ask it about."""

import json
import os
import sys
import zipfile
from functools import cache
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from tests.conftest import Command, Done, change_dicom, save_image

from groundglass.imaging.phantom import make_phantom, write_dicom

NAME, ID, BIRTH = "Zwiebelfisch^Xaver", "MRN-4711-XZ", "19310719"


@pytest.fixture
def run(tiny_bundle: Path, run_command: Command) -> Command:
    """Runs the command in this process, with the tiny bundle."""

    def call(*arguments: object, bundle: Path = tiny_bundle) -> Done:
        return run_command("predict", *arguments, "--bundle", bundle, "--threads", "1")

    return call


def command(bundle: Path, *arguments: object) -> list[str]:
    start = (sys.executable, "-m", "groundglass.cli.main", "predict", "--bundle", bundle, "--threads", "1")
    return [str(word) for word in (*start, *arguments)]


@cache
def pixels(seed: int) -> np.ndarray:
    return make_phantom(np.random.default_rng(seed), 0.6 * (seed % 2), 0.5, size=96).slice.pixels


@cache
def png(seed: int) -> bytes:
    return bytes(cv2.imencode(".png", pixels(seed))[1])


def write_pictures(folder: Path, count: int) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        (folder / f"{number}.png").write_bytes(png(number % 8))
    return folder


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Six slices."""
    return write_pictures(tmp_path / "pictures", 6)


@pytest.fixture
def series(tmp_path: Path) -> Path:
    """A DICOM series of five slices of somebody with a telling name."""
    for number in range(5):
        path = tmp_path / "series" / f"IM{number}"
        write_dicom(make_phantom(np.random.default_rng(number), 0.1 * number, 0.5, size=96), path)
        scan = {"StudyInstanceUID": "1.2.3", "SeriesInstanceUID": "1.2.3.4", "PixelSpacing": [3.7, 3.7]}
        who = {"PatientName": NAME, "PatientID": ID, "PatientBirthDate": BIRTH}
        change_dicom(path, ImagePositionPatient=[0, 0, -10.0 * number], **scan, **who)
    return tmp_path / "series"


@pytest.fixture
def bad(tmp_path: Path) -> Path:
    """One slice among what goes wrong."""
    folder = write_pictures(tmp_path / "bad", 1)
    (folder / "1-truncated.png").write_bytes(png(0)[: len(png(0)) // 2])
    (folder / "2-empty.png").touch()
    (folder / "3-text.jpg").write_text("no picture")
    (folder / "4-folder.png").mkdir()
    with zipfile.ZipFile(folder / "5-bomb.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("big.png", b"\0" * 40_000_000)
    os.mkfifo(folder / "6-pipe.png")
    (folder / "7-gone.png").symlink_to("nowhere.png")
    (folder / "8-damaged.dcm").write_bytes(b"\0" * 128 + b"DICM" + os.urandom(300))
    save_image(folder / "9-photograph.png", np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8))
    return folder


def predictions_of(path: Path) -> list[dict[str, Any]]:
    """Those in an output, a folder or a file."""
    file = path if path.suffix else path / "predictions.jsonl"
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
