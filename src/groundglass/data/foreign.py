"""The documented set of pictures that are no axial lung CT slices, on which refusal is measured.

Most are generated from a fixed seed, as many of each kind; sample pictures of installed packages and DICOM
files given by the user come on top where they are there. The gate never learns from any of them, see
`groundglass.data.counterexamples`: its own lessons have other seeds, and some kinds it never meets at all.
"""

from __future__ import annotations

import csv
import gzip
import io
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from groundglass.atomic import write_bytes, write_text
from groundglass.errors import DataError, ImageError
from groundglass.imaging import patterns
from groundglass.imaging.abdomen import abdomen_below
from groundglass.imaging.guard import guard
from groundglass.imaging.head import scan_head
from groundglass.imaging.limits import DEFAULT_LIMITS
from groundglass.imaging.phantom import Scanner, make_phantom
from groundglass.imaging.reformat import Volume, develop, scan_volume
from groundglass.imaging.slice import Grey, Hounsfield
from groundglass.imaging.source import FileSource, files_below
from groundglass.imaging.thorax import Patient
from groundglass.imaging.window import LUNG, Window

MANIFEST = "foreign.csv"
COLUMNS = ("path", "kind", "taught", "source")

PER_KIND = 20
"""Generated pictures of each kind."""

_STREAM = 0xF0E1
"""Parts these random numbers from all others, those of the gate's lessons above all."""

_WINDOWS = (LUNG, Window(40, 400), Window(-500, 1400))
_HEAD_WINDOWS = (LUNG, Window(40, 100), Window(40, 400))
_PICTURES = (".png", ".jpg", ".jpeg")
_CHEST = ("CHEST", "LUNG", "THORAX")
_AXIAL = 0.86
_HEADER = ("ImageOrientationPatient", "BodyPartExamined", "NumberOfFrames")


@dataclass(frozen=True)
class ForeignPicture:
    """One picture of the set.

    Attributes:
        path: of the file.
        kind: what it shows.
        taught: whether the gate's lessons hold pictures of that kind, drawn from other seeds.
        source: ``generated``, the package it comes with, or ``DICOM``.
    """

    path: Path
    kind: str
    taught: bool
    source: str


def write_foreign(
    output: Path, seed: int = 0, dicom: Path | None = None, per_kind: int = PER_KIND
) -> list[ForeignPicture]:
    """Write the set and its manifest; the same arguments write the same files where the same packages are.

    Args:
        output: new or empty folder.
        seed: of the generated pictures.
        dicom: folder of DICOM files; those that are not axial, or of another part of the body than the
            chest by their header, are copied.
        per_kind: generated pictures of each kind, at least 1.

    Raises:
        DataError: the folder is not empty, ``per_kind`` is less than 1, or a folder is missing.
    """
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise DataError(f"{output}: is not an empty folder; name a new one")
    if per_kind < 1:
        raise DataError(f"{per_kind} pictures of each kind are too few; at least 1")
    if dicom is not None and not dicom.is_dir():
        raise DataError(f"{dicom}: no such folder")
    pictures = []
    for name, kind, taught, source, content in _everything(seed, dicom, per_kind):
        path = output / kind.replace(" ", "-") / name
        write_bytes(path, content)
        pictures.append(ForeignPicture(path, kind, taught, source))
    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow(COLUMNS)
    for each in pictures:
        place = each.path.relative_to(output).as_posix()
        writer.writerow([place, each.kind, "yes" if each.taught else "no", each.source])
    write_text(output / MANIFEST, table.getvalue())
    return pictures


def read_foreign(folder: Path) -> list[ForeignPicture]:
    """The pictures of a set: as its manifest says, or else every file below the folder, its folder the kind.

    Raises:
        DataError: nothing is there, or the manifest is damaged.
    """
    manifest = folder / MANIFEST
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder")
    if not manifest.is_file():
        files = [Path(source.name) for source in files_below(folder)]
        return [ForeignPicture(path, path.parent.name, False, folder.name) for path in files]
    try:
        rows = list(csv.DictReader(io.StringIO(manifest.read_text(encoding="utf-8"))))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{manifest}: damaged manifest ({error})") from None
    for number, row in enumerate(rows, start=2):
        if any(row.get(column) is None for column in COLUMNS):
            raise DataError(f"{manifest}: damaged manifest (line {number} lacks one of {', '.join(COLUMNS)})")
    return [
        ForeignPicture(folder / row["path"], row["kind"], row["taught"] == "yes", row["source"])
        for row in rows
    ]


_Entry = tuple[str, str, bool, str, bytes]


def _everything(seed: int, dicom: Path | None, per_kind: int) -> Iterator[_Entry]:
    for kind, (draw, taught) in _DRAWN.items():
        for index in range(per_kind):
            yield f"{index:03d}.png", kind, taught, "generated", _png(draw(_rng(seed, kind, index)))
    for index in range(per_kind):
        rng = _rng(seed, "volume", index)
        severity = float(rng.uniform(0, 1)) if rng.random() < 0.5 else 0.0
        volume = scan_volume(rng, severity=severity)
        for kind, (view, taught) in _VIEWS.items():
            yield f"{index:03d}.png", kind, taught, "generated", _png(view(volume, rng))
    yield from _samples()
    if dicom is not None:
        for path in sorted(dicom.rglob("*")):
            if path.is_file() and _is_foreign_dicom(path):
                yield path.name, "DICOM of another plane or part", False, "DICOM", path.read_bytes()


def _rng(seed: int, kind: str, index: int) -> np.random.Generator:
    """By the kind's name, not its place in the table: a new kind leaves the others as they are."""
    return np.random.default_rng([_STREAM, seed, *kind.encode(), index])


