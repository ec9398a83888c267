"""What makes a network's figures better than the network: copies, leakage, label conflicts and shortcuts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from groundglass.audit.duplicates import Pair, Progress, Trace, find_pairs, read_all, take_trace
from groundglass.audit.shortcuts import ShortcutBaselines, ShortcutFeatures, measure_shortcuts, shortcut_features
from groundglass.data.manifest import PARTS, Manifest, Record
from groundglass.data.splits import LARGEST_PUBLICATION, Split
from groundglass.errors import DataError, ImageError
from groundglass.evaluation.part import one_label
from groundglass.files import counted, name_some, printable
from groundglass.imaging.slice import CTSlice

# From this AUC on a shortcut is warned of.
_SHORTCUT_AUC = 0.7


@dataclass(frozen=True)
class Crossing:
    """A patient or a source with slices in several parts, and how many there are in each."""

    name: str
    parts: dict[str, int]


@dataclass(frozen=True)
class Audit:
    """What was found in a data set."""

    name: str
    root: Path  # folder that its files lie in
    split: str | None  # specification of the audited split, or None for the data set's own parts
    records: tuple[Record, ...]  # its slices, those that cannot be read included
    pairs: tuple[Pair, ...]  # opposite labels first, then across parts, across patients, the rest
    shortcuts: ShortcutBaselines | None  # None where not measured
    unreadable: tuple[str, ...]  # one line for each slice that cannot be read, left out of all but the counts

    def file(self, record: Record) -> str:
        """A record's path, from the data set's folder where it lies there."""
        path = record.path
        return printable(path.relative_to(self.root) if path.is_relative_to(self.root) else path)

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
        return tuple(pair for pair in self.copies if pair.counted_twice)

    @property
    def patients(self) -> tuple[Crossing, ...]:
        """Known patients with slices in several parts, by name."""
        return _crossings((one.patient_id, one.split) for one in self.records if one.patient_known)

    @property
    def sources(self) -> tuple[Crossing, ...]:
        """Sources with slices in several parts, by name; but not those so large that they may be of many hospitals."""
        sizes, most = Counter(one.source for one in self.records), LARGEST_PUBLICATION * len(self.records)
        return _crossings((one.source, one.split) for one in self.records if sizes[one.source] <= most)

    @property
    def parts(self) -> dict[str, dict[str, int]]:
        """Slices per label of each part that has slices."""
        counts = Counter((record.split, record.label_name) for record in self.records)
        labels = sorted({label for _, label in counts})
        present = [part for part in PARTS if any(counts[part, label] for label in labels)]
        return {part: {label: counts[part, label] for label in labels} for part in present}

    def faults(self) -> list[tuple[str, Sequence[Pair | Crossing | str], str, str]]:
        """The condition that each thing found belongs to, and noun and words of its warning, if it has one."""
        single = [f"{source} ({label})" for source, label in one_label(self.records).items()]
        unrelated = [pair for pair in self.lookalikes if pair.across_parts]
        split = "show the same slice, so that splits by patient do not keep them together"
        unsaid = "look like neighbouring slices of one patient, though not said to be"
        layout = "in several parts, whose slices share window, scanner and layout"
        return [
            ("leakage", self.leaks, "pair", "of slices in different parts show the same slice"),
            ("leakage", self.patients, "patient", "in several parts"),
            ("duplicates", self.copies, "", ""),
            ("conflicts", self.conflicts, "pair", "of slices with opposite labels show the same slice"),
            ("", self.counted_twice, "pair", f"of slices of different patients {split}"),
            ("", unrelated, "pair", f"of slices in different parts {unsaid}"),
            ("", self.sources, "source", layout),
            ("", single, "source", "whose slices all have one label, which it gives away"),
            ("unreadable", self.unreadable, "slice", "left out, as they cannot be read"),
        ]

    def warnings(self) -> tuple[str, ...]:
        """One sentence on each thing found that makes figures better than they are, the worst first."""
        said = [
            f"{counted(len(things), noun)} {words}: {_names(things, self.file)}."
            for _, things, noun, words in self.faults()
            if words and things
        ]
        baselines = self.shortcuts.baselines if self.shortcuts else ()
        auc, title = max(((one.cross_validated.auc.value or 0.0, one.title) for one in baselines), default=(0.0, ""))
        if auc >= _SHORTCUT_AUC:
            words = f"The label is predicted with an AUC of {auc:.3f} from {title}"
            said.append(f"{words}: a network that is no better may have learnt nothing else.")
        return tuple(said)


def audit(
    manifest: Manifest,
    split: Split | None = None,
    *,
    shortcuts: bool = True,
    quick: bool = False,
    seed: int = 0,
    threads: int | None = None,
    progress: Progress = lambda *_: None,
) -> Audit:
    """Audit a data set. Every file is read once; of each slice a few kilobytes are kept.

    The parts are those of ``split``, or the data set's own. ``shortcuts`` measures the shortcut baselines as well, with
    folds, trees and resamples by ``seed``; ``quick`` looks for copies of whole slices only, not for crops, in about
    4 ms per slice; ``threads`` are one per core unless given.

    Raises:
        DataError: none of the slices can be read.
    """

    def measure(record: Record, image: CTSlice) -> tuple[Trace, ShortcutFeatures | None]:
        return take_trace(record, image, not quick), shortcut_features(record, image) if shortcuts else None

    records = manifest.records
    if split is not None:
        placed = {index: part for part, indices in split.parts.items() for index in indices}
        records = tuple(replace(records[index], split=part) for index, part in sorted(placed.items()))
    read, unreadable = [], []
    for result in read_all(records, measure, threads):
        progress("reading", 1, len(records))
        if isinstance(result, ImageError):
            unreadable.append(printable(str(result)))
        else:
            read.append(result)
    if not read:
        raise DataError(f"{manifest}: none of its {len(records)} slices can be read: {unreadable[:1]}")
    pairs = find_pairs([trace for trace, _ in read], threads=threads, progress=progress)
    seen = [(trace.record, features) for trace, features in read if features is not None]
    return Audit(
        name=manifest.name,
        root=manifest.root,
        split=None if split is None else split.name,
        records=records,
        pairs=tuple(sorted(pairs, key=_concern)),
        shortcuts=measure_shortcuts(seen, seed, progress) if shortcuts else None,
        unreadable=tuple(unreadable),
    )


def found(audited: Audit, conditions: Sequence[str]) -> list[str]:
    """Which of leakage, duplicates, conflicts and unreadable hold, each in a few words."""
    counts = Counter[str]()
    for condition, things, *_ in audited.faults():
        counts[condition] += len(things)
    return [f"{condition}: {counts[condition]}" for condition in conditions if counts[condition]]


def _concern(pair: Pair) -> tuple[bool, ...]:
    lookalike = pair.kind == "lookalike"
    return lookalike, not pair.across_labels, not pair.across_parts, not pair.across_patients


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


def _names(things: Sequence[Pair | Crossing | str], file: Callable[[Record], str]) -> str:
    names = (
        f"{file(one.first)} and {file(one.second)}"
        if isinstance(one, Pair)
        else printable(one.name if isinstance(one, Crossing) else one)
        for one in things
    )
    return name_some(list(names))
