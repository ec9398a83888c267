"""What makes a network's figures better than the network: copies, leakage, label conflicts and shortcuts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from groundglass.audit.duplicates import Pair, Progress, Trace, find_pairs, read_all, take_trace
from groundglass.audit.shortcuts import ShortcutBaselines, ShortcutFeatures, measure_shortcuts, shortcut_features
from groundglass.data.manifest import PARTS, Manifest, Record
from groundglass.data.splits import Crossings, Split, in_several_parts
from groundglass.errors import DataError, ImageError
from groundglass.evaluation.part import one_label
from groundglass.files import counted, name_some, printable
from groundglass.imaging.slice import CTSlice

# From this AUC on a shortcut is warned of.
_SHORTCUT_AUC = 0.7
# A source with more than this share of the slices is a collection of many hospitals, not one publication.
_LARGEST_PUBLICATION = 0.10


@dataclass(frozen=True)
class Audit:
    """What was found in a data set."""

    data: Manifest  # its slices, those that cannot be read included, in the audited parts
    split: str | None  # specification of the audited split, or None for the data set's own parts
    pairs: tuple[Pair, ...]  # opposite labels first, then across parts, across patients, the rest
    shortcuts: ShortcutBaselines | None  # None where not measured
    unreadable: tuple[str, ...]  # one line for each slice that cannot be read, left out of all but the counts

    def file(self, record: Record) -> str:
        """A record's path, from the data set's folder where it lies there."""
        path, root = record.path, self.data.root
        return printable(path.relative_to(root) if path.is_relative_to(root) else path)

    @cached_property
    def kinds(self) -> dict[str, list[Pair]]:
        """Pairs by what makes them a fault; lookalikes are probably neighbours of one patient, not said to be."""
        copies = [pair for pair in self.pairs if pair.kind != "lookalike"]
        return {
            "copies": copies,
            "copies_across_parts": [pair for pair in copies if pair.across_parts],
            "label_conflicts": [pair for pair in copies if pair.across_labels],
            "copies_of_different_patients": [pair for pair in copies if pair.counted_twice],
            "lookalikes": [pair for pair in self.pairs if pair.kind == "lookalike"],
        }

    @cached_property
    def crossings(self) -> dict[str, Crossings]:
        """Known patients and sources in several parts, but for sources so large that they may be of many hospitals."""
        sizes, most = Counter(one.source for one in self.data), _LARGEST_PUBLICATION * len(self.data)
        patients = ((each.patient_id, each.split) for each in self.data if each.patient_known)
        sources = ((each.source, each.split) for each in self.data if sizes[each.source] <= most)
        return {
            f"{what}_in_several_parts": in_several_parts((printable(name), part) for name, part in places)
            for what, places in (("patients", patients), ("sources", sources))
        }

    @property
    def parts(self) -> dict[str, dict[str, int]]:
        """Slices per label of each part that has slices."""
        counts = Counter((record.split, record.label_name) for record in self.data)
        labels = sorted({label for _, label in counts})
        present = [part for part in PARTS if any(counts[part, label] for label in labels)]
        return {part: {label: counts[part, label] for label in labels} for part in present}

    def faults(self) -> list[tuple[str, list[str], str, str]]:
        """Condition that each thing found belongs to, names of it, noun and words of its warning, if it has one."""

        def names(pairs: Iterable[Pair]) -> list[str]:
            return [f"{self.file(pair.first)} and {self.file(pair.second)}" for pair in pairs]

        pairs = self.kinds
        unrelated = [pair for pair in pairs["lookalikes"] if pair.across_parts]
        patients, sources = (list(found) for found in self.crossings.values())
        single = [printable(f"{source} ({label})") for source, label in one_label(self.data).items()]
        same = "show the same slice"
        split = f"{same}, so that splits by patient do not keep them together"
        unsaid = "look like neighbouring slices of one patient, though not said to be"
        layout = "in several parts, whose slices share window, scanner and layout"
        return [
            ("leakage", names(pairs["copies_across_parts"]), "pair", f"of slices in different parts {same}"),
            ("leakage", patients, "patient", "in several parts"),
            ("duplicates", names(pairs["copies"]), "", ""),
            ("conflicts", names(pairs["label_conflicts"]), "pair", f"of slices with opposite labels {same}"),
            ("", names(pairs["copies_of_different_patients"]), "pair", f"of slices of different patients {split}"),
            ("", names(unrelated), "pair", f"of slices in different parts {unsaid}"),
            ("", sources, "source", layout),
            ("", single, "source", "whose slices all have one label, which it gives away"),
            ("unreadable", list(self.unreadable), "slice", "left out, as they cannot be read"),
        ]

    def warnings(self) -> tuple[str, ...]:
        """One sentence on each thing found that makes figures better than they are, the worst first."""
        said = [
            f"{counted(len(names), noun)} {words}: {name_some(names)}."
            for _, names, noun, words in self.faults()
            if words and names
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

    if split is not None:
        placed = {index: part for part, indices in split.parts.items() for index in indices}
        parted = (replace(manifest.records[index], split=part) for index, part in sorted(placed.items()))
        manifest = replace(manifest, records=tuple(parted))
    read, unreadable = [], []
    for result in read_all(manifest.records, measure, threads):
        progress("reading", 1, len(manifest))
        if isinstance(result, ImageError):
            unreadable.append(printable(str(result)))
        else:
            read.append(result)
    if not read:
        raise DataError(f"{manifest}: none of its {len(manifest)} slices can be read: {unreadable[:1]}")
    pairs = find_pairs([trace for trace, _ in read], threads=threads, progress=progress)
    seen = [(trace.record, features) for trace, features in read if features is not None]
    return Audit(
        manifest,
        None if split is None else split.name,
        tuple(sorted(pairs, key=_concern)),
        measure_shortcuts(seen, seed, progress) if shortcuts else None,
        tuple(unreadable),
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
