"""An audit as tables for the terminal."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich.markup import escape
from rich.table import Table

from groundglass.data.audit import Crossing, file_name, writable
from groundglass.data.duplicates import Pair
from groundglass.data.manifest import PARTS, Label
from groundglass.evaluation.audit import Audit, label_name
from groundglass.evaluation.shortcuts import Judgement
from groundglass.evaluation.stated import Figure

PAIRS_SHOWN = 40
_CROSSINGS_SHOWN = 15


def audit_tables(audited: Audit) -> Iterator[Table]:
    """Tables of pairs, patients and sources in several parts, containers, shortcuts; empty ones left out."""
    if audited.pairs:
        yield _pairs(audited)
    if audited.patients:
        yield _crossings("Patients in several parts", audited.patients)
    if audited.sources:
        yield _crossings("Sources in several parts", audited.sources)
    if audited.shortcuts is not None:
        yield _containers(audited.shortcuts.containers)
        yield _shortcuts(audited)
    if audited.unreadable:
        table = Table(title=f"{len(audited.unreadable)} slices cannot be read", show_header=False)
        for line in audited.unreadable[:PAIRS_SHOWN]:
            table.add_row(escape(line))
        yield table


def _table(title: str, caption: str = "") -> Table:
    return Table(title=title, caption=caption or None, title_justify="left", caption_justify="left")


def _pairs(audited: Audit) -> Table:
    shown = audited.pairs[:PAIRS_SHOWN]
    rest = len(audited.pairs) - len(shown)
    caption = "Correlation of fine structure once one slice is registered to the other. "
    caption += f"{rest} pairs more: see --json or --output." if rest else ""
    table = _table(f"{escape(writable(audited.name))}: slices that show the same", caption.strip())
    table.show_lines = True
    table.add_column("")
    table.add_column("slices", overflow="fold")
    table.add_column("", style="bold")
    for pair in shown:
        sides = [
            f"[dim]{label_name(record)}, {record.split or 'no part'}:[/] " + escape(file_name(record))
            for record in (pair.first, pair.second)
        ]
        what = f"{kind_in_words(pair)}\n{pair.correlation:.3f}"
        table.add_row(what, "\n".join(sides), "\n".join(concerns(pair)))
    return table


def kind_in_words(pair: Pair) -> str:
    """``same file``, ``same pixels``, ``copy`` or ``lookalike``, and whether mirrored."""
    words = {"file": "same file", "pixels": "same pixels"}.get(pair.kind, pair.kind)
    return f"{words}, mirrored" if pair.mirrored else words


def concerns(pair: Pair) -> list[str]:
    """What is wrong with a pair: ``opposite labels``, ``leakage``, ``other patient``."""
    known = pair.first.patient_known and pair.second.patient_known
    return [
        words
        for words, holds in (
            ("opposite labels", pair.across_labels),
            ("leakage", pair.across_parts),
            ("other patient", pair.across_patients and known),
        )
        if holds
    ]


def _crossings(title: str, crossings: Sequence[Crossing]) -> Table:
    shown = sorted(crossings, key=lambda crossing: (crossing.collection, crossing.name))[:_CROSSINGS_SHOWN]
    rest = len(crossings) - len(shown)
    table = _table(title, f"{rest} more: see --json or --output." if rest else "")
    table.add_column("")
    for part in PARTS:
        table.add_column(part, justify="right")
    for crossing in shown:
        name = f"{crossing.name} (a collection)" if crossing.collection else crossing.name
        table.add_row(escape(name), *(str(crossing.parts.get(part, 0)) for part in PARTS))
    return table


def _containers(containers: dict[str, dict[str, int]]) -> Table:
    table = _table("Container, pixel mode, suffix")
    table.add_column("")
    for label in Label:
        table.add_column(label.value, justify="right")
    for name, counts in containers.items():
        table.add_row(escape(name), *(str(counts[label.value]) for label in Label))
    return table


def _shortcuts(audited: Audit) -> Table:
    measured, network = audited.shortcuts, audited.network
    if measured is None or measured.reason:
        return _table("Shortcuts: not measured", measured.reason if measured and measured.reason else "")
    caption = (
        f"95 % intervals over patients. Cross-validated over {measured.folds} folds of patients; tested: "
        "fitted on the train part, judged on the test part."
    )
    if network is not None:
        caption += f" {network.name}: {network.part} part, {network.slices} slices, {network.bounds}."
    table = _table("How well the label is told without a lung", caption)
    table.add_column("seen", overflow="fold")
    for name in ("AUC, cross-\nvalidated", "accuracy", "AUC,\ntested", "accuracy"):
        table.add_column(name, justify="right")
    for baseline in measured.baselines:
        table.add_row(baseline.title, *_judged(baseline.cross_validated), *_judged(baseline.tested))
    if network is not None:
        figures = [_figure(network.auc), _figure(network.accuracy)]
        table.add_row(f"[bold]{escape(network.name)}[/]", "", "", *figures)
    return table


def _judged(judgement: Judgement | None) -> tuple[str, str]:
    if judgement is None:
        return "–", "–"
    return _figure(judgement.auc), _figure(judgement.accuracy)


def _figure(figure: Figure) -> str:
    """``0.902`` and, below it, ``0.852–0.940``."""
    if figure.low is None or figure.high is None:
        return f"{figure.value:.3f}"
    return f"{figure.value:.3f}\n{figure.low:.3f}–{figure.high:.3f}"
