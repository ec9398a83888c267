"""A data set's description as tables for the terminal.

What a data set holds: counts, file_formats, sizes and grey values.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.markup import escape
from rich.table import Table

from groundglass.data.manifest import PARTS, Label, Manifest, Record, read_record
from groundglass.data.splits import patients_in_several_parts
from groundglass.errors import ImageError
from groundglass.imaging.slice import Grey

UNLABELLED = "unlabelled"
PERCENTILES = (1, 5, 25, 50, 75, 95, 99)

Counts = dict[str, int]
"""Slices per label; labels without slices are left out."""


@dataclass(frozen=True)
class PartDescription:
    """One part of the data set's own split: slices per label and the number of known patients."""

    labels: Counts
    patients: int


@dataclass(frozen=True)
class SourceDescription:
    """One source: slices per label, known patients, and the parts of the data set's split it feeds."""

    source: str
    labels: Counts
    patients: int
    parts: tuple[str, ...]


@dataclass(frozen=True)
class FileFormatDescription:
    """One file_format and pixel mode: slices per label. Where these differ, the file gives its label away."""

    file_format: str
    mode: str
    labels: Counts


@dataclass(frozen=True)
class GreyDescription:
    """Grey values, 0 to 255, over all pixels of a label's slices; ``percentiles`` by their percentage."""

    mean: float
    std: float
    percentiles: dict[str, int]


@dataclass(frozen=True)
class Description:
    """A data set described.

    Attributes:
        name: of the data set.
        root: the path it was read from.
        slices: number of records.
        labels: slices per label.
        patients: known patients per label, and ``all`` for those of the whole data set.
        slices_of_unknown_patients: how many slices nobody can be named for.
        splits: parts of the data set's own split, by name; empty if it has none.
        patients_in_several_parts: known patients whose slices lie in more than one part.
        sources: by name.
        file_formats: by name and mode.
        width: smallest, median and largest, in pixels.
        height: smallest, median and largest, in pixels.
        grey: grey values per label.
        unreadable: one line for each file that cannot be read; it is left out of the figures on pixels.
    """

    name: str
    root: str
    slices: int
    labels: Counts
    patients: Counts
    slices_of_unknown_patients: int
    splits: dict[str, PartDescription]
    patients_in_several_parts: tuple[str, ...]
    sources: tuple[SourceDescription, ...]
    file_formats: tuple[FileFormatDescription, ...]
    width: dict[str, float]
    height: dict[str, float]
    grey: dict[str, GreyDescription]
    unreadable: tuple[str, ...]

    def as_json(self) -> dict[str, Any]:
        """The same as plain dictionaries, lists, text and numbers."""
        return asdict(self)


class _Pixels:
    """Gathers what needs every file to be read; grey values as one exact histogram per label."""

    def __init__(self) -> None:
        self.file_formats: dict[tuple[str, str], list[Record]] = {}
        self.histograms: dict[str, NDArray[np.int64]] = {}
        self.widths: list[int] = []
        self.heights: list[int] = []
        self.unreadable: list[str] = []

    def add(self, record: Record) -> None:
        try:
            found = read_record(record)
        except ImageError as error:
            self.unreadable.append(str(error))
            return
        self.file_formats.setdefault((found.origin.file_format, found.origin.mode), []).append(record)
        height, width = found.pixels.shape
        self.heights.append(height)
        self.widths.append(width)
        label = _label_name(record)
        self.histograms[label] = self.histograms.get(label, 0) + _histogram(found.pixels)


def describe(manifest: Manifest, watched: Iterable[Record] | None = None) -> Description:
    """Describe a data set; every file is read.

    Args:
        manifest: what to describe.
        watched: the manifest's records, wrapped so that somebody sees them go by.
    """
    pixels = _Pixels()
    for record in watched if watched is not None else manifest:
        pixels.add(record)
    records = manifest.records
    return Description(
        name=manifest.name,
        root=str(manifest.root),
        slices=len(records),
        labels=_count_labels(records),
        patients=_count_patients(records),
        slices_of_unknown_patients=sum(not record.patient_known for record in records),
        splits=_describe_splits(records),
        patients_in_several_parts=tuple(patients_in_several_parts(manifest, _official_parts(records))),
        sources=_describe_sources(records),
        file_formats=tuple(
            FileFormatDescription(file_format, mode, _count_labels(found))
            for (file_format, mode), found in sorted(pixels.file_formats.items())
        ),
        width=_describe_lengths(pixels.widths),
        height=_describe_lengths(pixels.heights),
        grey={
            label: _describe_grey(pixels.histograms[label])
            for label in _label_names()
            if label in pixels.histograms
        },
        unreadable=tuple(pixels.unreadable),
    )


def _label_name(record: Record) -> str:
    return record.label.value if record.label else UNLABELLED


def _label_names() -> list[str]:
    return [*(label.value for label in Label), UNLABELLED]


def _count_labels(records: Iterable[Record]) -> Counts:
    counted = Counter(_label_name(record) for record in records)
    return {label: counted[label] for label in _label_names() if counted[label]}


def _known_patients(records: Iterable[Record]) -> set[str]:
    return {record.patient_id for record in records if record.patient_known}


