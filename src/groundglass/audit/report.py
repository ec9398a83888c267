"""An audit as JSON, as tables for the terminal, and as a page with the slices side by side."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from itertools import compress
from pathlib import Path
from typing import Any

from rich.markup import escape
from rich.table import Table

from groundglass.audit.audit import Audit
from groundglass.audit.duplicates import Pair
from groundglass.audit.shortcuts import ShortcutBaselines
from groundglass.data.manifest import PARTS, Label, Record, read_pixels
from groundglass.data.splits import Crossings
from groundglass.errors import ImageError
from groundglass.evaluation.metrics import versions
from groundglass.files import counted, one_line, printable, write_json, write_text
from groundglass.reporting.html import DATA_NOTICE, NOTICE, environment
from groundglass.reporting.overlay import jpeg

_ROWS_SHOWN, _PAIRS_PICTURED = 40, 100  # on the terminal and on the page; the other outputs have them all
# A JPEG is a fifth of a PNG, and fine enough to compare.
_SIDE, _QUALITY = 300, 85


@dataclass(frozen=True)
class Section:
    """A table of the report: heading, words with it, names of the columns, rows of plain text."""

    title: str
    words: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]


def write_audit(audited: Audit, output: Path, command: str) -> None:
    """Write ``audit.json`` and ``report.html`` into a folder; ``command`` reproduces the audit."""
    write_json(output / "audit.json", document(audited))
    write_text(output / "report.html", _page(audited, command))


def document(audited: Audit) -> dict[str, Any]:
    """Everything that was found, as plain JSON values."""
    return {
        "format": 4,
        "data": {
            "name": printable(audited.data.name),
            "root": printable(audited.data.root),
            "split": audited.split,
            "slices": len(audited.data),
            "parts": audited.parts,
            "unreadable": list(audited.unreadable),
        },
        "warnings": list(audited.warnings()),
        "summary": {name: len(found) for name, found in {**audited.kinds, **audited.crossings}.items()},
        "pairs": [
            {
                "kind": pair.kind,
                "correlation": round(pair.correlation, 4),
                "first": _side(audited, pair.first),
                "second": _side(audited, pair.second),
                "across_parts": pair.across_parts,
                "across_labels": pair.across_labels,
                "across_patients": pair.across_patients,
            }
            for pair in audited.pairs
        ],
        **{
            name: [{"name": each, "parts": parts} for each, parts in found.items()]
            for name, found in audited.crossings.items()
        },
        "shortcuts": None if audited.shortcuts is None else asdict(audited.shortcuts),
        "versions": versions(),
    }


def _side(audited: Audit, record: Record) -> dict[str, str | None]:
    return {
        "file": audited.file(record),
        "label": record.label.value if record.label else None,
        "part": record.split,
        "patient": printable(record.patient_id) if record.patient_known else None,
        "source": printable(record.source),
    }


def audit_tables(audited: Audit) -> Iterator[Table]:
    """The sections as tables for the terminal, at most 40 rows of each."""
    for section in _sections(audited):
        rest = len(section.rows) - _ROWS_SHOWN
        caption = section.words + (f" {rest} more: see --json or --output." if rest > 0 else "")
        table = Table(title=section.title, title_justify="left", caption=caption, caption_justify="left")
        shown = [column != "accuracy" for column in section.columns]  # too wide for terminals
        for column in compress(section.columns, shown):
            table.add_column(column, overflow="fold")
        for row in section.rows[:_ROWS_SHOWN]:
            table.add_row(*map(escape, compress(row, shown)))
        yield table


def _page(audited: Audit, command: str) -> str:
    """The page; the slices of the pairs shown are read once more."""
    parts = ", ".join(f"{part} {sum(labels.values())}" for part, labels in audited.parts.items())
    pairs, *others = _sections(audited) if audited.pairs else (None, *_sections(audited))
    report = {
        "title": f"Audit of {printable(audited.data.name)}",
        "subtitle": f"{counted(len(audited.data), 'slice')} ({parts or 'in no parts'})",
        "warnings": audited.warnings(),
    }
    pictured = [_pictured(audited, pair) for pair in audited.pairs[:_PAIRS_PICTURED]]
    shown = {"report": report, "pairs": pairs, "pictured": pictured, "tables": others, "command": command}
    return environment().get_template("audit.html.j2").render(shown, notice=NOTICE, data_notice=DATA_NOTICE)


def _sections(audited: Audit) -> list[Section]:
    """What was found as tables; those without rows are left out."""
    copies, leaks, conflicts, _, lookalikes = map(len, audited.kinds.values())
    words = (
        f"{counted(copies, 'pair')} of copies, {leaks} across parts, {conflicts} with opposite labels; "
        f"{counted(lookalikes, 'pair')} of lookalikes. Correlation of fine structure, once one slice is registered to "
        "the other."
    )
    columns = ("what", "correlation", "slices", "concern")
    patients, sources = audited.crossings.values()
    crossing = "Slices of one source share window, scanner and layout."
    unreadable = [(line,) for line in audited.unreadable]
    sections = [
        Section("Slices that show the same", words, columns, [_pair_row(audited, pair) for pair in audited.pairs]),
        _crossings("Patients in several parts", "Slices of a patient are alike.", patients),
        _crossings("Sources in several parts", crossing, sources),
        *(_shortcuts(audited.shortcuts) if audited.shortcuts else ()),
        Section("Cannot be read", "Left out of all but the counts.", ("slice",), unreadable),
    ]
    return [section for section in sections if section.rows]


def _pair_row(audited: Audit, pair: Pair) -> tuple[str, ...]:
    kind = {"file": "same file", "pixels": "same pixels"}.get(pair.kind, pair.kind)
    sides = [
        f"{one_line(audited.file(record))} ({record.label_name}, {record.split or 'no part'})"
        for record in (pair.first, pair.second)
    ]
    words = ("opposite labels", "leakage", "other patient")
    concern = compress(words, (pair.across_labels, pair.across_parts, pair.counted_twice))
    return kind, f"{pair.correlation:.3f}", "\n".join(sides), "\n".join(concern)


def _crossings(title: str, words: str, crossings: Crossings) -> Section:
    rows = [(name, *(str(parts.get(part, 0)) for part in PARTS)) for name, parts in crossings.items()]
    return Section(title, words, ("", *PARTS), rows)


def _shortcuts(measured: ShortcutBaselines) -> Iterator[Section]:
    labels = tuple(label.value for label in Label)
    rows = [(name, *(str(counts[label]) for label in labels)) for name, counts in measured.file_formats.items()]
    words = "Where the columns differ, the file gives its label away."
    yield Section("File format, pixel mode and suffix", words, ("", *labels), rows)
    title = "How well the label is predicted without a lung"
    if measured.reason:
        yield Section(title, "", ("not measured",), [(measured.reason,)])
        return
    words = (
        f"Small models, 95 % intervals over patients, seed {measured.seed}. Cross-validated over "
        f"{measured.folds} folds of patients; tested: fitted on the train part, evaluated on the test part."
    )
    columns = ("seen", "AUC, cross-validated", "accuracy", "AUC, tested", "accuracy")
    shown = []
    for one in measured.baselines:
        tested = ("–", "–") if one.tested is None else (str(one.tested.auc), str(one.tested.accuracy))
        shown.append((one.title, str(one.cross_validated.auc), str(one.cross_validated.accuracy), *tested))
    yield Section(title, words, columns, shown)


def _pictured(audited: Audit, pair: Pair) -> dict[str, Any]:
    """A pair with its facts and its two slices as JPEG."""
    kind, correlation, _, concern = _pair_row(audited, pair)
    records, pictures = {"first": pair.first, "second": pair.second}, dict[str, str]()
    sides = [_side(audited, record) for record in records.values()]
    facts = [", ".join(f"{name} {value}" for name, value in side.items() if value) for side in sides]
    with suppress(ImageError):  # gone since it was audited
        pictures = {name: jpeg(read_pixels(record), _SIDE, _QUALITY) for name, record in records.items()}
    title = f"{kind.capitalize()}, correlation {correlation}"
    return {"title": title, "facts": [*concern.split("\n"), *facts], "pictures": pictures}
