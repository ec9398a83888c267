"""Read a data set from whatever path a user gives: COVID-CT, a manifest CSV, or a folder of slices."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from groundglass.data.covid_ct import load_covid_ct, looks_like
from groundglass.data.manifest import (
    PICTURES,
    Label,
    LabelNames,
    Manifest,
    Record,
    label_names,
    read_manifest,
    say,
    unknown_patient,
)
from groundglass.errors import DataError
from groundglass.files import name_some
from groundglass.imaging.source import HEAD_BYTES, RASTER, FileFormat, FileSource, files_below, identify


def load_dataset(path: Path, map_label: Iterable[str] = ()) -> Manifest:
    """Read the data set at ``path``; ``map_label`` says what labels of other names mean: ``positive=COVID``.

    A CSV file is a manifest. A folder is, in this order: COVID-CT (clone, extracted or its image folder), a
    folder with a ``manifest.csv``, a folder with ``COVID/`` and ``NonCOVID/``, or a folder of slices without
    labels.

    In folders, a file in a sub-folder belongs to the patient that the sub-folder (of its label's folder)
    names; the same name under both labels is taken as the same patient, so that a split never parts them. A
    file directly in the folder is of an unknown patient. The source is the folder's name.

    Raises:
        DataError: nothing is there, or what is there is none of these or incomplete.
    """
    names = label_names(map_label)
    if path.is_file():
        if path.suffix.lower() in {".csv", ".tsv"}:
            return read_manifest(path, names)
        raise DataError(f"{path}: a data set is a folder or a manifest CSV, not a single file")
    if not path.is_dir():
        raise DataError(f"{path}: no such folder or file")
    try:
        if looks_like(path):
            return load_covid_ct(path)
        if (path / "manifest.csv").is_file():
            return read_manifest(path / "manifest.csv", names)
        labelled = _label_folders(path, names)
        return _load_labelled(path, labelled, names) if labelled else _load_unlabelled(path, names)
    except OSError as error:
        raise DataError(f"{error.filename or path}: cannot be read ({error.strerror})") from error


def load_pool(paths: Sequence[Path], map_label: Iterable[str] = ()) -> Manifest:
    """Several data sets as one, each read by :func:`load_dataset`.

    Data sets of the same name, and sources called after them, are called after their paths instead. Patients of
    one id in data sets that name different sources are different people, and called after their source.

    Raises:
        DataError: as there; or there is none, or two hold the same file.
    """
    manifests = [load_dataset(path, map_label) for path in paths]
    if not manifests:
        raise DataError("no data: name a data set with --data")
    if len(manifests) == 1:
        return manifests[0]
    root = Path(os.path.commonpath([manifest.root.absolute() for manifest in manifests]))
    names = Counter(manifest.name for manifest in manifests)
    for number, (path, manifest) in enumerate(zip(paths, manifests, strict=True)):
        place = path.absolute().with_suffix("")
        if names[manifest.name] > 1 and place != root:
            manifests[number] = _renamed(manifest, place.relative_to(root).as_posix())
    seen: set[Path] = set()
    for record in (record for manifest in manifests for record in manifest):
        if record.path in seen:
            raise DataError(f"{record.path}: is in two of the data sets")
        seen.add(record.path)
    name, given = "+".join(each.name for each in manifests), sum((each.given for each in manifests), ())
    return Manifest(name, root, tuple(_with_patients_apart(manifests)), given)


def _renamed(manifest: Manifest, name: str) -> Manifest:
    records = (replace(each, source=name) if each.source == manifest.name else each for each in manifest)
    return replace(manifest, name=name, records=tuple(records))


def _with_patients_apart(manifests: Sequence[Manifest]) -> Iterator[Record]:
    """All records; ids that several data sets use for different people are told apart."""
    sources: dict[str, dict[str, set[str]]] = {}
    same: set[str] = set()
    for manifest in manifests:
        for record in manifest:
            sources.setdefault(record.patient_id, {}).setdefault(manifest.name, set()).add(record.hospital)
    several = {patient: named for patient, named in sources.items() if len(named) > 1}
    # Where a data set does not say where its slices come from, their source is its own name.
    apart = {
        patient
        for patient, named in several.items()
        if not set.intersection(*named.values()) and not any(name in own for name, own in named.items())
    }
    for manifest in manifests:
        for record in manifest:
            patient = record.patient_id
            if patient in several and not record.patient_known:
                patient = unknown_patient(f"{manifest.name}/{patient}")
            elif patient in apart:
                patient = f"{record.hospital}/{patient}"
            elif patient in several:
                same.add(patient)
            yield replace(record, patient_id=patient)
    if same:
        say(
            f"{name_some(sorted(same))}: patients of several data sets, taken for the same people; where they are "
            "not, name their hospitals in a column `source`"
        )


def _label_folders(path: Path, names: LabelNames) -> list[tuple[Path, Label]]:
    """Sub-folders of ``path`` whose names spell a label (``COVID``, ``non-covid``, ``CT_NonCOVID``, ...)."""
    folders = sorted(entry for entry in path.iterdir() if entry.is_dir())
    return [(folder, label) for folder in folders if (label := Label.spelt(folder.name, names)) is not None]


def _load_labelled(path: Path, folders: list[tuple[Path, Label]], names: LabelNames) -> Manifest:
    for label in Label:
        count = sum(spelt is label for _, spelt in folders)
        if not count or (count > 1 and not names.keys() & {folder.name.casefold() for folder, _ in folders}):
            raise DataError(
                f"{path}: has {'too many' if count else 'no'} sub-folders for {label.value}; expected one "
                "COVID/ and one NonCOVID/ (case and hyphens do not matter)"
            )
    name = path.resolve().name
    records = tuple(record for folder, label in folders for record in _records(folder, name, label))
    return Manifest(name, path, records, (path,))


def _load_unlabelled(path: Path, names: LabelNames) -> Manifest:
    records = tuple(_records(path, path.resolve().name, None))
    below = {folder for record in records for folder in record.path.relative_to(path).parents}
    deeper = sorted({str(path / folder.parent) for folder in below if Label.spelt(folder.name, names)})
    if deeper:
        raise DataError(
            f"{path}: folders named like labels lie deeper, in {name_some(deeper)}; "
            "give that folder, or a manifest CSV"
        )
    return Manifest(path.resolve().name, path, records, (path,))


def _records(folder: Path, source: str, label: Label | None) -> Iterator[Record]:
    """Records of all slices below ``folder``, in natural order of their names."""
    empty = True
    for file in files_below(folder):
        if not _is_slice(file):
            continue
        empty = False
        relative = file.path.relative_to(folder)
        if len(relative.parts) > 1:
            patient = relative.parts[0]
        else:
            patient = unknown_patient(f"{label.value}/{relative}" if label else str(relative))
        yield Record(file.path, label, patient, source, None)
    if empty:
        raise DataError(
            f"{folder}: holds no slices (expected {', '.join(sorted(PICTURES))} or DICOM files; "
            "`groundglass data slices` cuts slices out of volumes)"
        )


def _is_slice(file: FileSource) -> bool:
    """A damaged picture counts, so that reading it tells the user; DICOM files often have no suffix."""
    if file.path.suffix.lower() in PICTURES:
        return True
    formats = RASTER | {FileFormat.DICOM}
    return file.path.name.upper() != "DICOMDIR" and identify(file.head(HEAD_BYTES)) in formats
