"""Audit of a data set before anybody trains on it: copies, leakage, label conflicts, shortcuts."""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from groundglass.audit.duplicates import Pair, Trace, find_pairs, groups_of, in_threads, take_trace
from groundglass.audit.leakage import Crossing, leakage_warnings, patients_across, sources_across, with_parts
from groundglass.audit.shortcuts import (
    ShortcutBaselines,
    ShortcutFeatures,
    StatedFigures,
    measure_shortcuts,
    shortcut_features,
)
from groundglass.data.manifest import PARTS, Manifest, Record, read_record
from groundglass.data.splits import Split
from groundglass.errors import DataError, ImageError
from groundglass.evaluation.metrics import versions
from groundglass.files import counted, printable

Progress = Callable[[str, int, int | None], None]
"""Told of a stage (``reading``, ``comparing``, ``fitting``), of steps more that are done, and of how many."""

CONDITIONS = ("leakage", "duplicates", "conflicts", "lookalikes", "sources", "shortcuts", "unreadable")
"""What a caller can ask to be told of, see `found`."""

SHORTCUT_AUC = 0.7
"""AUC from which ``shortcuts`` holds unless another is named."""

_ABOUT_PARTS = frozenset({"leakage", "lookalikes", "sources"})


@dataclass(frozen=True)
class Audit:
    """What was found.

    Attributes:
        name: of the data set.
        root: folder or file it was read from.
        split: specification of the audited split, or None for the data set's own parts.
        records: its slices, those that cannot be read included.
        pairs: slices that show the same, in the order in which they concern a reader (`by_concern`).
        patients: in several parts.
        sources: in several parts.
        shortcuts: how well the label is told without a lung; None where not asked for.
        network: a network's figures to compare them with.
        unreadable: one line for each slice that cannot be read; it is left out of all but the counts.
        compared: pairs of slices that were registered or tried to.
        seconds: how long it took.
    """

    name: str
    root: Path
    split: str | None
    records: tuple[Record, ...]
    pairs: tuple[Pair, ...]
    patients: tuple[Crossing, ...]
    sources: tuple[Crossing, ...]
    shortcuts: ShortcutBaselines | None
    network: StatedFigures | None
    unreadable: tuple[str, ...]
    compared: int
    seconds: float

    @property
    def copies(self) -> tuple[Pair, ...]:
        """Pairs that show the same slice for certain."""
        return tuple(pair for pair in self.pairs if pair.kind != "lookalike")

    @property
    def lookalikes(self) -> tuple[Pair, ...]:
        """Pairs that are probably neighbouring slices of one patient, though not said to be."""
        return tuple(pair for pair in self.pairs if pair.kind == "lookalike")

    @property
    def conflicts(self) -> tuple[Pair, ...]:
        """Copies with opposite labels."""
        return tuple(pair for pair in self.copies if pair.across_labels)

    @property
    def counted_twice(self) -> tuple[Pair, ...]:
        """Copies of which each side is said to be of another patient."""
        return tuple(
            pair
            for pair in self.copies
            if pair.across_patients and pair.first.patient_known and pair.second.patient_known
        )

    @property
    def publications(self) -> tuple[Crossing, ...]:
        """Sources in several parts that are no collections."""
        return tuple(crossing for crossing in self.sources if not crossing.collection)

    @property
    def parts(self) -> dict[str, dict[str, int]]:
        """Slices per label of each part."""
        counts = Counter((record.split, label_name(record)) for record in self.records)
        rows: dict[str, dict[str, int]] = {}
        for part in PARTS:
            row = {label: counts[part, label] for label in sorted({label for _, label in counts})}
            if any(row.values()):
                rows[part] = row
        return rows

    def warnings(self) -> tuple[str, ...]:
        """One sentence on each thing found that makes figures better than they are."""
        told = list(leakage_warnings(self.pairs, self.patients, self.sources))
        inside = [pair for pair in self.conflicts if not pair.across_parts]
        if inside:
            told.append(
                f"{counted(len(inside), 'pair')} of slices with opposite labels, not in different parts, "
                "show the same slice."
            )
        doubled = self.counted_twice
        if doubled:
            told.append(
                f"{counted(len(doubled), 'pair')} of slices of different patients show the same slice: "
                "splits by patient do not keep them together."
            )
        strongest = self.shortcuts.strongest if self.shortcuts else None
        if strongest is not None and strongest.cross_validated.auc.value >= SHORTCUT_AUC:
            told.append(
                f"The label is told with an AUC of {strongest.cross_validated.auc.value:.3f} from "
                f"{strongest.title}: a network that tells it no better may have learnt nothing else."
            )
        if self.unreadable:
            told.append(f"{counted(len(self.unreadable), 'slice')} left out, as they cannot be read.")
        return tuple(told)

    def file(self, record: Record) -> str:
        """A record's path below the data set's folder, as text that can always be written as UTF-8."""
        path = record.path
        return printable(path.relative_to(self.root) if path.is_relative_to(self.root) else path)


