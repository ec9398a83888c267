"""Splits: which slices are trained on, selected on and tested on, with no patient on two sides."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

import numpy as np

from groundglass.data.manifest import PARTS, Label, Manifest, Record, say
from groundglass.errors import DataError
from groundglass.files import counted, name_some, printable

Crossings = dict[str, dict[str, int]]
"""By name of a patient or source how many slices it has in each part."""

Parts = dict[str, tuple[int, ...]]
_Fold = tuple[int, int, int]  # number (from 1), of so many, seed

_SPECIFICATIONS = (
    "official, random[:SEED], random:FOLD/FOLDS[:SEED], patients:FOLD/FOLDS[:SEED], leave-source-out:NAME[+NAME...]"
)
_VALIDATING = 10  # of sources without a split, one patient in so many
_VAL_FOLDS = 5  # one fold in five of what is left after the test part is the val part
_RANDOM_FOLDS, _RANDOM_VAL_FOLDS = 5, 8  # slices split at random: 70 % train, 10 % val, 20 % test


@dataclass(frozen=True)
class Split:
    """A named split: its specification, and as far as it has them ``train``, ``val`` and ``test``.

    Parts are ascending indices into the manifest's records.
    """

    name: str
    parts: Parts

    def part(self, name: str) -> tuple[int, ...]:
        """Indices of one part; a `DataError` if the split has no such part."""
        if name not in self.parts:
            raise DataError(f"split {self.name} has no part {name!r}, only {', '.join(self.parts)}")
        return self.parts[name]


def make_split(manifest: Manifest, spec: str, seed: int = 0, allow_overlap: bool = False) -> Split:
    """Split a manifest's records. The same records and seed give the same split, whatever their order.

    - ``official``: as the data set's own ``split`` column says. Of a source without any split one patient in ten
      validates and the others train; in a source with one, slices without are left out. Where no slice has one,
      a fifth of the patients tests and a fifth of the others validates, both stratified by label.
    - ``random:FOLD/FOLDS``: fold FOLD (from 1) of a stratified k-fold over slices is the test part, an eighth of the
      others the val part; ``random`` is the first of five. The paper does not say how it split; this is the plainest
      reading. It puts slices of one patient on both sides, which flatters the result.
    - ``patients:FOLD/FOLDS``: the same over patients; a fifth of the remaining patients is the val part.
    - ``leave-source-out:NAME[+NAME...]``: all slices of these sources (``*`` as wildcard) are the test part, which may
      hold one class only; a fifth of the remaining patients the val part; where the data have a split of their own,
      the remaining slices keep it, but for its test part, which is left out.

    ``random:SEED``, and folds that end in ``:SEED``, are the same for every ``seed``, so that trainings of
    several seeds are evaluated on the same slices.

    Raises:
        DataError: if ``spec`` is unknown or impossible for this data, a record has no label, or patients are in
            several parts and ``allow_overlap`` does not accept that.
    """
    kind, _, argument = spec.partition(":")
    makers = {"official": _official, "leave-source-out": _leave_source_out, "random": _folds, "patients": _folds}
    if kind not in makers:
        raise DataError(f"split {spec!r} is unknown; choose one of: {_SPECIFICATIONS}")
    if count := sum(record.label is None for record in manifest):
        raise DataError(f"{manifest}: {count} of {len(manifest)} slices have no label, so it cannot be split")
    found = makers[kind](manifest, kind, argument, seed)
    parts = {name: tuple(sorted(found[name])) for name in PARTS if found.get(name)}
    for name in ("train", "val"):
        present = {manifest.records[index].label for index in parts.get(name, ())}
        if name in parts and (absent := [label.value for label in Label if label not in present]):
            raise DataError(f"split {spec}: its {name} part would hold no {absent[0]} slice")
    places = ((manifest.records[index], name) for name, part in parts.items() for index in part)
    known = ((record.patient_id, name) for record, name in places if record.patient_known)
    if not allow_overlap and (patients := in_several_parts(known)):
        ignored = "a random split ignores patients; " if kind == "random" else ""
        raise DataError(
            f"split {spec}: {counted(len(patients), 'patient')} in several parts: {name_some(list(patients))}; "
            f"{ignored}split by patients:FOLD/FOLDS instead, or allow the overlap explicitly"
        )
    return Split(spec, parts)


def in_several_parts(places: Iterable[tuple[str, str | None]]) -> Crossings:
    """Of patients or sources, each named with the part of one of its slices, those in several parts, sorted."""
    counts = Counter(places)
    found = {
        name: {part: counts[name, part] for part in PARTS if counts[name, part]}
        for name in sorted({name for name, _ in counts})
    }
    return {name: parts for name, parts in found.items() if len(parts) > 1}


def held_out(records: Sequence[Record], one_in: int) -> set[int]:
    """Numbers of the slices of one patient in ``one_in`` of each source, chosen by a hash of the patient's id alone."""
    patients: dict[str, set[str]] = {}
    for record in records:
        patients.setdefault(record.hospital, set()).add(record.patient_id)
    chosen: set[str] = set()
    for ids in patients.values():
        ordered = sorted(ids, key=lambda patient: hashlib.sha256(printable(patient).encode()).digest())
        chosen.update(ordered[: round(len(ids) / one_in)])
    return {number for number, each in enumerate(records) if each.patient_id in chosen}


