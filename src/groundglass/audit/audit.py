"""What makes a network's figures better than the network: copies, leakage, label conflicts and shortcuts."""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from groundglass.audit.duplicates import Pair, Trace, find_pairs, groups_of, in_threads, take_trace
from groundglass.audit.shortcuts import (
    ReportedFigures,
    ShortcutBaselines,
    ShortcutFeatures,
    measure_shortcuts,
    shortcut_features,
)
from groundglass.data.describe import label_name
from groundglass.data.manifest import PARTS, Manifest, Record, read_record
from groundglass.data.splits import LARGEST_PUBLICATION, Split
from groundglass.errors import DataError, ImageError
from groundglass.files import counted, name_some, printable

Progress = Callable[[str, int, int | None], None]
"""Called with a stage (``reading``, ``comparing``, ``fitting``), steps just done, and all steps if known."""

CONDITIONS = ("leakage", "duplicates", "conflicts", "lookalikes", "sources", "shortcuts", "unreadable")
"""What `found` looks for."""

SHORTCUT_AUC = 0.7
"""AUC from which ``shortcuts`` holds unless another is named."""


@dataclass(frozen=True)
class Crossing:
    """A patient or a source with slices in several parts.

    Attributes:
        name: of the patient or source.
        parts: slices per part.
        collection: whether this is a source of so many slices that it is a collection of many hospitals and
            not one publication (`splits.LARGEST_PUBLICATION`).
    """

    name: str
    parts: dict[str, int]
    collection: bool = False


