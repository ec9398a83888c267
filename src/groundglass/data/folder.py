"""Folders as data sets: COVID/ and NonCOVID/ sub-folders, or slices without labels."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from groundglass.data.manifest import Label, Manifest, Record, name_some, unknown_patient
from groundglass.errors import DataError

PICTURE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp"})
DICOM_SUFFIXES = frozenset({".dcm", ".dicom", ""})
_DICOM_MAGIC_AT = 128


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
        records.extend(_records(folder, folder, path.resolve().name, label))
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
    records = tuple(_records(path, path, path.resolve().name, None))
    if not records:
        raise DataError(f"{path}: holds no slices ({_expected_files()})")
    return Manifest(name=path.resolve().name, root=path, records=records)


def _expected_files() -> str:
    return f"expected {', '.join(sorted(PICTURE_SUFFIXES))} or DICOM files"


def _folders_below(path: Path) -> Iterator[Path]:
    for folder, names, _ in os.walk(path):
        names[:] = sorted(name for name in names if not _is_junk(name))
        if Path(folder) != path:
            yield Path(folder)


def _records(folder: Path, base: Path, source: str, label: Label | None) -> Iterator[Record]:
    """Records of all slices below ``folder``, in the order of their relative paths."""
    for inside, names, files in os.walk(folder):
        names[:] = sorted(name for name in names if not _is_junk(name))
        for name in sorted(files):
            file = Path(inside, name)
            if _is_junk(name) or not _is_slice(file):
                continue
            relative = file.relative_to(base)
            known = len(relative.parts) > 1
            whole = relative.as_posix() if label is None else f"{label.value}/{relative.as_posix()}"
            patient = relative.parts[0] if known else unknown_patient(whole)
            yield Record(file, label, patient, source, None)


def _is_junk(name: str) -> bool:
    return name.startswith((".", "__MACOSX", "PaxHeader")) or name.upper() == "DICOMDIR"


def _is_slice(file: Path) -> bool:
    suffix = file.suffix.lower()
    if suffix in PICTURE_SUFFIXES:
        return True
    # Archives name DICOM files without suffix, or by a UID whose last number looks like one.
    if suffix in DICOM_SUFFIXES or suffix[1:].isdigit():
        with file.open("rb") as opened:
            opened.seek(_DICOM_MAGIC_AT)
            return suffix == ".dcm" or opened.read(4) == b"DICM"
    return False
