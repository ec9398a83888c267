"""Phantoms as data sets: two folders of slices with a manifest to train on, and whole series to predict."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from groundglass.data.manifest import Label, Manifest, Record, write_manifest, write_mask
from groundglass.errors import DataError
from groundglass.imaging.phantom import Phantom, make_phantom, make_series, write_dicom, write_png

# One slice in five validates and one in five tests, in both classes alike.
_PARTS = ("train", "train", "val", "train", "test")
_SIDE = 320  # pixels of the slices to try the page with


def parse_severities(text: str) -> tuple[float, float]:
    """The range from which lesions' severity is drawn, written ``LO:HI`` or as a single number.

    Raises:
        DataError: for anything else, or a range outside 0..1.
    """
    low, _, high = text.partition(":")
    try:
        lowest, highest = float(low), float(high or low)
    except ValueError as error:
        raise DataError(f"severity {text!r} must be LO:HI, such as 0.2:0.6") from error
    if not 0 < lowest <= highest <= 1:
        raise DataError(f"severity {text!r} must lie above 0 and not above 1; half the slices are healthy")
    return lowest, highest


def write_phantoms(
    folder: Path, count: int, severities: tuple[float, float], seed: int = 0, size: int = 512
) -> Manifest:
    """Write ``count`` phantoms as PNG, each of a patient of its own, every other one with lesions of a drawn severity.

    Slices with lesions go to ``COVID/``, healthy ones to ``NonCOVID/``, the masks of lungs and lesions to
    ``masks/``; ``manifest.csv`` names them all and splits them into train, val and test. The same arguments
    write the same files.

    Raises:
        DataError: the folder is not empty.
    """
    _check(folder)
    records = []
    for index in range(count):
        rng = np.random.default_rng([seed, index])
        label = Label.NON_COVID if index % 2 else Label.COVID
        severity = rng.uniform(*severities) if label is Label.COVID else 0.0
        phantom = make_phantom(rng, severity=severity, size=size)
        path = folder / label.value / f"phantom-{seed}-{index:05d}.png"
        write_png(phantom, path)
        part = _PARTS[index // 2 % len(_PARTS)]
        records.append(_record(phantom, path, label, part, folder / "masks" / path.stem))
    manifest = Manifest("phantoms", folder, tuple(records))
    write_manifest(manifest, folder / "manifest.csv")
    return manifest


def write_series(folder: Path, severities: Sequence[float], count: int, seed: int = 0, size: int = 512) -> list[Path]:
    """Write one DICOM series per severity, each of a patient of its own, from the lungs' apex to their base.

    The new ``folder`` gets a folder ``severity-0.25`` and so on for each, which are returned, and masks of lungs
    and lesions in ``masks/``; ``manifest.csv`` names all slices, COVID where a lesion shows. The same arguments write
    the same.

    Raises:
        DataError: a severity or the folder will not do.
    """
    if not severities or any(not 0 <= severity <= 1 for severity in severities):
        raise DataError("severities must be numbers from 0 to 1, such as 0,0.3,0.9")
    written = [folder / f"severity-{severity:.2f}" for severity in severities]
    if len(set(written)) < len(written):
        raise DataError("each severity can be given once, to two places after the point")
    _check(folder)
    records = []
    for number, (severity, series) in enumerate(zip(severities, written, strict=True)):
        for phantom in make_series(np.random.default_rng([seed, number]), count, severity, size):
            path = series / f"{phantom.instance:04d}.dcm"
            write_dicom(phantom, path)
            label = Label.COVID if phantom.lesions.any() else Label.NON_COVID
            records.append(_record(phantom, path, label, None, folder / "masks" / series.name / path.stem))
    write_manifest(Manifest("phantoms", folder, tuple(records)), folder / "manifest.csv")
    return written


def _record(phantom: Phantom, path: Path, label: Label, part: str | None, masks: Path) -> Record:
    """Write a phantom's masks, as ``masks`` with an ending each; returns what the manifest says of it."""
    lungs = write_mask(phantom.lungs, masks.with_name(f"{masks.name}-lungs.png"))
    lesions = write_mask(phantom.lesions, masks.with_name(f"{masks.name}-lesions.png"))
    return Record(path, label, phantom.patient_id, "phantom", part, lungs, lesions)


def _check(folder: Path) -> None:
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise DataError(f"{folder}: is not an empty folder; name a new one")


@cache
def synthetic_zip(parent: Path) -> bytes:
    """A series with lesions, from the lungs' apex to their base, as a zip of DICOM files that pass through a folder."""
    packed = io.BytesIO()
    with (
        TemporaryDirectory(dir=parent) as folder,
        zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive,
    ):
        for phantom in make_series(np.random.default_rng(3), severity=0.2, size=_SIDE):
            path = Path(folder, f"{phantom.instance:03}.dcm")
            write_dicom(phantom, path)
            archive.write(path, f"Synthetic chest CT/{path.name}")
    return packed.getvalue()
