"""Manifest: what a data set holds, one record per slice, and its CSV form."""

from __future__ import annotations

import csv
import difflib
import hashlib
import io
import logging
import os
import re
import zipfile
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from functools import cache, lru_cache
from itertools import chain
from pathlib import Path
from types import MappingProxyType

import cv2
import numpy as np
from numpy.typing import NDArray

from groundglass.errors import DataError, ImageError
from groundglass.files import name_some, write_bytes, write_text
from groundglass.imaging.read import Scaled, images_within, read_slice, read_slices
from groundglass.imaging.read import read_bytes as read_file
from groundglass.imaging.slice import CTSlice, Grey
from groundglass.imaging.source import RASTER, open_archive, split_member
from groundglass.imaging.window import Scale

PARTS = ("train", "val", "test")
PICTURES = frozenset({".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp"})

# Columns of a manifest; only `path` is required. Other columns are ignored.
_COLUMNS = (
    "path", "label", "patient_id", "source", "split", "lung_mask", "lesion_mask",
    "grade", "slice", "unit", "collection",
)  # fmt: skip
_DELIMITERS = ",;\t"
_SPLITS = {"train": "train", **dict.fromkeys(("val", "valid", "validation", "dev"), "val"), "test": "test"}
_UNIT = re.compile(r"HU(?:\+(?P<offset>\d+))?|grey/(?P<white>[1-9]\d*)", re.IGNORECASE)
_UNKNOWN_PATIENT = "unknown:"
_BEYOND = "\n"  # the column of what a row has too much, as no header can call one
_LOG = logging.getLogger(__name__)


class Label(str, Enum):
    """What a slice shows. COVID is the positive class everywhere."""

    COVID = "COVID"
    NON_COVID = "NonCOVID"

    @classmethod
    def spelt(cls, text: str, names: LabelNames = MappingProxyType({})) -> Label | None:
        """The label spelt by ``text``, or by a name of the user's; case and punctuation do not matter.

        Numbers spell none: published scripts disagree on which class counts as 1.
        """
        letters = re.sub(r"(?![-\u2212\u2013]\W*$)([^\w?]|_)", "", text.lower()).removeprefix("ct").removesuffix("19")
        spellings = {"covid": cls.COVID, "noncovid": cls.NON_COVID}
        return names.get(text.strip().casefold()) or spellings.get(letters)

    @classmethod
    def parse(cls, text: str, names: LabelNames = MappingProxyType({})) -> Label:
        """Like `spelt`, but a `DataError` where ``text`` spells none."""
        if (label := cls.spelt(text, names)) is None:
            raise DataError(
                f"label {text!r} is neither COVID nor NonCOVID (case and hyphens do not matter); say which it is: "
                f"--map-label {text}=COVID or {text}=NonCOVID"
            )
        return label


LabelNames = Mapping[str, Label]
"""Labels by names of the user's own, case-folded."""


def label_names(given: Iterable[str]) -> LabelNames:
    """What labels of other names mean, from ``positive=COVID,CAP=NonCOVID``.

    Raises:
        DataError: it is not said in this way, or a label would become another one.
    """
    named: dict[str, Label] = {}
    # A comma parts two pairs where a label stands before it: names may hold commas and equals signs.
    for pair in (each.lstrip(",") for text in given for each in re.findall(r".+?=[^,=]*(?=,|$)|.+", text) or [text]):
        spelling, equals, label = pair.rpartition("=")
        if not (equals and spelling.strip()):
            raise DataError(f"{pair!r} maps no label; write it as positive=COVID,CAP=NonCOVID")
        if Label.spelt(spelling) not in {None, Label.parse(label)}:
            raise DataError(f"{pair!r} makes a label of its opposite")
        named[spelling.strip().casefold()] = Label.parse(label)
    return named


