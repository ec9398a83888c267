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


def minus(value: float, digits: int) -> str:
    """A number with a minus sign where it is negative, which what rounds to 0 is not."""
    return f"{_rounded(value, digits):.{digits}f}".replace("-", "−")


def signed(value: float, digits: int) -> str:
    """A number with its sign, and 0 without one."""
    rounded = _rounded(value, digits)
    return f"{rounded:{'+' if rounded else ''}.{digits}f}".replace("-", "−")


def _rounded(value: float, digits: int) -> float:
    return round(value, digits) + 0.0  # negative zero becomes zero
