"""A training data set of phantoms: two folders of invented slices and their manifest."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from groundglass.data.manifest import Label, Manifest, Record, write_manifest
from groundglass.errors import DataError
from groundglass.imaging.phantom import Phantom, make_phantom
from groundglass.imaging.phantom_files import write_dicom, write_png

# One slice in five validates and one in five tests, in both classes alike.
_PARTS = ("train", "train", "val", "train", "test")
_WRITERS = {"png": (write_png, ".png"), "dicom": (write_dicom, ".dcm")}
_MOST = 100_000


@dataclass(frozen=True)
class Severities:
    """The range from which lesions' severity is drawn, 0 none to 1 most of the lungs."""

    lowest: float
    highest: float

    @classmethod
    def parse(cls, text: str) -> Severities:
        """Read ``LO:HI`` or a single number.

        Raises:
            DataError: for anything else, or a range outside 0..1.
        """
        low, _, high = text.partition(":")
        try:
            lowest, highest = float(low), float(high or low)
        except ValueError as error:
            raise DataError(f"severity {text!r} must be LO:HI, such as 0.2:0.6") from error
        if not 0 < lowest <= highest <= 1:
            raise DataError(
                f"severity {text!r} must be a range above 0 and at most 1; half the slices stay healthy"
            )
        return cls(lowest, highest)


def write_phantoms(
    folder: Path, count: int, severities: Severities, seed: int = 0, file_format: str = "png", size: int = 512
) -> Manifest:
    """Write ``count`` phantoms, each of a patient of its own, every other one with lesions.

    Slices with lesions go to ``COVID/``, healthy ones to ``NonCOVID/``; ``manifest.csv`` splits them
    into train, val and test. The same arguments write the same files.

    Raises:
        DataError: if the count, the format or the folder will not do.
    """
    if not 1 <= count <= _MOST:
        raise DataError(f"count {count} must lie in 1..{_MOST}")
    if file_format not in _WRITERS:
        raise DataError(f"format {file_format!r} must be one of {', '.join(_WRITERS)}")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise DataError(f"{folder}: is not an empty folder; name a new one")
    writer, suffix = _WRITERS[file_format]
    records = []
    for index in range(count):
        phantom = _draw(index, severities, seed, size)
        label = Label.COVID if phantom.severity > 0 else Label.NON_COVID
        path = folder / label.value / f"phantom-{seed}-{index:05d}{suffix}"
        writer(phantom, path)
        part = _PARTS[index // 2 % len(_PARTS)]
        records.append(Record(path, label, phantom.patient_id, "phantom", part))
    manifest = Manifest("phantoms", folder, tuple(records))
    write_manifest(manifest, folder / "manifest.csv")
    return manifest


def _draw(index: int, severities: Severities, seed: int, size: int) -> Phantom:
    rng = np.random.default_rng([seed, index])
    severity = rng.uniform(severities.lowest, severities.highest) if index % 2 == 0 else 0.0
    return make_phantom(rng, severity=severity, size=size)
