"""Manifest: what a data set holds, one record per slice, and its CSV form."""

from __future__ import annotations

import csv
import difflib
import io
import os
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from pathlib import Path
from typing import TextIO

import cv2
import numpy as np
from numpy.typing import NDArray

from groundglass.errors import DataError, ImageError
from groundglass.files import name_some, write_bytes, write_text
from groundglass.imaging.raster import decode_raster
from groundglass.imaging.slice import CTSlice, Grey
from groundglass.imaging.source import (
    DEFAULT_LIMITS,
    HEAD_BYTES,
    RASTER,
    guard,
    identify,
    open_archive,
    split_member,
)
from groundglass.imaging.source import read_bytes as read_file

COLUMNS = ("path", "label", "patient_id", "source", "split", "lung_mask", "lesion_mask", "grade")
"""Columns of a manifest CSV; only ``path`` is required. Other columns are ignored."""

PARTS = ("train", "val", "test")

UNLABELLED = "unlabelled"

_UNKNOWN_PATIENT = "unknown:"


class Label(str, Enum):
    """What a slice shows. COVID is the positive class everywhere."""

    COVID = "COVID"
    NON_COVID = "NonCOVID"

    @classmethod
    def parse(cls, text: str) -> Label:
        """The label spelt by ``text``; case and punctuation do not matter.

        Numbers are rejected: published scripts disagree on which class counts as 1.

        Raises:
            DataError: for any other spelling.
        """
        label = cls.spelt(text)
        if label is None:
            raise DataError(f"label {text!r} is neither COVID nor NonCOVID (case and hyphens do not matter)")
        return label

    @classmethod
    def spelt(cls, text: str) -> Label | None:
        """Like `parse`, but None for any other spelling."""
        letters = "".join(character for character in text.lower() if character.isalnum())
        return _LABEL_SPELLINGS.get(letters.removeprefix("ct").removesuffix("19"))


_LABEL_SPELLINGS = {"covid": Label.COVID, "noncovid": Label.NON_COVID}
_SPLIT_SPELLINGS = {"train": "train", "val": "val", "validation": "val", "test": "test"}


@dataclass(frozen=True)
class Record:
    """One slice of a data set.

    Attributes:
        path: the image file; for a zip's member ``archive.zip!member``.
        label: what it shows, or None where it is not known.
        patient_id: whose slice it is; where unknown, an id of the file's own (`unknown_patient`).
        source: where it was published or scanned, as far as is known.
        split: the data set's own ``train``, ``val`` or ``test``, or None.
        lung_mask: picture of the slice's shape, not 0 where it shows a lung, disease included; None where unknown.
        lesion_mask: picture of the slice's shape, not 0 where it shows a lesion; None where unknown.
        grade: of the disease, in the source's own words, such as ``CT-2``; empty where unknown.
        collection: of publications that count as one source, such as COVID-CT; empty where there is none.
    """

    path: Path
    label: Label | None
    patient_id: str
    source: str
    split: str | None
    lung_mask: Path | None = None
    lesion_mask: Path | None = None
    grade: str = ""
    collection: str = ""

    @property
    def hospital(self) -> str:
        """The source that a training with several sources counts this slice to."""
        return self.collection or self.source

    @property
    def patient_known(self) -> bool:
        """Whether the data set says whose slice this is."""
        return not self.patient_id.startswith(_UNKNOWN_PATIENT)

    @property
    def label_name(self) -> str:
        """The label, or ``unlabelled``."""
        return self.label.value if self.label else UNLABELLED


@dataclass(frozen=True)
class Manifest:
    """A data set: its name, the folder or file it was read from, and its records in a stable order."""

    name: str
    root: Path
    records: tuple[Record, ...]

    def __len__(self) -> int:
        return len(self.records)

    def __iter__(self) -> Iterator[Record]:
        return iter(self.records)

    def without(self, names: Collection[str]) -> Manifest:
        """The data set without slices of the named sources, or of a grade of one, as in ``moscow:CT-1``."""
        out = frozenset(names)
        keep = (
            each for each in self.records if out.isdisjoint((each.hospital, f"{each.hospital}:{each.grade}"))
        )
        return replace(self, records=tuple(keep))

    @property
    def labelled(self) -> bool:
        """Whether every record has a label."""
        return all(record.label is not None for record in self.records)


