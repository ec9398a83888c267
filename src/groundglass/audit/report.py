"""An audit as JSON, as tables for the terminal, as Markdown, and as a page with the slices side by side."""

from __future__ import annotations

import base64
import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from rich.markup import escape
from rich.table import Table

from groundglass.audit.audit import SHORTCUT_AUC, Audit, Crossing
from groundglass.audit.duplicates import COPY_CORRELATION, LOOKALIKE_CORRELATION, Pair, groups_of
from groundglass.audit.shortcuts import Figure, Performance
from groundglass.data.describe import label_name
from groundglass.data.manifest import PARTS, Label, Record, read_pixels
from groundglass.errors import ImageError
from groundglass.evaluation.metrics import versions
from groundglass.files import counted, printable, write_json, write_text
from groundglass.imaging.slice import Grey
from groundglass.reporting.html import DATA_NOTICE, NOTICE, GalleryItem, GalleryPicture, environment
from groundglass.reporting.overlay import fit

_PAIRS_SHOWN = 40  # of each kind on the page, and in all on the terminal; the other outputs have them all
_SIDE = 300


@dataclass(frozen=True)
class Section:
    """A table of the report: heading, words with it, names of the columns, rows of plain text."""

    title: str
    words: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True)
class Tile:
    """A figure in large print, and whether it is bad news."""

    title: str
    value: str
    note: str
    alarming: bool = False


@dataclass(frozen=True)
class PairGroup:
    """Pairs of one kind with their pictures; ``words`` introduces them or says that there are none."""

    title: str
    words: str
    pairs: Sequence[GalleryItem]


@dataclass(frozen=True)
class Page:
    """Everything that the page says, in its order."""

    title: str
    subtitle: str
    warnings: Sequence[str]
    tiles: Sequence[Tile]
    groups: Sequence[PairGroup]
    sections: Sequence[Section]
    facts: Sequence[tuple[str, str]]
    command: str


def write_audit(audited: Audit, output: Path, command: str) -> None:
    """Write ``audit.json``, ``audit.md`` and ``report.html`` into a folder, or one of them as a file.

    Args:
        audited: what was found.
        output: a folder, created where it is missing, or a file that ends in .json, .md or .html.
        command: reproduces the audit.
    """
    kind = output.suffix.lower()
    if kind == ".json":
        write_json(output, document(audited))
    elif kind == ".md":
        write_text(output, audit_markdown(audited, command))
    elif kind == ".html":
        template = environment().get_template("audit.html.j2")
        page = _page(audited, command)
        write_text(output, template.render(report=page, notice=NOTICE, data_notice=DATA_NOTICE))
    else:
        for name in ("report.html", "audit.md", "audit.json"):
            write_audit(audited, output / name, command)


def document(audited: Audit) -> dict[str, Any]:
    """Everything that was found, as plain JSON values."""
    groups = groups_of(audited.copies)
    return {
        "format": 2,
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
        "pairs": [_pair_document(audited, pair) for pair in audited.pairs],
        "patients_in_several_parts": [asdict(crossing) for crossing in audited.patients],
        "sources_in_several_parts": [asdict(crossing) for crossing in audited.sources],
        "shortcuts": None if audited.shortcuts is None else asdict(audited.shortcuts),
        "network": None if audited.network is None else asdict(audited.network),
        "seconds": round(audited.seconds, 1),
        "versions": versions(),
    }


def audit_tables(audited: Audit) -> Iterator[Table]:
    """The sections as tables for the terminal, at most 40 rows of each."""
    for section in _sections(audited):
        rest = len(section.rows) - _PAIRS_SHOWN
        caption = section.words + (f" {rest} more: see --json or --output." if rest > 0 else "")
        table = Table(title=section.title, title_justify="left", caption=caption, caption_justify="left")
        for column in section.columns:
            table.add_column(column, overflow="fold")
        for row in section.rows[:_PAIRS_SHOWN]:
            table.add_row(*map(escape, row))
        yield table