@dataclass(frozen=True)
class Record:
    """One slice of a data set; None or empty is what is not known, or not there."""

    path: Path  # the image file; of a zip's member `archive.zip!member`, of a slice of a volume `volume.nii!57`
    label: Label | None  # what it shows
    patient_id: str  # whose slice it is; where unknown, an id of the file's own (`unknown_patient`)
    source: str  # where it was published or scanned, as far as is known
    split: str | None  # the data set's own `train`, `val` or `test`
    lung_mask: Path | None = None  # a picture of the slice's shape, not 0 where it shows that
    lesion_mask: Path | None = None  # likewise
    grade: str = ""  # of the disease, in the source's own words, such as `CT-2`
    unit: str = ""  # of a picture's numbers, `HU+1024` or `grey/4095`; empty where it is guessed
    collection: str = ""  # of sources, such as publications, that count as one hospital

    @property
    def hospital(self) -> str:
        """The source that a training with several sources counts this slice to."""
        return self.collection or self.source

    @property
    def patient_known(self) -> bool:
        """Whether the data set says whose slice this is."""
        return not self.patient_id.startswith(_UNKNOWN_PATIENT)

    @property
    def suffix(self) -> str:
        """Of the file's name, in lower case."""
        return Path(re.sub(r"!\d+$", "", self.path.name)).suffix.lower()

    @property
    def label_name(self) -> str:
        """The label, or ``unlabelled``."""
        return self.label.value if self.label else "unlabelled"


@dataclass(frozen=True)
class Manifest:
    """A data set: what it is called, the folder that its files lie in, as far as there is one, and its slices.

    ``given``: manifests and folders it was read from; empty: ``root``.
    """

    name: str
    root: Path
    records: tuple[Record, ...]
    given: tuple[Path, ...] = ()

    def __str__(self) -> str:
        """What a message calls it."""
        return ", ".join(map(str, self.given or (self.root,)))

    def __len__(self) -> int:
        return len(self.records)

    def __iter__(self) -> Iterator[Record]:
        return iter(self.records)

    def without(self, names: Iterable[str]) -> Manifest:
        """The data set without slices of the named sources, or of a grade of one, as in ``moscow:CT-1``."""
        out = frozenset(names)
        kept = (each for each in self if out.isdisjoint((each.hospital, f"{each.hospital}:{each.grade}")))
        return replace(self, records=tuple(kept))


@cache
def say(message: str) -> None:
    """Warn the user of what was taken for granted."""
    _LOG.warning(message)


def unknown_patient(relative: str) -> str:
    """Patient id for a file whose patient is not known: no two files share it."""
    return f"{_UNKNOWN_PATIENT}{relative}"


def file_hash(path: Path, unit: str = "") -> str:
    """SHA-256 of the content of a slice's or mask's file, and of the unit where there is one; of a plane's grey values.

    Raises:
        ImageError: it cannot be read, or its archive is damaged, encrypted or a decompression bomb.
    """
    file, plane = _plane(path)
    whole = plane is None and file.suffix.lower() != ".mhd"  # a header, whose voxels lie beside it
    content = read_file(file) if whole else _read(path, unit, is_mask=True).pixels.tobytes()
    sha256 = hashlib.sha256(content).hexdigest()
    return hashlib.sha256(f"{sha256} {unit}".encode()).hexdigest() if unit else sha256


def content_hash(record: Record) -> str:
    """`file_hash` of a slice: equal for the same slice, wherever it lies."""
    return file_hash(record.path, record.unit)


def read_record(record: Record) -> CTSlice:
    """A record's slice.

    Raises:
        ImageError: if the file is damaged, does not hold exactly one slice or no such plane, or is of another unit.
    """
    return _read(record.path, record.unit)


def read_pixels(record: Record) -> Grey:
    """A record's grey pixels, uint8, shape (H, W). Raises as `read_record` does."""
    return read_record(record).pixels