def unknown_patient(relative: str) -> str:
    """Patient id for a file whose patient is not known: no two files share it."""
    return f"{_UNKNOWN_PATIENT}{relative}"


def join_member(archive: Path, member: str) -> Path:
    """The path ``archive.zip!member``."""
    return Path(f"{archive}!{member}")


def read_bytes(record: Record) -> bytes:
    """The content of a record's file, within the limits that hold for every file and archive.

    Raises:
        ImageError: it cannot be read, or its archive is damaged, encrypted or a decompression bomb.
    """
    return read_file(record.path)


def read_record(record: Record) -> CTSlice:
    """A record's slice; pictures are decoded straight from their bytes, in a few milliseconds.

    Raises:
        ImageError: if the file is damaged or does not hold exactly one slice.
    """
    content = read_bytes(record)
    name = str(record.path)
    if identify(content[:HEAD_BYTES]) not in RASTER:
        if not record.path.is_file():
            raise ImageError(name, "not a picture; unpack other files from the archive to read them")
        from groundglass.imaging.read import read_slice  # noqa: PLC0415 - readers are slow to import

        return read_slice(record.path)
    with guard(name, "picture"):
        slices = list(decode_raster(content, name, DEFAULT_LIMITS))
    if len(slices) != 1:
        raise ImageError(name, f"holds {len(slices)} pages; a record is one slice")
    return slices[0]


def read_pixels(record: Record) -> Grey:
    """A record's grey pixels, uint8, shape (H, W). Raises as `read_record` does."""
    return read_record(record).pixels


def read_mask(path: Path, shape: tuple[int, ...]) -> NDArray[np.bool_]:
    """A mask of a slice of ``shape`` (H, W): True where the picture is not black.

    Raises:
        ImageError: it cannot be read, or has another shape.
    """
    content = read_file(path)
    with guard(str(path), "picture"):
        pages = list(decode_raster(content, str(path), DEFAULT_LIMITS))
    mask = pages[0].pixels > 0
    if len(pages) != 1 or mask.shape != tuple(shape):
        size, wanted = (" x ".join(map(str, each[::-1])) for each in (mask.shape, shape))
        raise ImageError(
            str(path), f"a mask of {size} pixels for a slice of {wanted}; both must be the same size"
        )
    return np.asarray(mask)


def write_mask(mask: NDArray[np.bool_], path: Path) -> None:
    """Write a mask, shape (H, W), as PNG of one bit per pixel, atomically."""
    _, png = cv2.imencode(".png", mask.astype(np.uint8), [cv2.IMWRITE_PNG_BILEVEL, 1])
    write_bytes(path, png.tobytes())


def read_manifest(path: Path) -> Manifest:
    """Read a manifest CSV with a header line naming some of `COLUMNS`.

    Relative paths, of slices and masks, are relative to the CSV's folder. An empty ``label``, ``split`` or mask
    means none, an empty ``patient_id`` an unknown patient, an empty ``source`` the CSV's own name.

    Raises:
        DataError: the file cannot be read, holds an unknown spelling (with its line), names a file twice or
            one that does not exist.
    """
    lines: dict[str, int] = {}
    records: list[Record] = []
    for line, record in _rows(path):
        key = os.path.normpath(record.path)
        if key in lines:
            raise DataError(f"{path}: line {line}: {record.path} is already on line {lines[key]}")
        lines[key] = line
        records.append(record)
    _check_presence(path, records)
    return Manifest(name=path.stem, root=path.parent, records=tuple(records))


def iterate_paths(path: Path) -> Iterator[Path]:
    """The files that a manifest CSV names, one by one, for manifests of any length.

    Whether they exist or are named twice is not checked.

    Raises:
        DataError: the file cannot be read, does not say which column holds the paths, or names no file.
    """
    return (record.path for _, record in _rows(path))