def _windowed(
    hounsfield: Hounsfield, rng: np.random.Generator, windows: tuple[Window, ...] = _WINDOWS
) -> Grey:
    return windows[int(rng.integers(len(windows)))].apply(hounsfield)


def _coronal(volume: Volume, rng: np.random.Generator) -> Grey:
    return _windowed(volume.coronal(rng.uniform(0.25, 0.75)), rng)


def _sagittal(volume: Volume, rng: np.random.Generator) -> Grey:
    return _windowed(volume.sagittal(rng.uniform(0.25, 0.75)), rng)


def _frontal_x_ray(volume: Volume, rng: np.random.Generator) -> Grey:
    return develop(volume.radiograph(), rng.uniform(0.4, 1.0))


def _lateral_x_ray(volume: Volume, rng: np.random.Generator) -> Grey:
    return develop(volume.radiograph(lateral=True), rng.uniform(0.4, 1.0))


def _turned(rng: np.random.Generator) -> Grey:
    severity = float(rng.uniform(0, 1)) if rng.random() < 0.5 else 0.0
    return np.ascontiguousarray(np.rot90(make_phantom(rng, severity).slice.pixels, rng.choice([1, 3])))


def _abdomen(rng: np.random.Generator) -> Grey:
    patient = Patient.draw(rng)
    return _windowed(abdomen_below(patient, Scanner.draw(patient, rng), rng.uniform(0.05, 0.9)), rng)


def _head(rng: np.random.Generator) -> Grey:
    return _windowed(scan_head(rng), rng, _HEAD_WINDOWS)


_DRAWN: Mapping[str, tuple[Callable[[np.random.Generator], Grey], bool]] = {
    "blank": (patterns.blank, False),
    "gradient": (patterns.gradient, True),
    "checkerboard": (patterns.checkerboard, False),
    "stripes": (patterns.stripes, True),
    "discs and rings": (patterns.circles, False),
    "noise": (patterns.noise, True),
    "page of text": (patterns.text_page, False),
    "chart": (patterns.chart, True),
    "slice turned by 90 degrees": (_turned, True),
    "abdomen": (_abdomen, True),
    "head": (_head, True),
}
"""How each kind is drawn, and whether the gate's lessons hold that kind."""

_VIEWS: Mapping[str, tuple[Callable[[Volume, np.random.Generator], Grey], bool]] = {
    "frontal X-ray": (_frontal_x_ray, False),
    "lateral X-ray": (_lateral_x_ray, False),
    "coronal reformat": (_coronal, True),
    "sagittal reformat": (_sagittal, True),
}
"""How each view of an invented patient is made, and whether the gate's lessons hold that kind."""


def _samples() -> Iterator[_Entry]:
    """Sample pictures of installed packages: colour ones as they are, and all of them in grey."""
    for package, folder in (
        ("skimage", "data"),
        ("sklearn", "datasets/images"),
        ("matplotlib", "mpl-data/sample_data"),
    ):
        for path in _package_files(package, folder):
            if path.suffix.lower() not in _PICTURES:
                continue
            content = path.read_bytes()
            with Image.open(io.BytesIO(content)) as opened:
                picture = opened.convert("RGB")
            if np.ptp(np.asarray(picture, np.int16), axis=2).max() > 0:
                yield path.name, "colour photograph", False, package, content
            grey = np.array(picture.convert("L"))
            yield f"{path.stem}-grey.png", "sample picture in grey", False, package, _png(grey)
    for path in _package_files("pydicom", "data/test_files"):
        if path.name in _HEADS_BY_CT:
            yield path.name, "real scan of the head or spine", False, "pydicom", path.read_bytes()
    for path in _package_files("matplotlib", "mpl-data/sample_data"):
        if path.name == _HEAD_BY_MR:
            values = np.frombuffer(gzip.decompress(path.read_bytes()), "<u2").reshape(256, 256)
            share = values / max(float(np.quantile(values, 0.995)), 1.0)
            content = _png(np.asarray(np.clip(255 * share, 0, 255), np.uint8))
            yield "s1045.png", "real scan of the head or spine", False, "matplotlib", content


_HEADS_BY_CT = ("693_J2KI.dcm", "CT_small.dcm", "J2K_pixelrep_mismatch.dcm")
_HEAD_BY_MR = "s1045.ima.gz"


def _package_files(package: str, folder: str) -> list[Path]:
    """Files that come with a package; none where it is not installed."""
    found = find_spec(package)
    if found is None or found.origin is None:
        return []
    place = Path(found.origin).parent / folder
    return sorted(path for path in place.glob("*") if path.is_file())


def _is_foreign_dicom(path: Path) -> bool:
    """Whether a DICOM file's header says that it is not axial, or not of the chest."""
    from groundglass.imaging.dicom import describe_frames, open_dataset  # noqa: PLC0415 - pydicom is slow

    try:
        with guard(str(path), "DICOM"):
            dataset = open_dataset(FileSource(path), DEFAULT_LIMITS, _HEADER)
            orientation = describe_frames(dataset, DEFAULT_LIMITS)[0].orientation
    except ImageError:
        return False
    part = str(dataset.get("BodyPartExamined", "") or "").upper()
    if part and not any(word in part for word in _CHEST):
        return True
    if orientation is None:
        return False
    return bool(abs(np.cross(orientation[:3], orientation[3:])[2]) < _AXIAL)


def _png(picture: Grey) -> bytes:
    encoded, content = cv2.imencode(".png", picture)
    if not encoded:
        raise OSError("the PNG encoder refused a picture")
    return content.tobytes()
