"""Read a data set from whatever path a user gives: COVID-CT, a manifest CSV, or a folder of slices."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
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
from groundglass.imaging.source import RASTER, FileSource, files_below, identify, raise_error


def load_dataset(path: Path, map_label: Iterable[str] = ()) -> Manifest:
    """Read the data set at ``path``; ``map_label`` says what labels of other names mean: ``positive=COVID``.

    A CSV file is a manifest. A folder is, in this order: COVID-CT (clone, extracted or its image folder), one with a
    ``manifest.csv``, one with ``COVID/`` and ``NonCOVID/``, or one of slices without labels.

    In folders, a file in a sub-folder (of its label's folder) belongs to the patient that this names; the same name
    under both labels is the same patient, so that a split never parts them. A file directly in the folder is of an
    unknown patient. The source is the folder's name.

    Raises:
        DataError: nothing is there, or what is there is none of these or incomplete.
    """
    names = label_names(map_label)
    try:
        if path.is_file():
            if path.suffix.lower() in {".csv", ".tsv"}:
                return read_manifest(path, names)
            raise DataError(f"{path}: a data set is a folder or a manifest CSV, not a single file")
        if not path.is_dir():
            raise DataError(f"{path}: no such folder or file")
        if looks_like(path):
            return load_covid_ct(path)
        if (path / "manifest.csv").is_file():
            return read_manifest(path / "manifest.csv", names)
        return _load_folder(path, names)
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
    try:
        root = Path(os.path.commonpath([manifest.root.absolute() for manifest in manifests]))
    except ValueError:  # several drives of Windows
        root = Path()
    names = Counter(manifest.name for manifest in manifests)
    for number, (path, manifest) in enumerate(zip(paths, manifests, strict=True)):
        place = path.absolute() if path.is_dir() else path.absolute().with_suffix("")
        if names[manifest.name] > 1 and place != root:
            name = (place.relative_to(root) if root.is_absolute() else place).as_posix()
            records = (replace(r, source=name) if r.source == manifest.name else r for r in manifest)
            manifests[number] = replace(manifest, name=name, records=tuple(records))
    files = Counter(os.path.abspath(record.path) for manifest in manifests for record in manifest)
    if twice := next((file for file, count in files.items() if count > 1), None):
        raise DataError(f"{twice}: is in two of the data sets")
    name, given = "+".join(each.name for each in manifests), sum((each.given for each in manifests), ())
    return Manifest(name, root, tuple(_with_patients_apart(manifests)), given)


def _with_patients_apart(manifests: Sequence[Manifest]) -> Iterator[Record]:
    """All records; ids that several data sets use for different people are told apart."""
    sources: dict[str, dict[str, set[str]]] = {}
    same: set[str] = set()
    placed = [(manifest.name, record) for manifest in manifests for record in manifest]
    for name, record in placed:
        sources.setdefault(record.patient_id, {}).setdefault(name, set()).add(record.hospital)
    for name, record in placed:
        patient, named = record.patient_id, sources[record.patient_id]
        if len(named) > 1:
            linked = _linked(named[name], named.values())
            # Where a data set does not say where its slices come from, their source is its own name.
            shared = all(own <= linked for own in named.values()) or any(each in own for each, own in named.items())
            if not record.patient_known:
                patient = unknown_patient(f"{name}/{patient}")
            elif shared:
                same.add(patient)
            else:
                patient = f"{min(linked)}/{patient}"
        yield replace(record, patient_id=patient)
    if same:
        say(
            f"{name_some(sorted(same))}: patients of several data sets, taken for the same people; where they are "
            "not, name their hospitals in a column `source`"
        )


def _linked(own: set[str], sets: Collection[set[str]]) -> set[str]:
    """A patient's sources in a data set, and those of the sets that share one with it, or with one that does."""
    while (wider := own.union(*(each for each in sets if each & own))) != own:
        own = wider
    return own


def _load_folder(path: Path, names: LabelNames) -> Manifest:
    """Slices in sub-folders whose names spell a label, else without labels."""
    source, folders = path.resolve().name, sorted(entry for entry in path.iterdir() if entry.is_dir())
    labelled = [(folder, label) for folder in folders if (label := Label.spelt(folder.name, names))]
    for label in Label if labelled else ():
        count = sum(spelt is label for _, spelt in labelled)
        if not count or (count > 1 and not names.keys() & {folder.name.casefold() for folder, _ in labelled}):
            raise DataError(
                f"{path}: has {'too many' if count else 'no'} sub-folders for {label.value}; expected one "
                "COVID/ and one NonCOVID/ (case and hyphens do not matter)"
            )
    groups: Sequence[tuple[Path, Label | None]] = labelled or [(path, None)]
    records = [record for folder, label in groups for record in _records(folder, source, label)]
    below = {folder for record in records for folder in record.path.relative_to(path).parents if not labelled}
    if deeper := sorted({str(path / folder.parent) for folder in below if Label.spelt(folder.name, names)}):
        raise DataError(
            f"{path}: folders named like labels lie deeper, in {name_some(deeper)}; give that folder, or a manifest CSV"
        )
    return Manifest(source, path, tuple(records), (path,))


def _records(folder: Path, source: str, label: Label | None) -> Iterator[Record]:
    """Records of all slices below ``folder``, in natural order of their names."""
    files, others = list[Path](), list[FileSource]()
    for file in files_below(folder, raise_error):
        if _is_slice(file):
            files.append(file.path)
        else:
            others.append(file)
    if not files:
        raise DataError(
            f"{folder}: holds no slices (expected {', '.join(sorted(PICTURES))} or DICOM files; "
            "`groundglass data slices` cuts slices out of volumes)"
        )
    if volumes := [each.path.name for each in others if identify(each.head()) not in {None, "DICOM"}]:
        say(f"{folder}: {name_some(volumes)}: left out; `groundglass data slices` cuts slices out of volumes and zips")
    for path in files:
        relative = path.relative_to(folder)
        alone = unknown_patient(f"{label.value}/{relative}" if label else str(relative))
        yield Record(path, label, relative.parts[0] if len(relative.parts) > 1 else alone, source, None)


def _is_slice(file: FileSource) -> bool:
    """A damaged picture counts, so that reading it tells the user; DICOM files often have no suffix."""
    if file.path.suffix.lower() in PICTURES:
        return True
    return file.path.name.upper() != "DICOMDIR" and identify(file.head()) in RASTER | {"DICOM"}