def write_manifest(manifest: Manifest, path: Path) -> None:
    """Write a manifest as CSV, atomically; files below the CSV's folder get relative paths."""
    folder = path.absolute().parent

    def place(file: Path | None) -> str:
        if file is None:
            return ""
        whole = file.absolute()
        return (whole.relative_to(folder) if whole.is_relative_to(folder) else whole).as_posix()

    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for record in manifest.records:
        label = record.label.value if record.label else ""
        patient = record.patient_id if record.patient_known else ""
        masks = place(record.lung_mask), place(record.lesion_mask)
        row = place(record.path), label, patient, record.source, record.split or "", *masks, record.grade
        writer.writerow(row)
    write_text(path, text.getvalue())


def _rows(path: Path) -> Iterator[tuple[int, Record]]:
    """Line number and record of each row, streamed."""
    line = 0
    try:
        with path.open(encoding="utf-8-sig", newline="") as stream:
            for line, record in _parse(path, stream):
                yield line, record
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: is not UTF-8 text; save the manifest as CSV in UTF-8") from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from error
    if not line:
        raise DataError(f"{path}: has no rows, only a header line")


def _parse(path: Path, stream: TextIO) -> Iterator[tuple[int, Record]]:
    reader = csv.DictReader(stream, restkey="")
    _check_header(path, reader.fieldnames or ())
    try:
        for row in reader:
            yield reader.line_num, _parse_row(path, row)
    except (DataError, csv.Error) as error:
        raise DataError(f"{path}: line {reader.line_num}: {error}") from error


def _check_header(path: Path, names: Sequence[str]) -> None:
    """A misspelt column would silently be lost, and with it, say, the patients: so it is an error."""
    header = [name.strip() for name in names]
    if "path" not in header:
        columns = ", ".join(COLUMNS)
        raise DataError(f"{path}: the first line must name the columns, `path` among them ({columns})")
    if list(names) != header or len(set(header)) != len(header):
        raise DataError(f"{path}: column names must be unique and without spaces around: {', '.join(header)}")
    for name in header:
        likeness = difflib.get_close_matches(name.lower(), COLUMNS, n=1, cutoff=0.75)
        if name not in COLUMNS and likeness and likeness[0] not in header:
            raise DataError(f"{path}: column {name!r} is not known; did you mean {likeness[0]!r}?")


def _parse_row(path: Path, row: dict[str, str]) -> Record:
    if "" in row:
        raise DataError("has more fields than columns; put quotes around a path with commas")
    fields = {name: (row.get(name) or "").strip() for name in COLUMNS}
    if not fields["path"]:
        raise DataError("`path` is empty")
    split = _SPLIT_SPELLINGS.get(fields["split"].lower()) if fields["split"] else None
    if fields["split"] and split is None:
        raise DataError(f"split {fields['split']!r} is not one of {', '.join(PARTS)}")
    return Record(
        path=path.parent / fields["path"],
        label=Label.parse(fields["label"]) if fields["label"] else None,
        patient_id=fields["patient_id"] or unknown_patient(fields["path"]),
        source=fields["source"] or path.stem,
        split=split,
        lung_mask=path.parent / fields["lung_mask"] if fields["lung_mask"] else None,
        lesion_mask=path.parent / fields["lesion_mask"] if fields["lesion_mask"] else None,
        grade=fields["grade"],
    )


def _check_presence(path: Path, records: Iterable[Record]) -> None:
    members: dict[Path, frozenset[str]] = {}
    missing: list[str] = []
    for record in records:
        masks = (mask for mask in (record.lung_mask, record.lesion_mask) if mask is not None)
        missing += [str(mask) for mask in masks if not _is_file(mask)]
        present = _is_file(record.path)
        member = None if present else split_member(record.path)
        if member is not None and _is_file(member[0]):
            if member[0] not in members:
                with open_archive(member[0], DEFAULT_LIMITS, lambda _: None) as sources:
                    members[member[0]] = frozenset(source.member for source in sources)
            present = member[1] in members[member[0]]
        if not present:
            missing.append(str(record.path))
    if missing:
        raise DataError(f"{path}: {len(missing)} of its files do not exist: {name_some(missing)}")


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # a name longer than the file system allows, a folder that may not be entered
        return False
