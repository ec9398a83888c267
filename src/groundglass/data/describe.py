"""What a data set holds: counts, containers, sizes and grey values."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

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
class ContainerDescription:
    """One container and pixel mode: slices per label. Where these differ, the file gives its label away."""

    container: str
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
        containers: by name and mode.
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
    containers: tuple[ContainerDescription, ...]
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
        self.containers: dict[tuple[str, str], list[Record]] = {}
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
        self.containers.setdefault((found.origin.container, found.origin.mode), []).append(record)
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
        containers=tuple(
            ContainerDescription(container, mode, _count_labels(found))
            for (container, mode), found in sorted(pixels.containers.items())
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
