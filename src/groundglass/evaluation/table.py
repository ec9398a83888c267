"""The table of measures on a terminal."""

from __future__ import annotations

from rich.markup import escape
from rich.table import Table

from groundglass.evaluation.report import measure_rows
from groundglass.evaluation.result import Evaluation


def measures_table(evaluation: Evaluation) -> Table:
    """Each measure, its value and its 95 % interval."""
    patients = evaluation.bootstrap.patients
    title = f"{evaluation.part.title}: {len(evaluation.part.records)} slices of {patients} patients"
    confusion = evaluation.metrics.confusion
    caption = (
        f"COVID right {confusion.true_positive}, missed {confusion.false_negative}; "
        f"NonCOVID right {confusion.true_negative}, false alarms {confusion.false_positive}. "
        f"Intervals: bootstrap over patients, {evaluation.bootstrap.resamples} resamples."
    )
    table = Table(title=escape(title), caption=caption, title_justify="left", caption_justify="left")
    table.add_column("Measure")
    table.add_column("Value", justify="right")
    table.add_column("95 % interval")
    table.add_column("Note", style="dim")
    for row in measure_rows(evaluation):
        value = "–" if row.value is None else f"{row.value:.3f}"
        interval = "–" if row.low is None or row.high is None else f"{row.low:.3f}–{row.high:.3f}"
        table.add_row(row.title, value, interval, row.note)
    return table