def read_mask(path: Path, ct_slice: CTSlice) -> NDArray[np.bool_]:
    """A mask of a slice, shape (H, W): True where it is not black.

    Raises:
        ImageError: it cannot be read, has another shape, or lies elsewhere in the patient.
    """
    mask = _read(path, is_mask=True)
    if mask.pixels.shape != ct_slice.pixels.shape:
        size, wanted = (" x ".join(map(str, each.pixels.shape[::-1])) for each in (mask, ct_slice))
        raise ImageError(path, f"a mask of {size} pixels for a slice of {wanted}; both must be the same size")
    if mask.lies_apart_from(ct_slice):
        raise ImageError(path, f"lies elsewhere than {ct_slice.origin.file}; give the mask the geometry of its volume")
    return np.asarray(mask.pixels > 0)


def write_mask(mask: NDArray[np.bool_] | None, path: Path) -> Path | None:
    """Write a mask, shape (H, W), where there is one, as PNG of one bit per pixel, atomically; returns where it is."""
    if mask is None:
        return None
    _, png = cv2.imencode(".png", mask.astype(np.uint8), [cv2.IMWRITE_PNG_BILEVEL, 1])
    write_bytes(path, png.tobytes())
    return path


def _read(path: Path, unit: str = "", *, is_mask: bool = False) -> CTSlice:
    file, plane = _plane(path)
    named = _scaled(file, unit)
    if plane is None:
        found = read_slice(named)
    else:
        archive, _ = split_member(file) or (file, "")
        planes = _planes(named, os.stat(archive).st_mtime_ns if archive.exists() else 0)
        if plane >= len(planes):
            raise ImageError(path, "has no such slice; the first one is 0")
        found = planes[plane]
    mode = found.origin.mode
    is_deep = found.origin.file_format in RASTER and (mode in {"I", "F"} or mode.startswith("I;16"))
    if unit and not is_deep:
        raise ImageError(path, f"is no picture of more than 8 bits, so its unit cannot be {unit!r}; leave `unit` empty")
    if is_deep and not unit and not is_mask:
        guessed = "grey values" if found.hounsfield is None else "Hounsfield units"
        say(
            f"{path.parent}: numbers of more than 8 bits are taken for {guessed}, which is a guess; the column `unit` "
            "of a manifest says what they are, such as HU, HU+1024 or grey/4095"
        )
    return found


@lru_cache(maxsize=3)
def _planes(volume: Path | Scaled, written: int) -> tuple[CTSlice, ...]:
    """The slices of a volume, kept while it and its masks are asked for them one by one: 8 bits of each pixel."""
    planes = read_slices(volume)
    return tuple(each if each.origin.file_format in RASTER else replace(each, hounsfield=None) for each in planes)


def _scaled(file: Path, unit: str) -> Path | Scaled:
    if not (match := _UNIT.fullmatch(unit)):
        return file
    white, offset = match["white"], match["offset"] or 0
    return Scaled(file, Scale(white=float(white)) if white else Scale(offset=float(offset)))


def _numbered(path: Path) -> tuple[Path, int | None]:
    """What stands before and after the mark in ``volume.nii.gz!57``; no number in any other path, and in a file's."""
    name, _, number = str(path).rpartition("!")
    numbered = name and number.isdecimal() and len(number) < 10 and not os.path.isfile(path)
    return (Path(name), int(number)) if numbered else (path, None)


def _plane(path: Path) -> tuple[Path, int | None]:
    """Volume and plane of a path that is numbered and no member of an archive."""
    volume, number = _numbered(path)
    if number is None:
        return path, None
    known = not zipfile.is_zipfile(volume) if os.path.isfile(volume) else split_member(volume) is not None
    return (volume, number) if known else (path, None)