def audit_markdown(audited: Audit, command: str) -> str:
    """Warnings and sections as Markdown without pictures: for a results folder, or a CI job's summary.

    Args:
        audited: what was found.
        command: reproduces the audit.
    """
    counts = ", ".join(f"{part} {sum(labels.values())}" for part, labels in audited.parts.items())
    lines = [
        f"# Audit of {_text(printable(audited.name))}",
        "",
        f"{counted(len(audited.records), 'slice')} ({counts or 'in no parts'}); {audited.compared:,} pairs "
        "that fingerprints proposed were compared. Made by:",
        "",
        f"    {printable(' '.join(command.split()))}",
        "",
        *(f"- {_text(warning)}" for warning in audited.warnings()),
    ]
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


def _sections(audited: Audit) -> Iterator[Section]:
    """What was found as tables; those without rows are left out."""
    groups = groups_of(audited.copies)
    words = (
        f"{counted(len(audited.copies), 'pair')} of copies in {counted(len(groups), 'group')} of together "
        f"{counted(sum(map(len, groups)), 'slice')}, {len(audited.leaks)} of the pairs across parts, "
        f"{len(audited.conflicts)} with opposite labels; {counted(len(audited.lookalikes), 'pair')} of "
        "lookalikes. Correlation of fine structure, once one slice is registered to the other."
    )
    columns = ("what", "correlation, scale", "slices", "concern")
    pairs = [_pair_row(pair) for pair in audited.pairs]
    crossing = "Slices of one publication share window, scanner and layout; collections hold many hospitals."
    labels = tuple(label.value for label in Label)
    sections = [
        Section("Slices that show the same", words, columns, pairs),
        _crossings("Patients in several parts", "Slices of a patient are alike.", audited.patients),
        _crossings("Sources in several parts", crossing, audited.sources),
    ]
    if audited.shortcuts is not None:
        formats = audited.shortcuts.file_formats.items()
        rows = [(name, *(str(counts[label]) for label in labels)) for name, counts in formats]
        words = "Where the columns differ, the file gives its label away."
        sections.append(Section("File format, pixel mode and suffix", words, ("", *labels), rows))
        sections.append(_shortcuts(audited))
    unreadable = [(line,) for line in audited.unreadable]
    sections.append(Section("Cannot be read", "Left out of all but the counts.", ("slice",), unreadable))
    return (section for section in sections if section.rows)


def _pair_row(pair: Pair) -> tuple[str, ...]:
    scale = "" if pair.registration is None else "\n{:.2f} × {:.2f}".format(*pair.registration.scale)
    sides = [
        f"{_name(record)} ({label_name(record)}, {record.split or 'no part'})"
        for record in (pair.first, pair.second)
    ]
    known = pair.first.patient_known and pair.second.patient_known
    concerns = {
        "opposite labels": pair.across_labels,
        "leakage": pair.across_parts,
        "other patient": pair.across_patients and known,
    }
    held = "\n".join(words for words, holds in concerns.items() if holds)
    return _kind(pair), f"{pair.correlation:.3f}{scale}", "\n".join(sides), held


def _name(record: Record) -> str:
    return " ".join(printable(record.path.name).split())


def _kind(pair: Pair) -> str:
    words = {"file": "same file", "pixels": "same pixels"}.get(pair.kind, pair.kind)
    return f"{words}, mirrored" if pair.mirrored else words


def _crossings(title: str, words: str, crossings: Sequence[Crossing]) -> Section:
    ordered = sorted(crossings, key=lambda crossing: (crossing.collection, crossing.name))
    rows = [
        (
            f"{crossing.name} (a collection)" if crossing.collection else crossing.name,
            *(str(crossing.parts.get(part, 0)) for part in PARTS),
        )
        for crossing in ordered
    ]
    return Section(title, words, ("", *PARTS), rows)