def _count_patients(records: Sequence[Record]) -> Counts:
    counts = {"all": len(_known_patients(records))}
    for label in _label_names():
        patients = _known_patients(record for record in records if _label_name(record) == label)
        if patients:
            counts[label] = len(patients)
    return counts


def _official_parts(records: Sequence[Record]) -> dict[str, list[int]]:
    parts = {part: [index for index, record in enumerate(records) if record.split == part] for part in PARTS}
    return {part: indices for part, indices in parts.items() if indices}


def _describe_splits(records: Sequence[Record]) -> dict[str, PartDescription]:
    descriptions: dict[str, PartDescription] = {}
    for part, indices in _official_parts(records).items():
        members = [records[index] for index in indices]
        descriptions[part] = PartDescription(_count_labels(members), len(_known_patients(members)))
    return descriptions


def _describe_sources(records: Sequence[Record]) -> tuple[SourceDescription, ...]:
    members: dict[str, list[Record]] = {}
    for record in records:
        members.setdefault(record.source, []).append(record)
    return tuple(
        SourceDescription(
            source,
            _count_labels(found),
            len(_known_patients(found)),
            tuple(part for part in PARTS if any(record.split == part for record in found)),
        )
        for source, found in sorted(members.items())
    )


def _describe_lengths(lengths: Sequence[int]) -> dict[str, float]:
    if not lengths:
        return {}
    return {"min": min(lengths), "median": float(np.median(lengths)), "max": max(lengths)}


def _histogram(pixels: Grey) -> NDArray[np.int64]:
    return np.bincount(pixels.ravel(), minlength=256)


def _describe_grey(histogram: NDArray[np.int64]) -> GreyDescription:
    values = np.arange(256)
    mean = float(np.average(values, weights=histogram))
    std = float(np.sqrt(np.average((values - mean) ** 2, weights=histogram)))
    share = np.cumsum(histogram) / histogram.sum()
    percentiles = {str(percent): int(np.searchsorted(share, percent / 100)) for percent in PERCENTILES}
    return GreyDescription(mean, std, percentiles)


_SOURCES_SHOWN = 15


def description_tables(description: Description) -> Iterator[Table]:
    """Tables of counts, file_formats, sizes and grey values, one after the other."""
    labels = list(description.labels)
    yield _counts(description, labels)
    yield _sources(description.sources, labels)
    yield _containers(description, labels)
    if description.width:
        yield _sizes(description)
        yield _grey(description)
    if description.unreadable:
        table = Table(title=f"{len(description.unreadable)} files cannot be read", show_header=False)
        for line in description.unreadable:
            table.add_row(escape(line))
        yield table


def _table(title: str, first: str, others: Sequence[str]) -> Table:
    table = Table(title=title, title_justify="left")
    table.add_column(first)
    for name in others:
        table.add_column(name, justify="right")
    return table


def _counts(description: Description, labels: Sequence[str]) -> Table:
    title = f"{escape(description.name)}: {description.slices} slices"
    table = _table(title, "", [*labels, "all"])
    for name, part in description.splits.items():
        counts = [part.labels.get(label, 0) for label in labels]
        table.add_row(name, *map(str, counts), str(sum(counts)))
    table.add_row("slices", *map(str, description.labels.values()), str(description.slices))
    patients = [description.patients.get(label, 0) for label in [*labels, "all"]]
    table.add_row("known patients", *map(str, patients))
    if description.slices_of_unknown_patients:
        table.caption = f"{description.slices_of_unknown_patients} slices are of unknown patients"
    if description.patients_in_several_parts:
        table.caption = (
            f"{len(description.patients_in_several_parts)} patients are in several parts of the split"
        )
    return table


def _sources(sources: Sequence[SourceDescription], labels: Sequence[str]) -> Table:
    table = _table("Sources", "source", [*labels, "known patients", "parts"])
    largest = sorted(sources, key=lambda source: (-sum(source.labels.values()), source.source))
    for source in largest[:_SOURCES_SHOWN]:
        counts = [str(source.labels.get(label, 0)) for label in labels]
        table.add_row(escape(source.source), *counts, str(source.patients), ", ".join(source.parts))
    if len(sources) > _SOURCES_SHOWN:
        table.caption = f"{len(sources) - _SOURCES_SHOWN} smaller sources are not shown; --json has them all"
    return table


def _containers(description: Description, labels: Sequence[str]) -> Table:
    table = _table("Containers", "file_format and mode", labels)
    for found in description.file_formats:
        counts = [str(found.labels.get(label, 0)) for label in labels]
        table.add_row(f"{found.file_format} {found.mode}", *counts)
    return table


def _sizes(description: Description) -> Table:
    table = _table("Size in pixels", "", list(description.width))
    for name, lengths in (("width", description.width), ("height", description.height)):
        table.add_row(name, *(f"{length:g}" for length in lengths.values()))
    return table


def _grey(description: Description) -> Table:
    table = _table("Grey values, 0 to 255", "", ["mean", "std", *(f"{percent} %" for percent in PERCENTILES)])
    for label, grey in description.grey.items():
        percentiles = map(str, grey.percentiles.values())
        table.add_row(label, f"{grey.mean:.1f}", f"{grey.std:.1f}", *percentiles)
    return table
