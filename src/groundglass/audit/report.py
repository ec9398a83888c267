"""An audit as JSON, as tables for the terminal, as Markdown, and as a page with the slices side by side."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import compress
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from rich.markup import escape
from rich.table import Table

from groundglass.audit.audit import Audit, Crossing
from groundglass.audit.duplicates import Affine, Pair, groups_of
from groundglass.audit.shortcuts import Performance, ShortcutBaselines
from groundglass.data.manifest import PARTS, Label, Record, read_pixels
from groundglass.errors import ImageError
from groundglass.evaluation.metrics import Estimate, versions
from groundglass.files import counted, one_line, printable, write_json, write_text
from groundglass.imaging.slice import Grey
from groundglass.reporting.html import DATA_NOTICE, NOTICE, GalleryItem, GalleryPicture, environment
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
    """Write ``audit.json``, ``audit.md`` and ``report.html`` into a folder, or one of them as a file by its suffix.

    ``command`` reproduces the audit.
    """
    kind = output.suffix.lower()
    if kind == ".json":
        write_json(output, document(audited))
    elif kind == ".md":
        write_text(output, audit_markdown(audited, command))
    elif kind == ".html":
        write_text(output, _page(audited, command))
    else:
        for name in ("report.html", "audit.md", "audit.json"):
            write_audit(audited, output / name, command)


def document(audited: Audit) -> dict[str, Any]:
    """Everything that was found, as plain JSON values."""
    groups = groups_of(audited.copies)
    return {
        "format": 3,
        "data": {
            "name": printable(audited.name),
            "root": printable(audited.root),
            "split": audited.split,
            "slices": len(audited.records),
            "parts": audited.parts,
            "unreadable": list(audited.unreadable),
        },
        "warnings": list(audited.warnings()),
        "summary": {
            "copies": len(audited.copies),
            "copies_across_parts": len(audited.leaks),
            "slices_with_copies": sum(map(len, groups)),
            "groups_of_copies": len(groups),
            "label_conflicts": len(audited.conflicts),
            "copies_of_different_patients": len(audited.counted_twice),
            "lookalikes": len(audited.lookalikes),
            "patients_in_several_parts": len(audited.patients),
            "publications_in_several_parts": len(audited.publications),
            "pairs_compared": audited.compared,
        },
        "pairs": [
            {
                "kind": pair.kind,
                "correlation": round(pair.correlation, 4),
                "first": _side(audited, pair.first),
                "second": _side(audited, pair.second),
                "across_parts": pair.across_parts,
                "across_labels": pair.across_labels,
                "across_patients": pair.across_patients,
                "mirrored": pair.mirrored,
                "affine": None if pair.affine is None else np.round(pair.affine, 4).tolist(),
                "overlap": None if pair.affine is None else [round(share, 3) for share in pair.overlap],
            }
            for pair in audited.pairs
        ],
        "patients_in_several_parts": [asdict(crossing) for crossing in audited.patients],
        "sources_in_several_parts": [asdict(crossing) for crossing in audited.sources],
        "shortcuts": None if audited.shortcuts is None else asdict(audited.shortcuts),
        "seconds": round(audited.seconds, 1),
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


def audit_markdown(audited: Audit, command: str) -> str:
    """Warnings, sections and the command that reproduces them as Markdown without pictures, for a CI job's summary."""
    lines = [f"# Audit of {_text(audited.name)}", "", f"{_overview(audited)} Made by:", ""]
    lines += [f"    {printable(' '.join(command.split()))}", ""]
    lines += [f"- {_text(warning)}" for warning in audited.warnings()]
    for section in _sections(audited):
        lines += ["", f"## {section.title}", "", _text(section.words), ""]
        rows = [section.columns, *section.rows]
        table = ["| " + " | ".join(map(_cell, row)) + " |" for row in rows]
        lines += [table[0], "|" + "---|" * len(section.columns), *table[1:]]
    return "\n".join(lines) + "\n"


def _cell(text: str) -> str:
    return "<br>".join(_text(line).replace("|", "\\|") for line in text.split("\n"))


def _text(text: str) -> str:
    """Text that means nothing but itself in Markdown."""
    return re.sub(r"[\\`*_\[\]<>&~]", r"\\\g<0>", " ".join(printable(text).split()))


def _page(audited: Audit, command: str) -> str:
    """The page; the slices of the pairs shown are read once more."""
    pairs, *others = _sections(audited) if audited.pairs else (None, *_sections(audited))
    report = {
        "title": f"Audit of {printable(audited.name)}",
        "subtitle": f"{_overview(audited)} {audited.seconds:.1f} s.",
        "warnings": audited.warnings(),
    }
    pictured = [_item(audited, pair) for pair in audited.pairs[:_PAIRS_PICTURED]]
    shown = {"report": report, "pairs": pairs, "pictured": pictured, "tables": others, "command": command}
    return environment().get_template("audit.html.j2").render(shown, notice=NOTICE, data_notice=DATA_NOTICE)


def _overview(audited: Audit) -> str:
    counts = ", ".join(f"{part} {sum(labels.values())}" for part, labels in audited.parts.items())
    return (
        f"{counted(len(audited.records), 'slice')} ({counts or 'in no parts'}); {audited.compared:,} pairs "
        "that fingerprints proposed were compared."
    )


