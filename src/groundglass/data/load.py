"""One way in: whatever path a user has to a data set, a manifest comes out.

Folders as data sets: COVID/ and NonCOVID/ sub-folders, or slices without labels.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from groundglass.data.covid_ct import load_covid_ct, looks_like
from groundglass.data.manifest import Label, Manifest, Record, read_manifest, unknown_patient
from groundglass.errors import DataError
from groundglass.files import name_some
from groundglass.imaging.source import (
    HEAD_BYTES,
    RASTER,
    FileFormat,
    FileSource,
    files_below,
    identify,
    is_junk,
)

PICTURE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp"})


def label_folders(path: Path) -> dict[Path, Label]:
    """Sub-folders of ``path`` whose names spell a label (``COVID``, ``non-covid``, ``CT_NonCOVID``, ...)."""
    folders = sorted(entry for entry in path.iterdir() if entry.is_dir())
    return {folder: label for folder in folders if (label := Label.spelt(folder.name)) is not None}


def load_labelled_folder(path: Path) -> Manifest:
    """Read a folder holding ``COVID/`` and ``NonCOVID/``, each with pictures or single-frame DICOM files.

    A file in a sub-folder of its label's folder belongs to the patient that the first sub-folder names; the
    same sub-folder name under both labels is taken as the same patient, so that a split never parts them. A
    file directly in the label's folder is of an unknown patient. The source is the folder's name.

    Raises:
        DataError: if one of the labels has no folder, two folders or no files.
    """
    folders = label_folders(path)
    for label in Label:
        having = [folder for folder, spelt in folders.items() if spelt is label]
        if len(having) != 1:
            count = "no" if not having else "more than one"
            raise DataError(
                f"{path}: has {count} sub-folder for {label.value}; expected one COVID/ and one NonCOVID/ "
                "(case and hyphens do not matter)"
            )
    records: list[Record] = []
    for folder, label in folders.items():
        before = len(records)
        records.extend(_records(folder, path.resolve().name, label))
        if len(records) == before:
            raise DataError(f"{folder}: holds no slices ({_expected_files()})")
    return Manifest(name=path.resolve().name, root=path, records=tuple(records))


def load_unlabelled_folder(path: Path) -> Manifest:
    """Read any folder of slices; patients and source as in `load_labelled_folder`, labels unknown.

    Raises:
        DataError: if there are no slices, or folders named like labels deeper down.
    """
    deeper = [str(below) for below in _folders_below(path) if label_folders(below)]
    if deeper:
        raise DataError(
            f"{path}: folders named like labels lie deeper, in {name_some(deeper)}; "
            "give that folder, or a manifest CSV"
        )
    records = tuple(_records(path, path.resolve().name, None))
    if not records:
        raise DataError(f"{path}: holds no slices ({_expected_files()})")
    return Manifest(name=path.resolve().name, root=path, records=records)


def _expected_files() -> str:
    return (
        f"expected {', '.join(sorted(PICTURE_SUFFIXES))} or DICOM files; "
        "`groundglass data slices` cuts slices out of volumes"
    )


def _folders_below(path: Path) -> Iterator[Path]:
    for folder, names, _ in os.walk(path):
        names[:] = sorted(name for name in names if not is_junk(PurePosixPath(name)))
        if Path(folder) != path:
            yield Path(folder)


def _records(folder: Path, source: str, label: Label | None) -> Iterator[Record]:
    """Records of all slices below ``folder``, in natural order of their names."""
    for file in files_below(folder):
        if not _is_slice(file):
            continue
        relative = file.path.relative_to(folder)
        if len(relative.parts) > 1:
            patient = relative.parts[0]
        else:
            patient = unknown_patient(f"{label.value}/{relative}" if label else str(relative))
        yield Record(file.path, label, patient, source, None)


def _is_slice(file: FileSource) -> bool:
    """A damaged picture counts, so that reading it tells the user; DICOM files often have no suffix."""
    if file.path.suffix.lower() in PICTURE_SUFFIXES:
        return True
    return file.path.name.upper() != "DICOMDIR" and identify(file.head(HEAD_BYTES)) in RASTER | {
        FileFormat.DICOM
    }


def load_dataset(path: Path) -> Manifest:
    """Read the data set at ``path``.

    A CSV file is a manifest. A folder is, in this order: COVID-CT (clone, extracted or its image folder), a
    folder with a ``manifest.csv``, a folder with ``COVID/`` and ``NonCOVID/``, or a folder of slices without
    labels.

    Raises:
        DataError: if nothing is there, or what is there is none of these or incomplete.
    """
    if path.is_file():
        if path.suffix.lower() == ".csv":
            return read_manifest(path)
        raise DataError(
            f"{path}: a data set is a folder or a manifest CSV, not a {path.suffix or 'single'} file"
        )
    if not path.is_dir():
        raise DataError(f"{path}: no such folder or file")
    try:
        if looks_like(path):
            return load_covid_ct(path)
        if (path / "manifest.csv").is_file():
            return read_manifest(path / "manifest.csv")
        if label_folders(path):
            return load_labelled_folder(path)
        return load_unlabelled_folder(path)
    except OSError as error:
        raise DataError(f"{error.filename or path}: cannot be read ({error.strerror})") from error
