"""Build the page of an audit: figures in large print, pairs of slices side by side, shortcuts and tables.

An audit as tables for the terminal.

An audit as Markdown without pictures: for a results folder, or the summary of a CI job.

The page of an audit: what is wrong with a data set, with the slices side by side.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from rich.markup import escape
from rich.table import Table

from groundglass.audit.audit import SHORTCUT_AUC, Audit, document, label_name
from groundglass.audit.duplicates import COPY_CORRELATION, LOOKALIKE_CORRELATION, Pair, groups_of
from groundglass.audit.leakage import Crossing, file_name
from groundglass.audit.shortcuts import Baseline, Figure, Judgement
from groundglass.data.manifest import PARTS, Label, Record, read_pixels
from groundglass.errors import ImageError
from groundglass.evaluation.metrics import versions
from groundglass.files import counted, printable, write_json, write_text
from groundglass.imaging.slice import Grey
from groundglass.reporting.html import DATA_NOTICE, NOTICE, GalleryItem, GalleryPicture, environment
from groundglass.reporting.overlay import fit

PAIRS_SHOWN = 40
_CROSSINGS_SHOWN = 15


def audit_tables(audited: Audit) -> Iterator[Table]:
    """Tables of pairs, patients and sources in several parts, file_formats, shortcuts; empty ones left out."""
    if audited.pairs:
        yield _pairs(audited)
    if audited.patients:
        yield _crossings("Patients in several parts", audited.patients)
    if audited.sources:
        yield _crossings("Sources in several parts", audited.sources)
    if audited.shortcuts is not None:
        yield _containers(audited.shortcuts.file_formats)
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
    table = _table(f"{escape(printable(audited.name))}: slices that show the same", caption.strip())
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


def _containers(file_formats: dict[str, dict[str, int]]) -> Table:
    table = _table("FileFormat, pixel mode, suffix")
    table.add_column("")
    for label in Label:
        table.add_column(label.value, justify="right")
    for name, counts in file_formats.items():
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


PAIRS_SHOWN_AUDIT_MARKDOWN = 200

BEGIN, END = "<!-- audit:begin -->", "<!-- audit:end -->"
"""Where in a Markdown file the tables stand."""


def audit_markdown(audited: Audit, command: str, level: int = 1) -> str:
    """Warnings, pairs, patients and sources in several parts, file_formats and shortcuts.

    Args:
        audited: what was found.
        command: reproduces the audit.
        level: of the title among the headings of the document it is to stand in, 1 to 5.
    """
    counts = ", ".join(f"{part} {sum(labels.values())}" for part, labels in audited.parts.items())
    lines = [
        f"{'#' * level} Audit of {_text(printable(audited.name))}",
        "",
        f"{len(audited.records)} slices ({counts or 'in no parts'}); {audited.compared:,} pairs that "
        f"perceptual hashes proposed were compared. Made by {_code(command)}.",
        "",
        *(f"- {_text(warning)}" for warning in audited.warnings()),
    ]
    for title, section in (
        ("Slices that show the same", _pairs_audit_markdown(audited)),
        ("Patients in several parts", _crossings_audit_markdown(audited.patients)),
        ("Sources in several parts", _crossings_audit_markdown(audited.sources)),
        ("FileFormat, pixel mode and suffix", _containers_audit_markdown(audited)),
        ("How well the label is told without a lung", _shortcuts_audit_markdown(audited)),
        ("Cannot be read", (f"- {_text(line)}" for line in audited.unreadable)),
    ):
        if content := list(section):
            lines += ["", f"{'#' * (level + 1)} {title}", "", *content]
    return "\n".join(lines) + "\n"


def _pairs_audit_markdown(audited: Audit) -> Iterator[str]:
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
    shown = audited.pairs[:PAIRS_SHOWN_AUDIT_MARKDOWN]
    if len(shown) < len(audited.pairs):
        yield f"Shown: {len(shown)} of {len(audited.pairs)} pairs."
    yield ""
    columns = ("what", "correlation", "first", "label, part", "second", "label, part", "scale", "")
    yield from _table_audit_markdown(columns, [_pair_row(pair) for pair in shown])


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


def _crossings_audit_markdown(crossings: Sequence[Crossing]) -> Iterator[str]:
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
    yield from _table_audit_markdown(("", *PARTS), rows)


def _containers_audit_markdown(audited: Audit) -> Iterator[str]:
    if audited.shortcuts is None or not audited.shortcuts.file_formats:
        return
    rows = [
        (_text(name), *(str(counts[label.value]) for label in Label))
        for name, counts in audited.shortcuts.file_formats.items()
    ]
    yield from _table_audit_markdown(("", *(label.value for label in Label)), rows)


def _shortcuts_audit_markdown(audited: Audit) -> Iterator[str]:
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
            *_judged_audit_markdown(baseline.cross_validated),
            *_judged_audit_markdown(baseline.tested),
            _text(baseline.telling[0]),
        )
        for baseline in measured.baselines
    ]
    if network is not None:
        where = f"{network.name} ({network.part} part, {network.slices} slices; {network.bounds})"
        rows.append(
            (
                _text(where),
                "",
                "",
                _figure_audit_markdown(network.auc),
                _figure_audit_markdown(network.accuracy),
                "",
            )
        )
    columns = ("seen", "AUC, cross-validated", "accuracy", "AUC, tested", "accuracy", "most telling")
    yield from _table_audit_markdown(columns, rows)


def _judged_audit_markdown(judgement: Judgement | None) -> tuple[str, str]:
    return (
        ("–", "–")
        if judgement is None
        else (_figure_audit_markdown(judgement.auc), _figure_audit_markdown(judgement.accuracy))
    )


def _figure_audit_markdown(figure: Figure) -> str:
    if figure.low is None or figure.high is None:
        return f"{figure.value:.3f}"
    return f"{figure.value:.3f} ({figure.low:.3f}–{figure.high:.3f})"


def _table_audit_markdown(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
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


_JPEG_QUALITY = 85


@dataclass(frozen=True)
class Tile:
    """A figure in large print: what it counts, the figure, what it means, and whether it is bad news."""

    title: str
    value: str
    note: str
    alarming: bool = False


@dataclass(frozen=True)
class PairGroup:
    """Pairs of one kind; ``words`` introduces them or says that there are none."""

    title: str
    words: str
    pairs: Sequence[GalleryItem]


@dataclass(frozen=True)
class ShortcutRow:
    """One row of the table of shortcuts.

    Attributes:
        title: what is seen.
        note: what parts the labels best, or what the bounds mean.
        cross_validated: AUC, low and high; None where there is none.
        tested: the same on the test part.
        tested_accuracy: the same for the accuracy on the test part.
        network: whether this is the network that the shortcuts are to be compared with.
    """

    title: str
    note: str
    cross_validated: tuple[float, float | None, float | None] | None
    tested: tuple[float, float | None, float | None] | None
    tested_accuracy: tuple[float, float | None, float | None] | None
    network: bool = False


@dataclass(frozen=True)
class TableSection:
    """A plain table: heading, words above it, names of the columns, rows."""

    title: str
    words: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True)
class AuditReport:
    """Everything the page says, in its order."""

    title: str
    subtitle: str
    warnings: Sequence[str]
    tiles: Sequence[Tile]
    groups: Sequence[PairGroup]
    shortcuts: Sequence[ShortcutRow]
    shortcuts_words: str
    tables: Sequence[TableSection]
    facts: Sequence[tuple[str, str]]
    command: str


def render_audit(report: AuditReport) -> str:
    """The report as a self-contained HTML page."""
    template = environment().get_template("audit.html.j2")
    return template.render(report=report, notice=NOTICE, data_notice=DATA_NOTICE)


def jpeg_data_uri(pixels: NDArray[np.uint8]) -> str:
    """Grey pixels (H, W) as ``data:image/jpeg;base64,...``: a fifth of a PNG, and fine enough to compare."""
    encoded = cv2.imencode(".jpg", pixels, [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY])[1]
    return "data:image/jpeg;base64," + base64.b64encode(encoded.tobytes()).decode("ascii")


PAIRS_SHOWN_AUDIT_REPORT = 40
"""Pairs shown of each kind; ``audit.json`` has all."""

_SIDE = 300
_SOURCES_SHOWN = 200


def write_audit(audited: Audit, output: Path, command: str) -> None:
    """Write ``audit.json``, ``audit.md`` and ``report.html`` into a folder, or one of them as a file.

    Args:
        audited: what was found.
        output: a folder, made where it is missing, or a file whose suffix is one of ``.json``, ``.md`` and
            ``.html``.
        command: reproduces the audit.
    """
    kind = output.suffix.lower()
    if kind == ".json":
        write_json(output, document(audited))
    elif kind == ".md":
        write_text(output, audit_markdown(audited, command))
    elif kind == ".html":
        write_text(output, render_audit(build_report(audited, command)))
    else:
        for name in ("report.html", "audit.md", "audit.json"):
            write_audit(audited, output / name, command)


def build_report(audited: Audit, command: str) -> AuditReport:
    """Everything that the page says. The slices of the pairs shown are read once more."""
    parts = ", ".join(f"{part} {sum(counts.values())}" for part, counts in audited.parts.items())
    labels = ", ".join(
        f"{sum(label_name(record) == label for record in audited.records)} {label}"
        for label in sorted({label_name(record) for record in audited.records})
    )
    return AuditReport(
        title=f"Audit of {printable(audited.name)}",
        subtitle=f"{len(audited.records)} slices: {labels}. Parts: {parts or 'none'}.",
        warnings=audited.warnings(),
        tiles=_tiles(audited),
        groups=_groups(audited),
        shortcuts=_shortcut_rows(audited),
        shortcuts_words=_shortcut_words(audited),
        tables=_tables(audited),
        facts=_facts(audited),
        command=command,
    )


def _tiles(audited: Audit) -> list[Tile]:
    across = [pair for pair in audited.copies if pair.across_parts]
    slices = sum(map(len, groups_of(audited.copies)))
    tiles = [
        Tile("Pairs of copies", str(len(audited.copies)), f"{slices} slices are in them"),
        Tile("of these in different parts", str(len(across)), "leakage", bool(across)),
        Tile(
            "with opposite labels",
            str(len(audited.conflicts)),
            "one label of each is wrong",
            bool(audited.conflicts),
        ),
        Tile("Patients in several parts", str(len(audited.patients)), "leakage", bool(audited.patients)),
        Tile(
            "Publications in several parts",
            str(len(audited.publications)),
            "same window, scanner, layout",
            bool(audited.publications),
        ),
    ]
    strongest = audited.shortcuts.strongest if audited.shortcuts else None
    if strongest is not None:
        auc = strongest.cross_validated.auc.value
        tiles.append(Tile("Strongest shortcut, AUC", f"{auc:.3f}", strongest.title, auc >= SHORTCUT_AUC))
    return tiles


def _groups(audited: Audit) -> list[PairGroup]:
    copies, lookalikes = audited.copies, audited.lookalikes
    kinds: list[tuple[str, str, Sequence[Pair]]] = [
        (
            "Copies with opposite labels",
            "The same slice, called COVID once and NonCOVID once.",
            audited.conflicts,
        ),
        (
            "Copies in different parts",
            "What is trained on is judged on as well: figures are too good.",
            [pair for pair in copies if pair.across_parts and not pair.across_labels],
        ),
        (
            "Copies within a part",
            "They count twice, and a split made by chance would part them.",
            [pair for pair in copies if not pair.across_parts and not pair.across_labels],
        ),
        (
            "Lookalikes of different patients",
            f"Correlation {LOOKALIKE_CORRELATION:g} to {COPY_CORRELATION:g}: most often neighbouring slices "
            "of one patient who goes by two names.",
            lookalikes,
        ),
    ]
    return [_group(audited, title, words, pairs) for title, words, pairs in kinds]


def _group(audited: Audit, title: str, words: str, pairs: Sequence[Pair]) -> PairGroup:
    if not pairs:
        return PairGroup(title, "None.", ())
    shown = pairs[:PAIRS_SHOWN_AUDIT_REPORT]
    count = (
        f"Shown: all {len(pairs)}." if len(shown) == len(pairs) else f"Shown: {len(shown)} of {len(pairs)}."
    )
    return PairGroup(title, f"{words} {count}", [_item(audited, pair) for pair in shown])


def _item(audited: Audit, pair: Pair) -> GalleryItem:
    kind = kind_in_words(pair)
    title, facts = f"{kind[:1].upper()}{kind[1:]}, correlation {pair.correlation:.3f}", []
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
    return GalleryItem(title, facts, _pictures(pair))


def _pictures(pair: Pair) -> list[GalleryPicture]:
    try:
        first, second = read_pixels(pair.first), read_pixels(pair.second)
    except ImageError:  # gone since it was audited
        return []
    second_shown = fit(second, _SIDE)
    pictures = [
        _picture("first", "The first slice as stored", fit(first, _SIDE)),
        _picture("second", "The second slice as stored", second_shown),
    ]
    if pair.registration is not None:
        difference = _difference(pair, first, second, second_shown)
        pictures.append(
            _picture("difference once registered", "Difference of the slices, once registered", difference)
        )
    return pictures


def _picture(caption: str, words: str, pixels: Grey) -> GalleryPicture:
    return GalleryPicture(caption, words, jpeg_data_uri(pixels))


def _difference(pair: Pair, first: Grey, second: Grey, second_shown: Grey) -> Grey:
    """Absolute difference where both show something, the first one's grey values brought to the second's."""
    registered = pair.registration
    assert registered is not None  # noqa: S101 - for the type checker; the caller has looked
    if registered.mirrored:
        first = np.ascontiguousarray(first[:, ::-1])
    shrunk = np.diag([second_shown.shape[1] / second.shape[1], second_shown.shape[0] / second.shape[0]])
    affine = shrunk @ np.array(registered.affine)
    size = (second_shown.shape[1], second_shown.shape[0])
    reduction = 1 / max(float(np.abs(np.diag(affine[:, :2])).max()), 1e-3)
    if reduction > 1.3:
        first = cv2.GaussianBlur(first, (0, 0), 0.42 * reduction)
    covered = cv2.warpAffine(np.ones_like(first), affine, size, flags=cv2.INTER_NEAREST) > 0
    placed = cv2.warpAffine(first, affine, size).astype(np.float32)
    if covered.sum() < 2 or float(placed[covered].std()) < 1:
        return np.zeros_like(second_shown)
    slope, offset = np.polyfit(placed[covered], second_shown[covered].astype(np.float32), 1)
    difference = np.abs(placed * slope + offset - second_shown) * covered
    return np.asarray(np.clip(difference, 0, 255), np.uint8)


def _shortcut_rows(audited: Audit) -> list[ShortcutRow]:
    if audited.shortcuts is None:
        return []
    rows = [_shortcut_row(baseline) for baseline in audited.shortcuts.baselines]
    network = audited.network
    if network is not None and rows:
        note = f"{network.part} part, {network.slices} slices; {network.bounds}"
        tested = (_triple(network.auc), _triple(network.accuracy))
        rows.append(ShortcutRow(network.name, note, None, *tested, network=True))
    return rows


def _shortcut_row(baseline: Baseline) -> ShortcutRow:
    feature, auc = baseline.telling
    tested = baseline.tested
    return ShortcutRow(
        title=baseline.title,
        note=f"most telling: {feature} (AUC {auc:.3f})",
        cross_validated=_triple(baseline.cross_validated.auc),
        tested=None if tested is None else _triple(tested.auc),
        tested_accuracy=None if tested is None else _triple(tested.accuracy),
    )


def _triple(figure: Figure) -> tuple[float, float | None, float | None]:
    return figure.value, figure.low, figure.high


def _shortcut_words(audited: Audit) -> str:
    measured = audited.shortcuts
    if measured is None or not measured.baselines:
        return ""
    tested = measured.baselines[0].tested
    judged = (
        f" Tested: fitted on the train part, judged on the {tested.slices} slices of the test part."
        if tested
        else ""
    )
    return (
        "Small models that see no lung, with 95 % intervals over patients (bootstrap). Cross-validated: each "
        f"slice judged by a model that saw no slice of its patient, {measured.folds} folds.{judged}"
    )


def _tables(audited: Audit) -> list[TableSection]:
    tables = []
    for title, words, crossings in (
        ("Patients in several parts", "Slices of a patient resemble each other.", audited.patients),
        (
            "Sources in several parts",
            "Slices of one publication share window, scanner and layout; collections hold many hospitals.",
            audited.sources,
        ),
    ):
        if crossings:
            tables.append(_crossing_table(title, words, crossings))
    if audited.shortcuts is not None and audited.shortcuts.file_formats:
        rows = [
            (name, *(str(counts[label.value]) for label in Label))
            for name, counts in audited.shortcuts.file_formats.items()
        ]
        words = (
            "Slices per file_format, pixel mode and suffix: where columns differ, the file tells its label."
        )
        tables.append(TableSection("Containers", words, ("", *(label.value for label in Label)), rows))
    if audited.unreadable:
        rows = [(line,) for line in audited.unreadable]
        tables.append(TableSection("Cannot be read", "Left out of everything but the counts.", ("",), rows))
    return tables


def _crossing_table(title: str, words: str, crossings: Sequence[Crossing]) -> TableSection:
    ordered = sorted(crossings, key=lambda crossing: (crossing.collection, crossing.name))
    rows = [
        (
            f"{crossing.name} (a collection)" if crossing.collection else crossing.name,
            *(str(crossing.parts.get(part, 0)) for part in PARTS),
        )
        for crossing in ordered[:_SOURCES_SHOWN]
    ]
    if len(rows) < len(ordered):
        words += f" Shown: {len(rows)} of {len(ordered)}."
    return TableSection(title, words, ("", *PARTS), rows)


def _facts(audited: Audit) -> list[tuple[str, str]]:
    facts = [
        ("Data set", f"{printable(audited.name)}, {printable(audited.root)}"),
        ("Parts", f"split {audited.split}" if audited.split else "the data set's own"),
        ("Pairs compared", f"{audited.compared:,} that perceptual hashes proposed"),
        ("Called a copy", f"from a correlation of {COPY_CORRELATION:g} of fine structure on"),
        ("Audited", f"in {audited.seconds:.1f} s"),
        ("Audited with", ", ".join(f"{name} {version}" for name, version in versions().items())),
    ]
    if audited.network is not None:
        network = audited.network
        facts.insert(
            2, ("Network", f"{network.name}: AUC {network.auc.value:.3f} on {network.slices} slices")
        )
    return facts