def _official(manifest: Manifest, kind: str, argument: str, seed: int) -> Parts:
    if argument:
        raise DataError(f"split official takes nothing after a colon, not {argument!r}")
    if any(record.split for record in manifest):
        return _own_parts(manifest, range(len(manifest)))
    people = [len({each.patient_id for each in manifest if each.label is label}) for label in Label]
    folds = min(_VAL_FOLDS, *people)
    known = any(record.patient_known for record in manifest)
    if folds < len(PARTS) or not known:
        why = f"{min(people)} patients of a label are too few to make one" if known else "names no patients"
        raise DataError(
            f"{manifest}: has no split of its own and {why}; give it a column `split`, or patients in folders of "
            "their own or a column `patient_id`, or take --split random"
        )
    parts = _three_parts(manifest, (1, folds, 0), folds - 1)
    counts = ", ".join(f"{name} {len(part)}" for name, part in parts.items())
    say(f"{manifest}: no split is given, so whole patients were parted: {counts} slices")
    return parts


def _own_parts(manifest: Manifest, indices: Sequence[int]) -> Parts:
    """The parts that the data set's own split gives, and those of sources without one."""
    records = manifest.records
    split = {records[index].hospital for index in indices if records[index].split}
    free = [index for index in indices if records[index].hospital not in split]
    val = held_out([records[index] for index in free], _VALIDATING)
    placed = {index: "val" if place in val else "train" for place, index in enumerate(free)}
    return {part: tuple(i for i in indices if placed.get(i, records[i].split) == part) for part in PARTS}


def _leave_source_out(manifest: Manifest, kind: str, argument: str, seed: int) -> Parts:
    names = [name for name in argument.split("+") if name]
    sources = sorted({name for record in manifest for name in (record.source, record.hospital)})
    if not names:
        listed = name_some(sources, 12)
        raise DataError(f"leave-source-out needs a source: leave-source-out:NAME with one of {listed}")
    for name in names:
        if not any(source == name or fnmatchcase(source, name) for source in sources):
            raise DataError(f"leave-source-out: no source {name!r}; this data has {name_some(sources, 12)}")
    left_out = {source for source in sources if any(source == name or fnmatchcase(source, name) for name in names)}
    test = [i for i, each in enumerate(manifest) if not left_out.isdisjoint((each.source, each.hospital))]
    rest = sorted({*range(len(manifest))}.difference(test))
    if not rest:
        raise DataError(f"{manifest}: every slice is of these sources, none is left to train on")
    if any(manifest.records[index].split for index in rest):
        return {**_own_parts(manifest, rest), "test": tuple(test)}
    train, val = _train_and_val(manifest, rest, _VAL_FOLDS, seed)
    return {"train": train, "val": val, "test": tuple(test)}


def _folds(manifest: Manifest, kind: str, argument: str, seed: int) -> Parts:
    """The splits by folds of all slices or patients."""
    if kind == "random" and re.fullmatch(r"\d{0,9}", argument):
        argument = f"1/{_RANDOM_FOLDS}" + (argument and f":{argument}")
    match = re.fullmatch(r"(\d+)/(\d+)(?::(\d{1,9}))?", argument)
    if match is None or int(match[2]) < 2 or not 1 <= int(match[1]) <= int(match[2]):
        raise DataError(
            f"split {kind}:{argument} is not {kind}:FOLD/FOLDS, such as {kind}:1/5 to {kind}:5/5, or "
            f"{kind}:FOLD/FOLDS:SEED"
        )
    # With every patient unknown, a split by patient would quietly be one by image.
    if kind == "patients" and not any(record.patient_known for record in manifest):
        raise DataError(
            f"{manifest}: names no patients, so {kind} is impossible; put each patient's files in a "
            "folder of their own or give patient_id in a manifest CSV"
        )
    fold = int(match[1]), int(match[2]), int(match[3] or seed)
    return _three_parts(manifest, fold, _RANDOM_VAL_FOLDS if kind == "random" else _VAL_FOLDS, kind == "patients")


def _three_parts(manifest: Manifest, fold: _Fold, val_folds: int, by_patient: bool = True) -> Parts:
    """A fold of everything tests, the first of ``val_folds`` of the rest, fewer where patients are few, validates."""
    rest, test = _grouped_fold(manifest, range(len(manifest)), fold, by_patient)
    train, val = _train_and_val(manifest, rest, val_folds, fold[2], by_patient)
    return {"train": train, "val": val, "test": test}


def _train_and_val(
    manifest: Manifest, rest: Sequence[int], folds: int, seed: int, by_patient: bool = True
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    if by_patient:
        chosen = [manifest.records[index] for index in rest]
        people = (len({each.patient_id for each in chosen if each.label is label}) for label in Label)
        folds = max(2, min(folds, *people))
    return _grouped_fold(manifest, rest, (1, folds, seed), by_patient)


def _grouped_fold(
    manifest: Manifest, indices: Iterable[int], fold: _Fold, by_patient: bool = True
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The other folds and this one of a label-stratified k-fold over patients or slices."""
    from sklearn.model_selection import StratifiedGroupKFold  # noqa: PLC0415 - slow to import

    def place(index: int) -> tuple[str, str, str]:
        record = manifest.records[index]
        return record.path.name.rpartition("!")[2], record.patient_id, str(record.path)

    number, folds, seed = fold
    # An order that depends on neither where the files lie nor how they were listed.
    ordered = sorted(indices, key=place)
    chosen = [manifest.records[index] for index in ordered]
    groups = np.array([record.patient_id if by_patient else str(place) for place, record in enumerate(chosen)])
    labels = np.array([record.label is Label.COVID for record in chosen], dtype=np.int64)
    for label in Label:
        count = len({*groups[labels == (label is Label.COVID)]})
        if count < folds:
            what = "patients" if by_patient else "slices"
            raise DataError(f"{manifest}: {count} {label.value} {what} are too few for {folds} folds")
    splitter = StratifiedGroupKFold(n_splits=folds, shuffle=True, random_state=seed)
    others, held = list(splitter.split(labels, labels, groups))[number - 1]
    return tuple(ordered[i] for i in others), tuple(ordered[i] for i in held)