def audit(
    manifest: Manifest,
    split: Split | None = None,
    *,
    shortcuts: bool = True,
    network: StatedFigures | None = None,
    seed: int = 0,
    threads: int | None = None,
    progress: Progress | None = None,
) -> Audit:
    """Audit a data set. Every file is read once; of each slice three kilobytes are kept.

    Args:
        manifest: the data set.
        split: whose parts are meant; the data set's own unless given.
        shortcuts: measure the shortcut baselines as well.
        network: a network's figures to compare them with.
        seed: of the baselines' folds, trees and resamples.
        threads: to read and compare in; as many as there are cores unless given.
        progress: told how far it is.

    Raises:
        DataError: none of the slices can be read.
    """
    start = time.monotonic()
    tell = progress or (lambda stage, steps, total: None)
    manifest = with_parts(manifest, split)
    traces, features, unreadable = _read(manifest, threads, tell)
    compared = 0

    def count(steps: int) -> None:
        nonlocal compared
        compared += steps
        tell("comparing", steps, None)

    pairs = find_pairs(traces, threads=threads, progress=count)
    baselines = None
    if shortcuts:
        readable = [trace.record for trace in traces]
        baselines = measure_shortcuts(readable, features, seed, lambda steps: tell("fitting", steps, 4))
    return Audit(
        name=manifest.name,
        root=manifest.root,
        split=None if split is None else split.name,
        records=manifest.records,
        pairs=tuple(by_concern(pairs)),
        patients=patients_across(manifest.records),
        sources=sources_across(manifest.records),
        shortcuts=baselines,
        network=network,
        unreadable=tuple(unreadable),
        compared=compared,
        seconds=time.monotonic() - start,
    )


def by_concern(pairs: Iterable[Pair]) -> list[Pair]:
    """Pairs with opposite labels first, then those across parts, across patients, and the rest."""
    return sorted(
        pairs,
        key=lambda pair: (
            pair.kind == "lookalike",
            not pair.across_labels,
            not pair.across_parts,
            not pair.across_patients,
        ),
    )


def found(audited: Audit, conditions: Sequence[str]) -> list[str]:
    """Which conditions hold, each in a few words.

    - ``leakage``: copies in different parts, or a patient in several.
    - ``duplicates``: copies anywhere.
    - ``conflicts``: copies with opposite labels.
    - ``lookalikes``: slices in different parts that are probably of one patient.
    - ``sources``: publications in several parts.
    - ``shortcuts`` or ``shortcuts:AUC``: a baseline's cross-validated AUC of 0.7 or AUC and more.
    - ``unreadable``: slices that cannot be read.

    Args:
        audited: what was found.
        conditions: as `check_conditions` accepts them.

    Raises:
        DataError: shortcuts could not be measured.
    """
    held = []
    for condition in conditions:
        name, limit = _parse_condition(condition)
        if name == "shortcuts":
            held += _strong_shortcuts(audited, limit)
            continue
        counts = {
            "leakage": len([pair for pair in audited.copies if pair.across_parts]) + len(audited.patients),
            "duplicates": len(audited.copies),
            "conflicts": len(audited.conflicts),
            "lookalikes": len([pair for pair in audited.lookalikes if pair.across_parts]),
            "sources": len(audited.publications),
            "unreadable": len(audited.unreadable),
        }
        if counts[name]:
            held.append(f"{name}: {counts[name]}")
    return held


