"""What the parts of a data set share and must not: patients, publications, and slices that are the same."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from groundglass.audit.duplicates import Pair, Progress, Trace, find_pairs, groups_of, read_traces
from groundglass.data.manifest import PARTS, Manifest, Record
from groundglass.data.splits import LARGEST_PUBLICATION, Split
from groundglass.files import counted, name_some, printable


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
class QuickAudit:
    """What can be found in seconds.

    Attributes:
        pairs: slices of different parts that show the same; crops of a part of the lungs are not among them.
        patients: in several parts.
        sources: in several parts.
        unreadable: number of slices that cannot be read.
    """

    pairs: tuple[Pair, ...]
    patients: tuple[Crossing, ...]
    sources: tuple[Crossing, ...]
    unreadable: int

    def warnings(self) -> tuple[str, ...]:
        """One sentence on each thing found, the worst first; none where nothing was."""
        return leakage_warnings(self.pairs, self.patients, self.sources)


def quick_audit(
    manifest: Manifest,
    split: Split | None = None,
    *,
    threads: int | None = None,
    progress: Progress | None = None,
) -> QuickAudit:
    """Look for what the parts of a split share, in about 3 ms per slice.

    Finds the same files and pixels, copies that were recoded, rescaled, given another window or mirrored, and
    those with other margins as long as their lungs are found; the full audit finds crops as well.

    Args:
        manifest: the data set.
        split: whose parts are meant; the data set's own unless given.
        threads: to read in; as many as there are cores unless given.
        progress: told of each slice read and each pair compared.
    """
    records = with_parts(manifest, split).records
    results = list(read_traces(records, patches=False, threads=threads, progress=progress))
    traces = [result for result in results if isinstance(result, Trace)]
    pairs = find_pairs(traces, across_parts=True, threads=threads, progress=progress)
    return QuickAudit(
        pairs=tuple(pair for pair in pairs if pair.across_parts),
        patients=patients_across(records),
        sources=sources_across(records),
        unreadable=len(results) - len(traces),
    )


def with_parts(manifest: Manifest, split: Split | None) -> Manifest:
    """The data set with the parts of ``split`` as its own; slices in none of them are left out."""
    if split is None:
        return manifest
    part = {index: name for name in PARTS if name in split.parts for index in split.parts[name]}
    records = tuple(
        replace(record, split=part[index]) for index, record in enumerate(manifest.records) if index in part
    )
    return replace(manifest, records=records)


def patients_across(records: Iterable[Record]) -> tuple[Crossing, ...]:
    """Known patients with slices in several parts, by name."""
    known = (record for record in records if record.patient_known)
    return tuple(_crossings((record.patient_id, record.split) for record in known))


def sources_across(records: Sequence[Record]) -> tuple[Crossing, ...]:
    """Sources with slices in several parts, by name."""
    sizes = Counter(record.source for record in records)
    large = {printable(name) for name, size in sizes.items() if size > LARGEST_PUBLICATION * len(records)}
    found = _crossings((record.source, record.split) for record in records)
    return tuple(replace(crossing, collection=crossing.name in large) for crossing in found)


def leakage_warnings(
    pairs: Sequence[Pair], patients: Sequence[Crossing], sources: Sequence[Crossing]
) -> tuple[str, ...]:
    """One sentence on each kind of thing that several parts share, the worst first."""
    warnings = []
    copies = [pair for pair in pairs if pair.kind != "lookalike" and pair.across_parts]
    if copies:
        slices = sum(map(len, groups_of(copies)))
        conflicts = sum(pair.across_labels for pair in copies)
        opposite = f", {conflicts} of them with opposite labels" if conflicts else ""
        warnings.append(
            f"{counted(len(copies), 'pair')} of slices in different parts show the same slice"
            f"{opposite} ({slices} slices): {_name_pairs(copies)}."
        )
    if patients:
        names = name_some([crossing.name for crossing in patients])
        warnings.append(f"{counted(len(patients), 'patient')} in several parts: {names}.")
    lookalikes = [pair for pair in pairs if pair.kind == "lookalike" and pair.across_parts]
    if lookalikes:
        warnings.append(
            f"{counted(len(lookalikes), 'pair')} of slices in different parts look like neighbouring slices "
            f"of one patient, though they are not said to be: {_name_pairs(lookalikes)}."
        )
    publications = [crossing.name for crossing in sources if not crossing.collection]
    if publications:
        warnings.append(
            f"{counted(len(publications), 'publication')} in several parts: {name_some(publications)}. "
            "Slices of one publication share window, scanner and layout."
        )
    return tuple(warnings)


def file_name(record: Record) -> str:
    """The name of a record's file, as text that can always be written as UTF-8."""
    return printable(record.path.name)


def _crossings(places: Iterable[tuple[str, str | None]]) -> list[Crossing]:
    counts: dict[str, Counter[str]] = {}
    for name, part in places:
        if part is not None:
            counts.setdefault(name, Counter())[part] += 1
    return [
        Crossing(printable(name), {part: parts[part] for part in PARTS if parts[part]})
        for name, parts in sorted(counts.items())
        if len(parts) > 1
    ]


def _name_pairs(pairs: Sequence[Pair]) -> str:
    return name_some([f"{file_name(pair.first)} and {file_name(pair.second)}" for pair in pairs], shown=3)
