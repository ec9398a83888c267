"""Build the page of an audit: figures in large print, pairs of slices side by side, shortcuts and tables."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

from groundglass.atomic import write_json, write_text
from groundglass.data.audit import Crossing, writable
from groundglass.data.duplicates import Pair, groups_of
from groundglass.data.manifest import PARTS, Label, read_pixels
from groundglass.data.registration import COPY_CORRELATION, LOOKALIKE_CORRELATION
from groundglass.errors import ImageError
from groundglass.evaluation.audit import SHORTCUT_AUC, Audit, document, label_name
from groundglass.evaluation.audit_markdown import audit_markdown
from groundglass.evaluation.audit_tables import kind_in_words
from groundglass.evaluation.part import printable
from groundglass.evaluation.result import versions
from groundglass.evaluation.shortcuts import Baseline
from groundglass.evaluation.stated import Figure
from groundglass.imaging.slice import Grey
from groundglass.reporting.audit import (
    AuditReport,
    PairGroup,
    ShortcutRow,
    TableSection,
    Tile,
    jpeg_data_uri,
    render_audit,
)
from groundglass.reporting.html import GalleryItem, GalleryPicture
from groundglass.reporting.overlay import fit

PAIRS_SHOWN = 40
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
        title=f"Audit of {writable(audited.name)}",
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
    shown = pairs[:PAIRS_SHOWN]
    count = (
        f"Shown: all {len(pairs)}." if len(shown) == len(pairs) else f"Shown: {len(shown)} of {len(pairs)}."
    )
    return PairGroup(title, f"{words} {count}", [_item(audited, pair) for pair in shown])


def _item(audited: Audit, pair: Pair) -> GalleryItem:
    kind = kind_in_words(pair)
    title, facts = f"{kind[:1].upper()}{kind[1:]}, correlation {pair.correlation:.3f}", []
    for number, record in (("First", pair.first), ("Second", pair.second)):
        patient = writable(record.patient_id) if record.patient_known else "not known"
        facts.append(
            f"{number}: {audited.file(record)}, {label_name(record)}, {record.split or 'no part'}, "
            f"patient {patient}, source {writable(record.source)}"
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
    if audited.shortcuts is not None and audited.shortcuts.containers:
        rows = [
            (name, *(str(counts[label.value]) for label in Label))
            for name, counts in audited.shortcuts.containers.items()
        ]
        words = "Slices per container, pixel mode and suffix: where columns differ, the file tells its label."
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
        ("Data set", f"{writable(audited.name)}, {printable(audited.root)}"),
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