@dataclass(frozen=True)
class Audit:
    """What was found.

    Attributes:
        name: of the data set.
        root: folder or file it was read from.
        split: specification of the audited split, or None for the data set's own parts.
        records: its slices, those that cannot be read included.
        pairs: slices that show the same: opposite labels first, then across parts, across patients, the rest.
        patients: in several parts.
        sources: in several parts.
        shortcuts: how well the label is predicted without a lung; None where not measured.
        network: a network's figures to compare them with.
        unreadable: one line for each slice that cannot be read; it is left out of all but the counts.
        compared: pairs of slices that were compared.
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
    network: ReportedFigures | None
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
    def leaks(self) -> tuple[Pair, ...]:
        """Copies in different parts."""
        return tuple(pair for pair in self.copies if pair.across_parts)

    @property
    def conflicts(self) -> tuple[Pair, ...]:
        """Copies with opposite labels."""
        return tuple(pair for pair in self.copies if pair.across_labels)

    @property
    def counted_twice(self) -> tuple[Pair, ...]:
        """Copies that are said to be of two patients."""
        return tuple(
            pair
            for pair in self.copies
            if pair.across_patients and pair.first.patient_known and pair.second.patient_known
        )

    @property
    def publications(self) -> tuple[Crossing, ...]:
        """Sources in several parts that are not collections."""
        return tuple(crossing for crossing in self.sources if not crossing.collection)

    @property
    def parts(self) -> dict[str, dict[str, int]]:
        """Slices per label of each part that has slices."""
        counts = Counter((record.split, label_name(record)) for record in self.records)
        labels = sorted({label for _, label in counts})
        present = [part for part in PARTS if any(counts[part, label] for label in labels)]
        return {part: {label: counts[part, label] for label in labels} for part in present}

    def file(self, record: Record) -> str:
        """A record's path below the data set's folder, as text that can always be written as UTF-8."""
        path = record.path
        return printable(path.relative_to(self.root) if path.is_relative_to(self.root) else path)

    def warnings(self) -> tuple[str, ...]:
        """One sentence on each thing found that makes figures better than they are, the worst first."""
        warnings = [*self._leakage_warnings()]
        inside = [pair for pair in self.conflicts if not pair.across_parts]
        if inside:
            warnings.append(
                f"{counted(len(inside), 'pair')} of slices with opposite labels, not in different parts, "
                "show the same slice."
            )
        if self.counted_twice:
            warnings.append(
                f"{counted(len(self.counted_twice), 'pair')} of slices of different patients show the same "
                "slice: splits by patient do not keep them together."
            )
        strongest = self.shortcuts.strongest if self.shortcuts else None
        if strongest is not None and strongest.cross_validated.auc.value >= SHORTCUT_AUC:
            warnings.append(
                f"The label is predicted with an AUC of {strongest.cross_validated.auc.value:.3f} from "
                f"{strongest.title}: a network that is no better may have learnt nothing else."
            )
        if self.unreadable:
            warnings.append(f"{counted(len(self.unreadable), 'slice')} left out: cannot be read.")
        return tuple(warnings)

    def _leakage_warnings(self) -> Iterable[str]:
        if leaks := self.leaks:
            conflicts = sum(pair.across_labels for pair in leaks)
            opposite = f", {conflicts} of them with opposite labels" if conflicts else ""
            yield (
                f"{counted(len(leaks), 'pair')} of slices in different parts show the same slice{opposite} "
                f"({sum(map(len, groups_of(leaks)))} slices): {_name_pairs(leaks)}."
            )
        if self.patients:
            names = name_some([crossing.name for crossing in self.patients])
            yield f"{counted(len(self.patients), 'patient')} in several parts: {names}."
        lookalikes = [pair for pair in self.lookalikes if pair.across_parts]
        if lookalikes:
            yield (
                f"{counted(len(lookalikes), 'pair')} of slices in different parts look like neighbouring "
                f"slices of one patient, though they are not said to be: {_name_pairs(lookalikes)}."
            )
        if self.publications:
            names = name_some([crossing.name for crossing in self.publications])
            yield (
                f"{counted(len(self.publications), 'publication')} in several parts: {names}. "
                "Slices of one publication share window, scanner and layout."
            )


def audit(
    manifest: Manifest,
    split: Split | None = None,
    *,
    shortcuts: bool = True,
    quick: bool = False,
    network: ReportedFigures | None = None,
    seed: int = 0,
    threads: int | None = None,
    progress: Progress | None = None,
) -> Audit:
    """Audit a data set. Every file is read once; of each slice a few kilobytes are kept.

    Args:
        manifest: the data set.
        split: whose parts are meant; the data set's own unless given.
        shortcuts: measure the shortcut baselines as well.
        quick: look for copies of whole slices only, not for crops, in about 4 ms per slice.
        network: a network's figures to compare them with.
        seed: of the baselines' folds, trees and resamples.
        threads: CPU threads; one per core unless given.
        progress: see `Progress`.

    Raises:
        DataError: none of the slices can be read.
    """
    start = time.monotonic()
    advance = progress or (lambda stage, steps, total: None)
    compared = 0

    def count(steps: int) -> None:
        nonlocal compared
        compared += steps
        advance("comparing", steps, None)

    if split is not None:
        parts = {index: part for part, indices in split.parts.items() for index in indices}
        records = enumerate(manifest.records)
        placed = (replace(record, split=parts[index]) for index, record in records if index in parts)
        manifest = replace(manifest, records=tuple(placed))
    traces, features, unreadable = _read(manifest, shortcuts, not quick, threads, advance)
    pairs = find_pairs(traces, threads=threads, progress=count)
    readable = [trace.record for trace in traces]
    return Audit(
        name=manifest.name,
        root=manifest.root,
        split=None if split is None else split.name,
        records=manifest.records,
        pairs=tuple(sorted(pairs, key=_concern)),
        patients=patients_across(manifest.records),
        sources=sources_across(manifest.records),
        shortcuts=measure_shortcuts(readable, features, seed, lambda steps: advance("fitting", steps, 4))
        if shortcuts
        else None,
        network=network,
        unreadable=tuple(unreadable),
        compared=compared,
        seconds=time.monotonic() - start,
    )


def found(audited: Audit, conditions: Sequence[str]) -> list[str]:
    """Which conditions hold, each in a few words.

    - ``leakage``: copies in different parts, or a patient in several.
    - ``duplicates``: copies anywhere.
    - ``conflicts``: copies with opposite labels.
    - ``lookalikes``: slices in different parts that are probably of one patient.
    - ``sources``: publications in several parts.
    - ``shortcuts`` or ``shortcuts:AUC``: a baseline's cross-validated AUC of at least 0.7 or AUC.
    - ``unreadable``: slices that cannot be read.

    Args:
        audited: what was found.
        conditions: as `check_conditions` accepts them.

    Raises:
        DataError: shortcuts could not be measured.
    """
    counts = {
        "leakage": len(audited.leaks) + len(audited.patients),
        "duplicates": len(audited.copies),
        "conflicts": len(audited.conflicts),
        "lookalikes": sum(pair.across_parts for pair in audited.lookalikes),
        "sources": len(audited.publications),
        "unreadable": len(audited.unreadable),
    }
    held = []
    for condition in conditions:
        name, limit = _parse_condition(condition)
        if name != "shortcuts":
            held += [f"{name}: {counts[name]}"] if counts[name] else []
            continue
        if audited.shortcuts is None or audited.shortcuts.reason:
            reason = audited.shortcuts.reason if audited.shortcuts else "they were not measured"
            raise DataError(f"{audited.root}: shortcuts cannot be checked: {reason}")
        aucs = ((one.title, one.cross_validated.auc.value) for one in audited.shortcuts.baselines)
        held += [f"shortcuts: {title} has an AUC of {auc:.3f}" for title, auc in aucs if auc >= limit]
    return held


def check_conditions(
    conditions: Sequence[str], manifest: Manifest, split: Split | None, *, shortcuts: bool = True
) -> None:
    """Reject conditions that do not exist or that this audit cannot check, before the work is done.

    Raises:
        DataError: naming the condition.
    """
    parts = split is not None or any(record.split for record in manifest)
    for condition in conditions:
        name, _ = _parse_condition(condition)
        if name in {"leakage", "lookalikes", "sources"} and not parts:
            raise DataError(
                f"{manifest.root}: {name} cannot be checked: no slice is in a part; name a split to audit"
            )
        if name == "shortcuts" and not shortcuts:
            raise DataError("shortcuts cannot be checked together with --no-shortcuts")


def _parse_condition(text: str) -> tuple[str, float]:
    """A condition's name and the AUC from which shortcuts count."""
    match = re.fullmatch(r"(shortcuts)(?::(0?\.\d+|[01]))?|([a-z]+)", text)
    name = match and (match[1] or match[3])
    if match is None or name not in CONDITIONS:
        raise DataError(f"condition {text!r} is not one of {', '.join(CONDITIONS)} or shortcuts:AUC")
    return str(name), float(match[2] or SHORTCUT_AUC)


