"""What a data set holds: counts, sources, file formats, sizes and grey values, as JSON and as tables."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from rich.markup import escape
from rich.table import Table

from groundglass.data.manifest import PARTS, UNLABELLED, Label, Manifest, Record, read_record
from groundglass.errors import ImageError
from groundglass.files import counted

PERCENTILES = (1, 5, 25, 50, 75, 95, 99)

_SOURCES_SHOWN = 15


@dataclass(frozen=True)
class Group:
    """Slices of a part, a source, or a file format with its mode.

    Slices per label that there is, number of known patients, parts of the data set's own split they lie in.
    """

    name: str
    labels: dict[str, int]
    patients: int
    parts: tuple[str, ...]


@dataclass(frozen=True)
class Lengths:
    """Smallest, median and largest width or height in pixels."""

    min: int
    median: float
    max: int


@dataclass(frozen=True)
class GreyValues:
    """Grey values, 0 to 255, over all pixels of a label's slices, with their `PERCENTILES`."""

    mean: float
    std: float
    percentiles: tuple[int, ...]


@dataclass(frozen=True)
class Description:
    """A data set described.

    Attributes:
        name: of the data set.
        root: the paths it was read from.
        total: all of its slices.
        slices_of_unknown_patients: number of slices whose patient is not known.
        patients_in_several_parts: known patients whose slices lie in more than one part.
        splits: parts of the data set's own split; empty if it has none.
        sources: by name.
        file_formats: by name and mode. Where their labels differ, the file gives its label away.
        width: None where no slice can be read.
        height: likewise.
        grey: grey values per label.
        unreadable: one line for each file that cannot be read; it is left out of the figures on pixels.
    """

    name: str
    root: str
    total: Group
    slices_of_unknown_patients: int
    patients_in_several_parts: tuple[str, ...]
    splits: tuple[Group, ...]
    sources: tuple[Group, ...]
    file_formats: tuple[Group, ...]
    width: Lengths | None
    height: Lengths | None
    grey: dict[str, GreyValues]
    unreadable: tuple[str, ...]


def describe(manifest: Manifest, watched: Iterable[Record] | None = None) -> Description:
    """Describe a data set; every file is read.

    Args:
        manifest: what to describe.
        watched: the manifest's records, wrapped so that progress can be shown.
    """
    records = manifest.records
    sources: dict[str, list[Record]] = {}
    formats: dict[str, list[Record]] = {}
    histograms: dict[str, NDArray[np.int64]] = {}
    shapes: list[tuple[int, ...]] = []
    unreadable: list[str] = []
    for record in watched if watched is not None else records:
        sources.setdefault(record.source, []).append(record)
        try:
            image = read_record(record)
        except ImageError as error:
            unreadable.append(str(error))
            continue
        formats.setdefault(f"{image.origin.file_format} {image.origin.mode}", []).append(record)
        shapes.append(image.pixels.shape)
        label = record.label_name
        histogram = np.bincount(image.pixels.ravel(), minlength=256)
        histograms[label] = histograms.get(label, 0) + histogram
    patients = {part: _known_patients(r for r in records if r.split == part) for part in PARTS}
    several = Counter(patient for part in patients.values() for patient in part)
    return Description(
        name=manifest.name,
        root=str(manifest),
        total=_group("all", records),
        slices_of_unknown_patients=sum(not record.patient_known for record in records),
        patients_in_several_parts=tuple(sorted(patient for patient, parts in several.items() if parts > 1)),
        splits=tuple(
            _group(part, members) for part in PARTS if (members := [r for r in records if r.split == part])
        ),
        sources=tuple(_group(source, members) for source, members in sorted(sources.items())),
        file_formats=tuple(_group(name, members) for name, members in sorted(formats.items())),
        width=_lengths([shape[1] for shape in shapes]),
        height=_lengths([shape[0] for shape in shapes]),
        grey={label: _grey_values(histograms[label]) for label in _labels(histograms)},
        unreadable=tuple(unreadable),
    )


def _labels(present: Iterable[str]) -> list[str]:
    order = [*(label.value for label in Label), UNLABELLED]
    return sorted(set(present), key=order.index)


def _known_patients(records: Iterable[Record]) -> set[str]:
    return {record.patient_id for record in records if record.patient_known}


def _group(name: str, members: Sequence[Record]) -> Group:
    counts = Counter(record.label_name for record in members)
    present = {record.split for record in members}
    return Group(
        name,
        {label: counts[label] for label in _labels(counts)},
        len(_known_patients(members)),
        tuple(part for part in PARTS if part in present),
    )


def _lengths(lengths: Sequence[int]) -> Lengths | None:
    return Lengths(min(lengths), float(np.median(lengths)), max(lengths)) if lengths else None


def _grey_values(histogram: NDArray[np.int64]) -> GreyValues:
    values = np.arange(256)
    mean = float(np.average(values, weights=histogram))
    std = float(np.sqrt(np.average((values - mean) ** 2, weights=histogram)))
    share = np.cumsum(histogram) / histogram.sum()
    return GreyValues(mean, std, tuple(int(np.searchsorted(share, percent / 100)) for percent in PERCENTILES))


def description_tables(found: Description) -> Iterator[Table]:
    """Tables of counts, sources, file formats, sizes and grey values, one after the other."""
    labels = list(found.total.labels)
    title = f"{escape(found.name)}: {counted(sum(found.total.labels.values()), 'slice')}"
    table = _groups_table(title, [*found.splits, found.total], labels)
    if found.slices_of_unknown_patients:
        table.caption = f"{counted(found.slices_of_unknown_patients, 'slice')} of unknown patients"
    if found.patients_in_several_parts:
        table.caption = f"{counted(len(found.patients_in_several_parts), 'patient')} in several parts"
    yield table
    largest = sorted(found.sources, key=lambda source: (-sum(source.labels.values()), source.name))
    table = _groups_table("Sources", largest[:_SOURCES_SHOWN], labels)
    if len(largest) > _SOURCES_SHOWN:
        table.caption = f"{len(largest) - _SOURCES_SHOWN} smaller sources are not shown; --json has them all"
    yield table
    yield _groups_table("File formats and pixel modes", found.file_formats, labels)
    if found.width and found.height:
        table = _table("Size in pixels", "", "min", "median", "max")
        for name, lengths in (("width", found.width), ("height", found.height)):
            table.add_row(name, str(lengths.min), f"{lengths.median:g}", str(lengths.max))
        yield table
        table = _table("Grey values, 0 to 255", "", "mean", "std", *map("{} %".format, PERCENTILES))
        for label, grey in found.grey.items():
            table.add_row(label, f"{grey.mean:.1f}", f"{grey.std:.1f}", *map(str, grey.percentiles))
        yield table
    if found.unreadable:
        table = _table(f"{counted(len(found.unreadable), 'file')} cannot be read", "")
        for line in found.unreadable:
            table.add_row(escape(line))
        yield table


def _groups_table(title: str, groups: Sequence[Group], labels: Sequence[str]) -> Table:
    table = _table(title, "", *labels, "known patients", "parts")
    for group in groups:
        counts = (str(group.labels.get(label, 0)) for label in labels)
        table.add_row(escape(group.name), *counts, str(group.patients), ", ".join(group.parts))
    return table


def _table(title: str, first: str, *others: str) -> Table:
    table = Table(first, title=title, title_justify="left")
    for name in others:
        table.add_column(name, justify="right")
    return table
