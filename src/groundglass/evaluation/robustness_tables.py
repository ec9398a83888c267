"""Evaluation in one container and without contradicting slices, as Markdown tables and JSON."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from groundglass.atomic import write_json, write_text
from groundglass.evaluation.conditions import ConditionDifference, ConditionFigures
from groundglass.evaluation.experiment_tables import spread_cell
from groundglass.evaluation.markdown import section, signed, table
from groundglass.evaluation.metrics import TITLES
from groundglass.evaluation.robustness import Robustness, RowFigures

JSON, MARKDOWN = "robustness.json", "robustness.md"
BEGIN, END = "<!-- robustness:begin -->", "<!-- robustness:end -->"

_MEASURES = ("auc", "accuracy", "recall", "specificity")


def write_robustness(report: Robustness, output: Path, command: str) -> None:
    """Write ``robustness.json`` and ``robustness.md``."""
    write_json(output / JSON, report.as_json(command))
    write_text(output / MARKDOWN, robustness_tables(report))


def robustness_tables(report: Robustness) -> str:
    """All tables, one section for each row of networks."""
    part = report.part
    lines = [
        f"{part.title}: {len(part.records)} slices, {int(part.label.sum())} of them COVID. "
        f"{_left_out(report.left_out)}± the standard deviation over seeds; in brackets 95 % intervals by "
        f"{report.resamples:,} resamples of patients, the same for all conditions, so that differences are "
        "paired.",
        "",
    ]
    for model, row in zip(report.models, report.rows, strict=True):
        title = f"{row.name} ({model.network}, split `{model.split}`, seeds {model.seeds})"
        lines += section(title, _row(row))
    return "\n".join(lines)


def _left_out(files: Sequence[str] | None) -> str:
    if files is None:
        return ""
    names = f" ({', '.join(f'`{file}`' for file in files)})" if files else ""
    return f"Conflicting twins, which have a copy with the opposite label: {len(files)}{names}. "


def _row(row: RowFigures) -> Iterator[str]:
    head = ["Slices", "Number", *(TITLES[name] for name in _MEASURES), "Calls changed"]
    yield from table(head, [_condition(each) for each in row.conditions])
    yield ""
    rows = [_difference(each, difference) for each in row.conditions for difference in each.differences]
    yield from table(["Condition", "Less", "Measure", "Difference", "p"], rows)
    if row.warnings:
        yield ""
        yield from (f"- {warning}" for warning in row.warnings)


def _condition(figures: ConditionFigures) -> Sequence[object]:
    changed = sum(figures.changed) / len(figures.changed)
    return (
        figures.title,
        figures.slices,
        *(spread_cell(figures.measures[name]) for name in _MEASURES),
        f"{changed:.1f}" if len(figures.changed) > 1 else f"{changed:.0f}",
    )


def _difference(figures: ConditionFigures, difference: ConditionDifference) -> Sequence[object]:
    value, low, high = (
        "–" if number is None else signed(number, 3)
        for number in (difference.value, difference.low, difference.high)
    )
    interval = "" if difference.low is None else f" ({low} to {high})"
    p = "–" if difference.p is None else f"{difference.p:.3f}"
    return figures.title, difference.second, TITLES[difference.measure], f"{value}{interval}", p