def check_conditions(
    conditions: Sequence[str], manifest: Manifest, split: Split | None, *, shortcuts: bool = True
) -> None:
    """Refuse conditions that do not exist or that this audit cannot judge, before the work is done.

    Raises:
        DataError: naming the condition.
    """
    for condition in conditions:
        name, _ = _parse_condition(condition)
        if name in _ABOUT_PARTS and split is None and not any(record.split for record in manifest):
            raise DataError(
                f"{manifest.root}: {name} cannot be judged: no slice is in a part; name a split to audit"
            )
        if name == "shortcuts" and not shortcuts:
            raise DataError("shortcuts cannot be judged when they are not to be measured")


def _parse_condition(text: str) -> tuple[str, float]:
    """A condition's name and the AUC from which shortcuts count."""
    match = re.fullmatch(r"([a-z]+)(?::(0?\.\d+|[01]))?", text)
    if (
        match is None
        or match.group(1) not in CONDITIONS
        or (match.group(2) and match.group(1) != "shortcuts")
    ):
        raise DataError(f"condition {text!r} is not one of {', '.join(CONDITIONS)} or shortcuts:AUC")
    return match.group(1), float(match.group(2) or SHORTCUT_AUC)


def document(audited: Audit) -> dict[str, Any]:
    """Everything that was found, as plain JSON values."""
    groups = groups_of(audited.copies)
    return {
        "format": 1,
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
            "copies_across_parts": sum(pair.across_parts for pair in audited.copies),
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


def label_name(record: Record) -> str:
    """A record's label, or ``unlabelled``."""
    return record.label.value if record.label else "unlabelled"


def _read(
    manifest: Manifest, threads: int | None, tell: Progress
) -> tuple[list[Trace], list[ShortcutFeatures], list[str]]:
    def examine(record: Record) -> tuple[Trace, ShortcutFeatures] | ImageError:
        try:
            image = read_record(record)
            return take_trace(record, image), shortcut_features(record, image)
        except ImageError as error:
            return error

    traces, features, unreadable = [], [], []
    for result in in_threads(examine, manifest.records, threads):
        tell("reading", 1, len(manifest))
        if isinstance(result, ImageError):
            unreadable.append(printable(str(result)))
            continue
        traces.append(result[0])
        features.append(result[1])
    if not traces:
        raise DataError(f"{manifest.root}: none of its {len(manifest)} slices can be read: {unreadable[:1]}")
    return traces, features, unreadable


def _strong_shortcuts(audited: Audit, limit: float) -> list[str]:
    if audited.shortcuts is None or audited.shortcuts.reason:
        reason = audited.shortcuts.reason if audited.shortcuts else "they were not measured"
        raise DataError(f"{audited.root}: shortcuts cannot be judged: {reason}")
    strong = [b for b in audited.shortcuts.baselines if b.cross_validated.auc.value >= limit]
    return [f"shortcuts: {b.title} has an AUC of {b.cross_validated.auc.value:.3f}" for b in strong]


def _pair_document(audited: Audit, pair: Pair) -> dict[str, Any]:
    registered = pair.registration

    def side(record: Record) -> dict[str, Any]:
        return {
            "file": audited.file(record),
            "label": record.label.value if record.label else None,
            "part": record.split,
            "patient": printable(record.patient_id) if record.patient_known else None,
            "source": printable(record.source),
        }

    return {
        "kind": pair.kind,
        "correlation": round(pair.correlation, 4),
        "first": side(pair.first),
        "second": side(pair.second),
        "across_parts": pair.across_parts,
        "across_labels": pair.across_labels,
        "across_patients": pair.across_patients,
        "mirrored": pair.mirrored,
        "affine": None if registered is None else [[round(x, 4) for x in row] for row in registered.affine],
        "overlap": None if registered is None else [round(share, 3) for share in registered.overlap],
    }
