"""A data set's description as tables for the terminal."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich.markup import escape
from rich.table import Table

from groundglass.data.describe import PERCENTILES, Description, SourceDescription

_SOURCES_SHOWN = 15


def description_tables(description: Description) -> Iterator[Table]:
    """Tables of counts, containers, sizes and grey values, one after the other."""
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
    table = _table("Containers", "container and mode", labels)
    for found in description.containers:
        counts = [str(found.labels.get(label, 0)) for label in labels]
        table.add_row(f"{found.container} {found.mode}", *counts)
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