def read_manifest(path: Path, names: LabelNames = MappingProxyType({})) -> Manifest:
    """Read a manifest CSV with a header line; ``names`` says what labels of other names mean.

    Paths are relative to its folder. A folder or zip stands for all slices in it, of one patient, in the order of
    :func:`groundglass.imaging.read.images_within`; ``slice``, from 0, names one of them, of a volume, or of a TIFF.

    Raises:
        DataError: it cannot be read, holds an unknown spelling (with its line), or names a file twice or one that
            does not exist.
    """
    lines: dict[str, int] = {}
    records: list[Record] = []
    for line, record in _rows(path, names, _expanded):
        key = os.path.abspath(record.path)
        if key in lines:
            raise DataError(f"{path}: line {line}: {record.path} is already on line {lines[key]}")
        lines[key] = line
        records.append(record)
    _check_presence(path, records)
    return Manifest(name=path.stem, root=path.parent, records=tuple(records), given=(path,))


def iterate_paths(path: Path) -> Iterator[Path | Scaled]:
    """The files that a manifest of any length names, one by one, unchecked; volumes instead of their slices.

    Where it names the unit of a picture's numbers that goes with the path.

    Raises:
        DataError: the file cannot be read, does not say which column holds the paths, or names no file.
    """
    rows = _rows(path, None, lambda row: [row] if _numbered(row.path)[1] is None else _expanded(row))
    taken, last = set[Path](), None  # volumes, whose slices may lie apart
    for _, each in rows:
        file, plane = _plane(each.path)
        if file != last and file not in taken:
            yield _scaled(file, each.unit)
        taken.update([file] if plane is not None else [])
        last = file


def write_manifest(manifest: Manifest, path: Path) -> None:
    """Write a manifest as CSV, atomically; files below the CSV's folder get relative paths."""
    folder = path.absolute().parent

    def place(file: Path | None) -> str | None:
        if file is None:
            return None
        whole = file.absolute()
        return (whole.relative_to(folder) if whole.is_relative_to(folder) else whole).as_posix()

    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, _COLUMNS, lineterminator="\n")
    writer.writeheader()
    for record in manifest:
        places = {name: place(getattr(record, name)) for name in ("path", "lung_mask", "lesion_mask")}
        patient = record.patient_id if record.patient_known else None
        writer.writerow({**vars(record), **places, "label": record.label and record.label.value, "patient_id": patient})
    write_text(path, text.getvalue())


def _rows(
    path: Path, names: LabelNames | None, expand: Callable[[Record], Iterable[Record]] = lambda record: [record]
) -> Iterator[tuple[int, Record]]:
    """Line number and record of each row, streamed."""
    row = None
    try:
        with path.open(encoding="utf-8-sig", newline="") as stream:
            first = stream.readline()
            delimiter = max(_DELIMITERS, key=re.sub('"[^"]*"', "", first).count)
            reader = csv.DictReader(chain([first], stream), restkey=_BEYOND, delimiter=delimiter, strict=True)
            _check_header(path, reader.fieldnames or (), only_paths=names is None)
            try:
                for row in reader:
                    yield from ((reader.line_num, each) for each in expand(_parse_row(path, row, names)))
            except (DataError, ImageError, csv.Error) as error:
                raise DataError(f"{path}: line {reader.line_num}: {error}") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: is not UTF-8 text; save the manifest as CSV in UTF-8") from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from error
    except csv.Error as error:
        raise DataError(f"{path}: {error}") from error
    if row is None:
        raise DataError(f"{path}: has no rows, only a header line")


def _check_header(path: Path, names: Sequence[str], *, only_paths: bool) -> None:
    """A misspelt column would silently be lost, and with it, say, the patients: so it is an error."""
    header = [name.strip() for name in names]
    if list(names) != header or len(set(header)) != len(header):
        raise DataError(f"{path}: column names must be unique and without spaces around: {', '.join(header)}")
    for name in header:
        likeness = difflib.get_close_matches(name.lower(), _COLUMNS, n=1, cutoff=0.75)
        if name not in _COLUMNS and likeness and likeness[0] not in header:
            raise DataError(f"{path}: column {name!r} is not known; did you mean {likeness[0]!r}?")
    if "path" not in header:
        given, known = ", ".join(header), ", ".join(_COLUMNS)
        raise DataError(f"{path}: has no column `path`, only {given}; give its columns the names {known}")
    unknown = [name for name in header if name and name not in _COLUMNS]
    missing = [name for name in ("label", "patient_id") if name not in header]
    if unknown and missing and not only_paths:
        holders = f"if one of {', '.join(unknown)} holds it, rename that"
        say(f"{path}: has no column {' and no column '.join(missing)}; {holders}")