def _shortcuts(audited: Audit) -> Section:
    measured, network = audited.shortcuts, audited.network
    title = "How well the label is predicted without a lung"
    if measured is None or measured.reason:
        reason = measured.reason if measured and measured.reason else ""
        return Section(title, "", ("not measured",), [(reason,)])
    words = (
        f"Small models, 95 % intervals over patients, seed {measured.seed}. Cross-validated over "
        f"{measured.folds} folds of patients; tested: fitted on the train part, evaluated on the test part."
    )
    rows = [
        (one.title, *_performance(one.cross_validated), *_performance(one.tested), one.telling[0])
        for one in measured.baselines
    ]
    if network is not None:
        about = f"{network.name} ({network.part} part, {network.slices} slices; {network.bounds})"
        rows.append((printable(about), "", "", _figure(network.auc), _figure(network.accuracy), ""))
    columns = ("seen", "AUC, cross-validated", "accuracy", "AUC, tested", "accuracy", "most telling")
    return Section(title, words, columns, rows)


def _performance(measured: Performance | None) -> tuple[str, str]:
    return ("–", "–") if measured is None else (_figure(measured.auc), _figure(measured.accuracy))


def _figure(figure: Figure) -> str:
    if figure.low is None or figure.high is None:
        return f"{figure.value:.3f}"
    return f"{figure.value:.3f} ({figure.low:.3f}–{figure.high:.3f})"


def _pair_document(audited: Audit, pair: Pair) -> dict[str, Any]:
    def side(record: Record) -> dict[str, Any]:
        return {
            "file": audited.file(record),
            "label": record.label.value if record.label else None,
            "part": record.split,
            "patient": printable(record.patient_id) if record.patient_known else None,
            "source": printable(record.source),
        }

    registered = pair.registration
    return {
        "kind": pair.kind,
        "correlation": round(pair.correlation, 4),
        "first": side(pair.first),
        "second": side(pair.second),
        "across_parts": pair.across_parts,
        "across_labels": pair.across_labels,
        "across_patients": pair.across_patients,
        "mirrored": pair.mirrored,
        "affine": None if registered is None else np.round(registered.affine, 4).tolist(),
        "overlap": None if registered is None else [round(share, 3) for share in registered.overlap],
    }


def _page(audited: Audit, command: str) -> Page:
    """Everything that the page says. The slices of the pairs shown are read once more."""
    labels = [label_name(record) for record in audited.records]
    per_label = ", ".join(f"{labels.count(label)} {label}" for label in sorted(set(labels)))
    parts = ", ".join(f"{part} {sum(counts.values())}" for part, counts in audited.parts.items())
    return Page(
        title=f"Audit of {printable(audited.name)}",
        subtitle=f"{counted(len(labels), 'slice')}: {per_label}. Parts: {parts or 'none'}.",
        warnings=audited.warnings(),
        tiles=_tiles(audited),
        groups=[_group(audited, *group) for group in _grouped(audited)],
        sections=[section for section in _sections(audited) if section.columns[0] != "what"],
        facts=[
            ("Data set", f"{printable(audited.name)}, {printable(audited.root)}"),
            ("Parts", f"split {audited.split}" if audited.split else "the data set's own"),
            ("Pairs compared", f"{audited.compared:,} that fingerprints proposed"),
            ("Called a copy", f"from a correlation of {COPY_CORRELATION:g} of fine structure on"),
            ("Audited", f"in {audited.seconds:.1f} s"),
            ("Audited with", ", ".join(f"{name} {version}" for name, version in versions().items())),
        ],
        command=command,
    )


def _tiles(audited: Audit) -> list[Tile]:
    slices = sum(map(len, groups_of(audited.copies)))
    tiles = [Tile("Pairs of copies", str(len(audited.copies)), f"{counted(slices, 'slice')} in them")]
    for title, found, note in (
        ("of these in different parts", audited.leaks, "leakage"),
        ("with opposite labels", audited.conflicts, "one label of each is wrong"),
        ("Patients in several parts", audited.patients, "leakage"),
        ("Publications in several parts", audited.publications, "same window, scanner, layout"),
    ):
        tiles.append(Tile(title, str(len(found)), note, bool(found)))
    strongest = audited.shortcuts.strongest if audited.shortcuts else None
    if strongest is not None:
        auc = strongest.cross_validated.auc.value
        tiles.append(Tile("Strongest shortcut, AUC", f"{auc:.3f}", strongest.title, auc >= SHORTCUT_AUC))
    return tiles