def _sections(audited: Audit) -> list[Section]:
    """What was found as tables; those without rows are left out."""
    groups = groups_of(audited.copies)
    words = (
        f"{counted(len(audited.copies), 'pair')} of copies in {counted(len(groups), 'group')} of together "
        f"{counted(sum(map(len, groups)), 'slice')}, {len(audited.leaks)} of the pairs across parts, "
        f"{len(audited.conflicts)} with opposite labels; {counted(len(audited.lookalikes), 'pair')} of "
        "lookalikes. Correlation of fine structure, once one slice is registered to the other."
    )
    columns = ("what", "correlation, scale", "slices", "concern")
    crossing = "Slices of one source share window, scanner and layout; large ones may be of many hospitals."
    unreadable = [(line,) for line in audited.unreadable]
    sections = [
        Section(
            "Slices that show the same", words, columns, [_pair_row(audited, pair) for pair in audited.pairs]
        ),
        _crossings("Patients in several parts", "Slices of a patient are alike.", audited.patients),
        _crossings("Sources in several parts", crossing, audited.sources),
        *(_shortcuts(audited.shortcuts) if audited.shortcuts else ()),
        Section("Cannot be read", "Left out of all but the counts.", ("slice",), unreadable),
    ]
    return [section for section in sections if section.rows]


def _pair_row(audited: Audit, pair: Pair) -> tuple[str, ...]:
    kind = {"file": "same file", "pixels": "same pixels"}.get(pair.kind, pair.kind)
    scale = "" if pair.affine is None else f"\n{pair.affine[0][0]:.2f} × {pair.affine[1][1]:.2f}"
    sides = [
        f"{one_line(audited.file(record))} ({record.label_name}, {record.split or 'no part'})"
        for record in (pair.first, pair.second)
    ]
    words = ("opposite labels", "leakage", "other patient")
    concern = compress(words, (pair.across_labels, pair.across_parts, pair.counted_twice))
    figure = f"{pair.correlation:.3f}{scale}"
    return f"{kind}{', mirrored' * pair.mirrored}", figure, "\n".join(sides), "\n".join(concern)


def _crossings(title: str, words: str, crossings: Sequence[Crossing]) -> Section:
    rows = [
        (each.name + " (large)" * each.collection, *(str(each.parts.get(part, 0)) for part in PARTS))
        for each in sorted(crossings, key=lambda each: (each.collection, each.name))
    ]
    return Section(title, words, ("", *PARTS), rows)


def _shortcuts(measured: ShortcutBaselines) -> Iterator[Section]:
    labels = tuple(label.value for label in Label)
    rows = [
        (name, *(str(counts[label]) for label in labels)) for name, counts in measured.file_formats.items()
    ]
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
    columns = ("seen", "AUC, cross-validated", "accuracy", "AUC, tested", "accuracy", "most telling")
    shown = [
        (one.title, *_figures(one.cross_validated), *_figures(one.tested), one.telling[0])
        for one in measured.baselines
    ]
    yield Section(title, words, columns, shown)


def _figures(measured: Performance | None) -> tuple[str, str]:
    return ("–", "–") if measured is None else (_figure(measured.auc), _figure(measured.accuracy))


def _figure(figure: Estimate) -> str:
    interval = "" if figure.low is None else f" ({figure.low:.3f}–{figure.high:.3f})"
    return f"{figure.value:.3f}{interval}"


def _item(audited: Audit, pair: Pair) -> GalleryItem:
    kind, correlation, _, concern = _pair_row(audited, pair)
    sides = (_side(audited, pair.first), _side(audited, pair.second))
    facts = [", ".join(f"{name} {value}" for name, value in side.items() if value) for side in sides]
    if pair.affine is not None:
        one, other = (min(share, 1) for share in pair.overlap)
        facts.append(f"What both show is {one:.0%} of the first and {other:.0%} of the second")
    title = f"{kind.capitalize()}, correlation {correlation}".replace("\n", ", scale ")
    return GalleryItem(title, [*concern.split("\n"), *facts], _pictures(pair))


def _pictures(pair: Pair) -> list[GalleryPicture]:
    try:
        first, second = read_pixels(pair.first), read_pixels(pair.second)
    except ImageError:  # gone since it was audited
        return []
    shown = [("first", "The first slice as stored", first), ("second", "The second slice as stored", second)]
    if pair.affine is not None:
        first = np.ascontiguousarray(first[:, ::-1]) if pair.mirrored else first
        difference = _difference(np.array(pair.affine), first, second)
        shown.append(("difference", "Difference of the slices, once registered", difference))
    address = "data:image/jpeg;base64,"
    return [GalleryPicture(name, words, address + jpeg(each, _SIDE, _QUALITY)) for name, words, each in shown]


def _difference(affine: Affine, first: Grey, second: Grey) -> Grey:
    """Absolute difference where both show something, the first one's grey values brought to the second's."""
    size = (second.shape[1], second.shape[0])
    covered = cv2.warpAffine(np.ones_like(first), affine, size, flags=cv2.INTER_NEAREST) > 0
    placed = cv2.warpAffine(first, affine, size).astype(np.float32)
    if covered.sum() < 2 or float(placed[covered].std()) < 1:
        return np.zeros_like(second)
    slope, offset = np.polyfit(placed[covered], second[covered].astype(np.float32), 1)
    return np.asarray(np.clip(np.abs(placed * slope + offset - second) * covered, 0, 255), np.uint8)