def _parse_row(path: Path, row: Mapping[str, str], names: LabelNames | None) -> Record:
    if _BEYOND in row:
        raise DataError("has more fields than columns; put quotes around a path that holds the delimiter")
    given = {name: (row.get(name) or "").strip() for name in _COLUMNS}
    number, unit, split = given["slice"], given["unit"], _SPLITS.get(given["split"].lower())
    if not given["path"]:
        raise DataError("`path` is empty")
    if given["split"] and split is None:
        raise DataError(f"split {given['split']!r} is not one of {', '.join(PARTS)}")
    if unit and not _UNIT.fullmatch(unit):
        raise DataError(f"unit {unit!r} is none of HU, HU+1024 and grey/4095, with any number")
    if number and not (number.isdecimal() and len(number) < 10):
        raise DataError(f"slice {number!r} is no number; the first slice is 0")

    # The slices of a volume or series are of one person, who is called after it, however they are named.
    whole = given["path"].removesuffix(f"!{_plane(path.parent / given['path'])[1]}")
    person = os.path.normpath(whole.removeprefix(f"{path.absolute().parent.as_posix()}/"))

    def place(name: str, whole: Collection[str] = PICTURES) -> Path:
        file = path.parent / name
        return Path(f"{file}!{int(number)}") if number and file.suffix.lower() not in whole else file

    return Record(
        file := place(given["path"], PICTURES - {".tif", ".tiff"}),
        Label.parse(given["label"], names) if given["label"] and names is not None else None,
        given["patient_id"] or (unknown_patient(whole) if file == path.parent / whole else person),
        given["source"] or path.stem,
        split,
        place(given["lung_mask"]) if given["lung_mask"] else None,
        place(given["lesion_mask"]) if given["lesion_mask"] else None,
        given["grade"],
        unit,
        given["collection"],
    )


def _expanded(record: Record) -> Iterator[Record]:
    """A record of each slice of a folder or zip, or of the one that is named; any other record as it is."""
    holder, number = _numbered(record.path)
    if not (os.path.isdir(holder) or (os.path.isfile(holder) and holder.suffix.lower() == ".zip")):
        yield record
        return
    files = [source.name for source, _ in images_within(holder)]
    if number is not None:
        # A member of an archive may be called by a number.
        files = [str(record.path)] if str(record.path) in files else files[number : number + 1]
    if not files:
        raise DataError(f"{holder} has no slice {number}; the first one is 0")
    if len(files) > 1 and (record.lung_mask or record.lesion_mask):
        raise DataError(f"{holder} holds {len(files)} slices and a mask is of one; name it in `slice`")
    if number is None:  # all slices of one patient, who is called after the folder
        record = replace(record, patient_id=record.patient_id.removeprefix(_UNKNOWN_PATIENT))
    yield from (replace(record, path=Path(file)) for file in files)


def _check_presence(path: Path, records: Iterable[Record]) -> None:
    @cache
    def members(archive: Path) -> frozenset[str]:
        with open_archive(archive, on_error=lambda _: None) as sources:
            return frozenset(source.member for source in sources)

    def present(file: Path) -> bool:
        file, _ = _plane(file)
        member = split_member(file)
        found = member is not None and os.path.isfile(member[0]) and member[1] in members(member[0])
        return found or os.path.isfile(file)

    named = (file for each in records for file in (each.path, each.lung_mask, each.lesion_mask) if file)
    missing = [str(file) for file in named if not present(file)]
    if missing:
        raise DataError(f"{path}: {len(missing)} of its files do not exist: {name_some(missing)}")