def _grouped(audited: Audit) -> Iterator[tuple[str, str, Sequence[Pair]]]:
    agreeing = [pair for pair in audited.copies if not pair.across_labels]
    yield "Copies with opposite labels", "The same slice, once COVID and once NonCOVID.", audited.conflicts
    across = [pair for pair in agreeing if pair.across_parts]
    yield "Copies in different parts", "Trained on and evaluated on: figures are too good.", across
    within = [pair for pair in agreeing if not pair.across_parts]
    yield "Copies within a part", "They count twice, and a random split would separate them.", within
    words = (
        f"Correlation {LOOKALIKE_CORRELATION:g} to {COPY_CORRELATION:g}: most often neighbouring slices of "
        "one patient who has two names."
    )
    yield "Lookalikes of different patients", words, audited.lookalikes


def _group(audited: Audit, title: str, words: str, pairs: Sequence[Pair]) -> PairGroup:
    if not pairs:
        return PairGroup(title, "None.", ())
    shown = [_item(audited, pair) for pair in pairs[:_PAIRS_SHOWN]]
    return PairGroup(title, f"{words} Shown: {len(shown)} of {len(pairs)}.", shown)


def _item(audited: Audit, pair: Pair) -> GalleryItem:
    facts = []
    for number, record in (("First", pair.first), ("Second", pair.second)):
        patient = printable(record.patient_id) if record.patient_known else "not known"
        facts.append(
            f"{number}: {audited.file(record)}, {label_name(record)}, {record.split or 'no part'}, "
            f"patient {patient}, source {printable(record.source)}"
        )
    if pair.registration is not None:
        (across, down), overlap = pair.registration.scale, pair.registration.overlap
        facts.append(
            f"Second drawn at {across:.2f} × {down:.2f} of the first's scale; what both show is "
            f"{min(overlap[0], 1):.0%} of the first and {min(overlap[1], 1):.0%} of the second"
        )
    title = f"{_kind(pair).capitalize()}, correlation {pair.correlation:.3f}"
    return GalleryItem(title, facts, _pictures(pair))


def _pictures(pair: Pair) -> list[GalleryPicture]:
    try:
        first, second = read_pixels(pair.first), read_pixels(pair.second)
    except ImageError:  # gone since it was audited
        return []
    shown = [
        ("first", "The first slice as stored", fit(first, _SIDE)),
        ("second", "The second slice as stored", fit(second, _SIDE)),
    ]
    if pair.registration is not None:
        difference = _difference(pair.registration.affine, pair.mirrored, first, second)
        shown.append(("difference", "Difference of the slices, once registered", fit(difference, _SIDE)))
    return [GalleryPicture(caption, words, _data_uri(pixels)) for caption, words, pixels in shown]


def _data_uri(pixels: Grey) -> str:
    """As JPEG: a fifth of a PNG, and fine enough to compare."""
    encoded = cv2.imencode(".jpg", pixels, [cv2.IMWRITE_JPEG_QUALITY, 85])[1]
    return "data:image/jpeg;base64," + base64.b64encode(encoded.tobytes()).decode("ascii")


def _difference(affine: Sequence[Sequence[float]], mirrored: bool, first: Grey, second: Grey) -> Grey:
    """Absolute difference where both show something, the first one's grey values brought to the second's."""
    first = np.ascontiguousarray(first[:, ::-1]) if mirrored else first
    matrix = np.array(affine)
    size = (second.shape[1], second.shape[0])
    covered = cv2.warpAffine(np.ones_like(first), matrix, size, flags=cv2.INTER_NEAREST) > 0
    placed = cv2.warpAffine(first, matrix, size).astype(np.float32)
    if covered.sum() < 2 or float(placed[covered].std()) < 1:
        return np.zeros_like(second)
    slope, offset = np.polyfit(placed[covered], second[covered].astype(np.float32), 1)
    return np.asarray(np.clip(np.abs(placed * slope + offset - second) * covered, 0, 255), np.uint8)
