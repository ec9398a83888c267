"""Sections and tables of Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence


def section(title: str, lines: Iterable[str], level: int = 3) -> list[str]:
    """A heading, the lines below it, and an empty line."""
    return [f"{'#' * level} {title}", "", *lines, ""]


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> Iterator[str]:
    """The lines of a table, each cell as text."""
    yield f"| {' | '.join(head)} |"
    yield "|---" * len(head) + "|"
    for row in rows:
        yield f"| {' | '.join(str(cell) for cell in row)} |"
