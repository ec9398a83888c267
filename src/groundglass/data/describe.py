"""What a data set holds: counts, sources, file formats, sizes and grey values, as JSON and as tables."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from rich.markup import escape
from rich.table import Table

from groundglass.data.manifest import PARTS, Manifest, Record, read_record
from groundglass.data.splits import in_several_parts
from groundglass.errors import ImageError
from groundglass.files import counted, cut_middle

_SOURCES_SHOWN, _NAME = 15, 24  # the latter's characters leave room for the counts in 80 columns


@dataclass(frozen=True)
class Group:
    """Of a part, source or file format: slices of each label, and known patients."""

    name: str
    labels: dict[str, int]
    patients: int

    @classmethod
    def of(cls, name: str, members: Sequence[Record]) -> Group:
        """Count some records."""
        counts = Counter(record.label_name for record in members)
        patients = {record.patient_id for record in members if record.patient_known}
        return cls(name, dict(sorted(counts.items())), len(patients))


@dataclass(frozen=True)
class Description:
    """A data set described."""

    name: str
    root: str  # the paths it was read from
    total: Group
    slices_of_unknown_patients: int  # how many
    patients_in_several_parts: tuple[str, ...]  # known ones
    splits: tuple[Group, ...]  # parts of the data set's own split; empty if it has none
    sources: tuple[Group, ...]  # by name
    file_formats: tuple[Group, ...]  # by name and mode; where their labels differ, the file gives its label away
    width: dict[str, int]  # `min` and `max` in pixels; empty where no slice can be read
    height: dict[str, int]
    grey: dict[str, dict[str, float]]  # by label `mean` and `std` over all pixels of its slices, 0 to 255
    unreadable: tuple[str, ...]  # one line for each file that cannot be read; figures on pixels are without it


def describe(manifest: Manifest, watched: Iterable[Record] | None = None) -> Description:
    """Describe a data set; every file is read. ``watched``: its records, wrapped so that progress can be shown."""
    formats, sources = (defaultdict[str, list[Record]](list) for _ in range(2))
    histograms = defaultdict[str, NDArray[np.int64]](lambda: np.zeros(256, np.int64))
    shapes: list[tuple[int, ...]] = []
    unreadable: list[str] = []
    for record in watched if watched is not None else manifest:
        sources[record.source].append(record)
        try:
            image = read_record(record)
        except ImageError as error:
            unreadable.append(str(error))
            continue
        formats[f"{image.origin.file_format} {image.origin.mode}"].append(record)
        shapes.append(image.pixels.shape)
        histograms[record.label_name] += np.bincount(image.pixels.ravel(), minlength=256)
    splits = {part: [record for record in manifest if record.split == part] for part in PARTS}
    several = in_several_parts((record.patient_id, record.split) for record in manifest if record.patient_known)
    height, width = ({"min": min(each), "max": max(each)} for each in zip(*shapes, strict=True)) if shapes else ({}, {})
    return Description(
        name=manifest.name,
        root=str(manifest),
        total=Group.of("all", manifest.records),
        slices_of_unknown_patients=sum(not record.patient_known for record in manifest),
        patients_in_several_parts=tuple(several),
        splits=tuple(Group.of(part, members) for part, members in splits.items() if members),
        sources=tuple(Group.of(source, members) for source, members in sorted(sources.items())),
        file_formats=tuple(Group.of(name, members) for name, members in sorted(formats.items())),
        width=width,
        height=height,
        grey={label: _grey_values(histogram) for label, histogram in sorted(histograms.items())},
        unreadable=tuple(unreadable),
    )


def _grey_values(histogram: NDArray[np.int64]) -> dict[str, float]:
    values = np.arange(256)
    mean = float(np.average(values, weights=histogram))
    return {"mean": mean, "std": float(np.sqrt(np.average((values - mean) ** 2, weights=histogram)))}


def description_tables(found: Description) -> Iterator[Table]:
    """Tables of counts, sources, file formats, sizes and grey values, one after the other."""
    labels = list(found.total.labels)

    def groups(title: str, shown: Sequence[Group], caption: str | None = None) -> Table:
        rows = [
            (cut_middle(each.name, _NAME), *(each.labels.get(label, 0) for label in labels), each.patients)
            for each in shown
        ]
        return _table(title, ("", *labels, "known patients"), rows, caption)

    unknown, several = found.slices_of_unknown_patients, len(found.patients_in_several_parts)
    remarks = [f"{counted(several, 'patient')} in several parts"] * bool(several)
    remarks += [f"{counted(unknown, 'slice')} of unknown patients"] * bool(unknown)
    title = f"{escape(cut_middle(found.name, _NAME))}: {counted(sum(found.total.labels.values()), 'slice')}"
    yield groups(title, [*found.splits, found.total], "; ".join(remarks) or None)
    largest = sorted(found.sources, key=lambda source: (-sum(source.labels.values()), source.name))
    rest = len(largest) - _SOURCES_SHOWN
    caption = f"{rest} smaller sources are not shown; --json has them all" if rest > 0 else None
    yield groups("Sources", largest[:_SOURCES_SHOWN], caption)
    yield groups("File formats and pixel modes", found.file_formats)
    if found.width:
        sizes = [("width", *found.width.values()), ("height", *found.height.values())]
        yield _table("Size in pixels", ("", "min", "max"), sizes)
        greys = [(label, f"{grey['mean']:.1f}", f"{grey['std']:.1f}") for label, grey in found.grey.items()]
        yield _table("Grey values, 0 to 255", ("", "mean", "std"), greys)
    if found.unreadable:
        title = f"{counted(len(found.unreadable), 'file')} cannot be read"
        yield _table(title, ("",), [(line,) for line in found.unreadable])


def _table(title: str, columns: Sequence[str], rows: Iterable[Iterable[object]], caption: str | None = None) -> Table:
    table = Table(columns[0], title=title, title_justify="left", caption=caption)
    for name in columns[1:]:
        table.add_column(name, justify="right")
    for row in rows:
        table.add_row(*(escape(str(each)) for each in row))
    return table
