"""An audit as Markdown without pictures: for a results folder, or the summary of a CI job."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from groundglass.data.audit import Crossing, counted, file_name, writable
from groundglass.data.duplicates import Pair, groups_of
from groundglass.data.manifest import PARTS, Label, Record
from groundglass.evaluation.audit import Audit, label_name
from groundglass.evaluation.audit_tables import concerns, kind_in_words
from groundglass.evaluation.shortcuts import Judgement
from groundglass.evaluation.stated import Figure

PAIRS_SHOWN = 200

BEGIN, END = "<!-- audit:begin -->", "<!-- audit:end -->"
"""Where in a Markdown file the tables stand."""


def audit_markdown(audited: Audit, command: str, level: int = 1) -> str:
    """Warnings, pairs, patients and sources in several parts, containers and shortcuts.

    Args:
        audited: what was found.
        command: reproduces the audit.
        level: of the title among the headings of the document it is to stand in, 1 to 5.
    """
    counts = ", ".join(f"{part} {sum(labels.values())}" for part, labels in audited.parts.items())
    lines = [
        f"{'#' * level} Audit of {_text(writable(audited.name))}",
        "",
        f"{len(audited.records)} slices ({counts or 'in no parts'}); {audited.compared:,} pairs that "
        f"perceptual hashes proposed were compared. Made by {_code(command)}.",
        "",
        *(f"- {_text(warning)}" for warning in audited.warnings()),
    ]
    for title, section in (
        ("Slices that show the same", _pairs(audited)),
        ("Patients in several parts", _crossings(audited.patients)),
        ("Sources in several parts", _crossings(audited.sources)),
        ("Container, pixel mode and suffix", _containers(audited)),
        ("How well the label is told without a lung", _shortcuts(audited)),
        ("Cannot be read", (f"- {_text(line)}" for line in audited.unreadable)),
    ):
        if content := list(section):
            lines += ["", f"{'#' * (level + 1)} {title}", "", *content]
    return "\n".join(lines) + "\n"


def _pairs(audited: Audit) -> Iterator[str]:
    groups = groups_of(audited.copies)
    across = sum(pair.across_parts for pair in audited.copies)
    yield (
        f"{counted(len(audited.copies), 'pair')} of copies in {counted(len(groups), 'group')} of together "
        f"{counted(sum(map(len, groups)), 'slice')}, {across} of the pairs "
        f"across parts, {len(audited.conflicts)} with opposite labels; "
        f"{counted(len(audited.lookalikes), 'pair')} of lookalikes."
    )
    if not audited.pairs:
        return
    shown = audited.pairs[:PAIRS_SHOWN]
    if len(shown) < len(audited.pairs):
        yield f"Shown: {len(shown)} of {len(audited.pairs)} pairs."
    yield ""
    columns = ("what", "correlation", "first", "label, part", "second", "label, part", "scale", "")
    yield from _table(columns, [_pair_row(pair) for pair in shown])


def _pair_row(pair: Pair) -> tuple[str, ...]:
    def place(record: Record) -> str:
        return f"{label_name(record)}, {record.split or 'no part'}"

    scale = ""
    if pair.registration is not None:
        scale = " × ".join(f"{side:.2f}" for side in pair.registration.scale)
    sides = [
        text for record in (pair.first, pair.second) for text in (_code(file_name(record)), place(record))
    ]
    return kind_in_words(pair), f"{pair.correlation:.3f}", *sides, scale, ", ".join(concerns(pair))


def _crossings(crossings: Sequence[Crossing]) -> Iterator[str]:
    if not crossings:
        return
    ordered = sorted(crossings, key=lambda crossing: (crossing.collection, crossing.name))
    rows = [
        (
            f"{_text(crossing.name)}{' (a collection)' if crossing.collection else ''}",
            *(str(crossing.parts.get(part, 0)) for part in PARTS),
        )
        for crossing in ordered
    ]
    yield from _table(("", *PARTS), rows)


def _containers(audited: Audit) -> Iterator[str]:
    if audited.shortcuts is None or not audited.shortcuts.containers:
        return
    rows = [
        (_text(name), *(str(counts[label.value]) for label in Label))
        for name, counts in audited.shortcuts.containers.items()
    ]
    yield from _table(("", *(label.value for label in Label)), rows)


def _shortcuts(audited: Audit) -> Iterator[str]:
    measured, network = audited.shortcuts, audited.network
    if measured is None:
        return
    if measured.reason:
        yield f"Not measured: {measured.reason}."
        return
    yield (
        f"Small models, 95 % intervals over patients, seed {measured.seed}. Cross-validated over "
        f"{measured.folds} folds of patients; tested: fitted on the train part, judged on the test part."
    )
    yield ""
    rows = [
        (
            baseline.title,
            *_judged(baseline.cross_validated),
            *_judged(baseline.tested),
            _text(baseline.telling[0]),
        )
        for baseline in measured.baselines
    ]
    if network is not None:
        where = f"{network.name} ({network.part} part, {network.slices} slices; {network.bounds})"
        rows.append((_text(where), "", "", _figure(network.auc), _figure(network.accuracy), ""))
    columns = ("seen", "AUC, cross-validated", "accuracy", "AUC, tested", "accuracy", "most telling")
    yield from _table(columns, rows)


def _judged(judgement: Judgement | None) -> tuple[str, str]:
    return ("–", "–") if judgement is None else (_figure(judgement.auc), _figure(judgement.accuracy))


def _figure(figure: Figure) -> str:
    if figure.low is None or figure.high is None:
        return f"{figure.value:.3f}"
    return f"{figure.value:.3f} ({figure.low:.3f}–{figure.high:.3f})"


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """A table of cells that are Markdown already."""
    yield "| " + " | ".join(columns) + " |"
    yield "|" + "---|" * len(columns)
    for row in rows:
        yield "| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |"


def _text(text: str) -> str:
    """Text that means nothing but itself in Markdown."""
    return re.sub(r"[\\`*_\[\]<>&~]", r"\\\g<0>", " ".join(text.split()))


def _code(text: str) -> str:
    """Text as code, in more backticks than it holds in a row."""
    fence = "`" * (1 + max(map(len, re.findall("`+", text)), default=0))
    space = " " if text.startswith("`") or text.endswith("`") else ""
    line = re.sub(r"[\r\n]+", " ", text)
    return f"{fence}{space}{line}{space}{fence}"