def _read(
    manifest: Manifest, shortcuts: bool, patches: bool, threads: int | None, advance: Progress
) -> tuple[list[Trace], list[ShortcutFeatures], list[str]]:
    def examine(record: Record) -> tuple[Trace, ShortcutFeatures | None] | ImageError:
        try:
            image = read_record(record)
            trace = take_trace(record, image, patches)
            return trace, shortcut_features(record, image) if shortcuts else None
        except ImageError as error:
            return error

    traces, features, unreadable = [], [], []
    progress = lambda steps: advance("reading", steps, len(manifest))  # noqa: E731
    for result in in_threads(examine, manifest.records, threads, progress):
        if isinstance(result, ImageError):
            unreadable.append(printable(str(result)))
            continue
        traces.append(result[0])
        features += [result[1]] if result[1] else []
    if not traces:
        raise DataError(f"{manifest.root}: none of its {len(manifest)} slices can be read: {unreadable[:1]}")
    return traces, features, unreadable


def _concern(pair: Pair) -> tuple[bool, ...]:
    lookalike = pair.kind == "lookalike"
    return lookalike, not pair.across_labels, not pair.across_parts, not pair.across_patients


def patients_across(records: Iterable[Record]) -> tuple[Crossing, ...]:
    """Known patients with slices in several parts, by name."""
    return _crossings((record.patient_id, record.split) for record in records if record.patient_known)


def sources_across(records: Sequence[Record]) -> tuple[Crossing, ...]:
    """Sources with slices in several parts, by name."""
    sizes = Counter(printable(record.source) for record in records)
    crossings = _crossings((record.source, record.split) for record in records)
    most = LARGEST_PUBLICATION * len(records)
    return tuple(replace(crossing, collection=sizes[crossing.name] > most) for crossing in crossings)


def _crossings(places: Iterable[tuple[str, str | None]]) -> tuple[Crossing, ...]:
    counts: dict[str, Counter[str]] = {}
    for name, part in places:
        if part is not None:
            counts.setdefault(printable(name), Counter())[part] += 1
    return tuple(
        Crossing(name, {part: parts[part] for part in PARTS if parts[part]})
        for name, parts in sorted(counts.items())
        if len(parts) > 1
    )


def _name_pairs(pairs: Sequence[Pair]) -> str:
    return name_some([f"{printable(p.first.path.name)} and {printable(p.second.path.name)}" for p in pairs])
