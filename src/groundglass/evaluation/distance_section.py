"""How far data lie from the training data: the report's section and the terminal's tables."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import astuple

from rich.markup import escape
from rich.table import Table
from rich.text import Text

from groundglass.evaluation.distance import FAR_OUT, LIMITS, Distance, Placed
from groundglass.evaluation.distance_document import distance_rows, shift_rows
from groundglass.reporting.distance_figure import percentile_figure
from groundglass.reporting.html import DistanceSection, FigurePanel, TextTable

_TITLE = "Distance from the training data"
_HEAD = ("Measure", "Value", "95 % interval", "If alike")
_SHIFT_TITLE = "Grey values before normalisation: median and 5 to 95 % range"
_SHIFT_HEAD = ("Statistic", "Training part", "These data", "Shift (SD)", "Outside the range")


def distance_section(distance: Distance) -> DistanceSection:
    """The section of the report."""
    return DistanceSection(
        distance.words,
        LIMITS,
        list(_tables(distance)),
        None if distance.placed is None else _panel(distance.placed),
    )


def distance_tables(distance: Distance) -> list[Table | Text]:
    """The same for a terminal: the tables, and below them the verdict."""
    tables: list[Table] = []
    for each in _tables(distance):
        table = Table(title=escape(each.caption), title_justify="left")
        for index, name in enumerate(each.head):
            table.add_column(name, justify="left" if index == 0 else "right")
        for row in each.rows:
            table.add_row(*map(escape, row))
        tables.append(table)
    return [*tables, Text(f"{distance.words} {LIMITS}")]


def _tables(distance: Distance) -> Iterator[TextTable]:
    yield TextTable(_caption(distance), _HEAD, [astuple(row) for row in distance_rows(distance)])
    if shifts := shift_rows(distance):
        yield TextTable(_SHIFT_TITLE, _SHIFT_HEAD, [astuple(row) for row in shifts])


def _caption(distance: Distance) -> str:
    sentences = [_TITLE]
    if (placed := distance.placed) is not None:
        sentences.append(
            f"Beyond 95 %: farther from the {placed.training} training slices than 95 % of {placed.held_out} "
            "held-out slices of the same sources"
        )
    if distance.reasons:
        reasons = "; ".join(f"{reason}: {count}" for reason, count in distance.reasons.items())
        sentences.append(f"Refused: {reasons}")
    return ". ".join(sentences) + "."


def _panel(placed: Placed) -> FigurePanel:
    places = placed.places
    words = (
        f"Each slice's distance from the {placed.training} training slices as a percentile among "
        f"{placed.held_out} held-out slices of the same sources. Slices like these fill every bin alike; "
        "strange ones gather at the right."
    )
    drawn = percentile_figure(places.embedding, places.grey, FAR_OUT[0])
    return FigurePanel("percentiles", "Where the slices lie", drawn, words, width="half")
