"""Splits: which slices are trained on, selected on and tested on, with no patient on two sides."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

import numpy as np
from numpy.typing import NDArray

from groundglass.data.manifest import PARTS, Label, Manifest, Record, split_member
from groundglass.errors import DataError
from groundglass.files import name_some

RANDOM_FRACTIONS = {"train": 0.60, "val": 0.15, "test": 0.25}
VAL_FRACTION = 0.20
"""Share of what is left after the test part that becomes the val part, in splits by patient or source."""

SPECIFICATIONS = (
    "official, random[:SEED], patients:FOLD/FOLDS[:SEED], leave-source-out:NAME[+NAME...], "
    "official-cv:FOLD/FOLDS[:SEED], official-source-cv:FOLD/FOLDS[:SEED]"
)

LARGEST_PUBLICATION = 0.10
"""A source with more than this share of the slices is a collection of many hospitals, not one publication."""

Parts = dict[str, tuple[int, ...]]


@dataclass(frozen=True)
class Split:
    """A named split.

    Attributes:
        name: its specification.
        parts: ``train``, ``val`` and ``test``, as far as the split has them, as ascending indices into the
            manifest's records.
    """

    name: str
    parts: Parts

    def part(self, name: str) -> tuple[int, ...]:
        """Indices of one part.

        Raises:
            DataError: if the split has no such part.
        """
        if name not in self.parts:
            raise DataError(f"split {self.name} has no part {name!r}, only {', '.join(self.parts)}")
        return self.parts[name]


@dataclass(frozen=True)
class _Fold:
    """Fold ``number`` (from 1) of ``folds``, drawn by ``seed``."""

    number: int
    folds: int
    seed: int


def make_split(manifest: Manifest, spec: str, seed: int = 0, allow_overlap: bool = False) -> Split:
    """Split a manifest's records. The same records and seed give the same split, whatever their order.

    - ``official``: as the data set's own ``split`` column says; records without one are left out.
    - ``random``: stratified by label, 60/15/25, patients not regarded. The paper says neither how it split
      COVID-CT nor into how large parts, nor whether it looked at patients; this is the plainest reading. It
      puts slices of one patient on both sides, which flatters the result.
    - ``patients:FOLD/FOLDS``: fold FOLD (from 1) of a stratified k-fold over patients is the test part; a
      fifth of the remaining patients the val part.
    - ``leave-source-out:NAME[+NAME...]``: all slices of these sources (``*`` as wildcard) are the test part;
      a fifth of the remaining patients the val part. The test part may hold one class only.
    - ``official-cv:FOLD/FOLDS``: stratified k-fold over the patients of the official train and val parts:
      fold FOLD is the val part, the others the train part; there is no test part.
    - ``official-source-cv:FOLD/FOLDS``: the same, with all slices of one publication in one fold. Patients
      of one publication share window, scanner and layout; with some of them in training, the others are
      easier than the official test part, hardly any of whose publications are in training.

    ``random:SEED``, and folds that end in ``:SEED``, are the same for every ``seed``, so that trainings of
    several seeds are judged on the same slices.

    Args:
        manifest: labelled records.
        spec: one of the above.
        seed: decides every random choice.
        allow_overlap: accept patients that are in more than one part.

    Raises:
        DataError: if ``spec`` is unknown or impossible for this data, or patients are in several parts.
    """
    kind, _, argument = spec.partition(":")
    if kind not in _MAKERS:
        raise DataError(f"split {spec!r} is unknown; choose one of: {SPECIFICATIONS}")
    if not manifest.labelled:
        count = sum(record.label is None for record in manifest)
        raise DataError(
            f"{manifest.root}: {count} of {len(manifest)} slices have no label, so it cannot be split"
        )
    parts = _MAKERS[kind](manifest, argument, seed)
    ordered = {name: tuple(sorted(parts[name])) for name in PARTS if name in parts}
    _check_classes(manifest, spec, ordered)
    if not allow_overlap:
        _check_overlap(manifest, spec, ordered)
    return Split(name=spec, parts=ordered)


def patients_in_several_parts(manifest: Manifest, parts: Mapping[str, Sequence[int]]) -> list[str]:
    """Known patients with slices in more than one part, sorted."""
    seen: dict[str, set[str]] = {}
    for name, indices in parts.items():
        for index in indices:
            record = manifest.records[index]
            if record.patient_known:
                seen.setdefault(record.patient_id, set()).add(name)
    return sorted(patient for patient, names in seen.items() if len(names) > 1)


def possible_splits(manifest: Manifest) -> list[str]:
    """Specifications that this manifest has the columns for."""
    possible = ["random"]
    if any(record.patient_known for record in manifest):
        possible.insert(0, "patients:FOLD/FOLDS")
    if len({record.source for record in manifest}) > 1:
        possible.insert(0, "leave-source-out:NAME")
    if any(record.split for record in manifest):
        possible[:0] = ["official", "official-cv:FOLD/FOLDS", "official-source-cv:FOLD/FOLDS"]
    return possible


def _official(manifest: Manifest, argument: str, seed: int) -> Parts:
    _refuse_argument("official", argument)
    _require_split_column(manifest, "official")
    return {part: indices for part in PARTS if (indices := _of_split(manifest, {part}))}


def _random(manifest: Manifest, argument: str, seed: int) -> Parts:
    if argument and not re.fullmatch(r"\d{1,9}", argument):
        raise DataError(f"split random:{argument} is not random:SEED, such as random:0")
    generator = np.random.default_rng(int(argument) if argument else seed)
    parts: dict[str, list[int]] = {name: [] for name in PARTS}
    for label in Label:
        members = _ordered(manifest, (i for i, record in enumerate(manifest) if record.label is label))
        shuffled = [members[i] for i in generator.permutation(len(members))]
        test = round(RANDOM_FRACTIONS["test"] * len(shuffled))
        val = test + round(RANDOM_FRACTIONS["val"] * len(shuffled))
        parts["test"] += shuffled[:test]
        parts["val"] += shuffled[test:val]
        parts["train"] += shuffled[val:]
    return {name: tuple(indices) for name, indices in parts.items()}


def _patients(manifest: Manifest, argument: str, seed: int) -> Parts:
    fold = _parse_fold("patients", argument, seed)
    _require_patients(manifest, "patients")
    rest, test = _grouped_fold(manifest, range(len(manifest)), fold)
    return {**_train_and_val(manifest, rest, fold.seed), "test": test}


def _leave_source_out(manifest: Manifest, argument: str, seed: int) -> Parts:
    names = [name for name in argument.split("+") if name]
    sources = sorted({record.source for record in manifest})
    for name in names:
        if not any(fnmatchcase(source, name) for source in sources):
            raise DataError(f"leave-source-out: no source {name!r}; this data has {name_some(sources, 12)}")
    if not names:
        raise DataError(
            f"leave-source-out needs a source: leave-source-out:NAME with one of {name_some(sources, 12)}"
        )
    test = tuple(
        index
        for index, record in enumerate(manifest)
        if any(fnmatchcase(record.source, name) for name in names)
    )
    rest = sorted(set(range(len(manifest))).difference(test))
    if not rest:
        raise DataError(
            f"leave-source-out:{argument}: every slice is of these sources, none is left to train on"
        )
    return {**_train_and_val(manifest, rest, seed), "test": test}


def _official_cv(manifest: Manifest, argument: str, seed: int) -> Parts:
    fold = _parse_fold("official-cv", argument, seed)
    _require_split_column(manifest, "official-cv")
    _require_patients(manifest, "official-cv")
    train, val = _grouped_fold(manifest, _of_split(manifest, {"train", "val"}), fold)
    return {"train": train, "val": val}


def _official_source_cv(manifest: Manifest, argument: str, seed: int) -> Parts:
    fold = _parse_fold("official-source-cv", argument, seed)
    _require_split_column(manifest, "official-source-cv")
    _require_patients(manifest, "official-source-cv")
    indices = _of_split(manifest, {"train", "val"})
    sizes = Counter(manifest.records[index].source for index in indices)

    def publication(record: Record) -> str:
        small = sizes[record.source] <= LARGEST_PUBLICATION * len(indices)
        return f"source:{record.source}" if small else record.patient_id

    train, val = _grouped_fold(manifest, indices, fold, group=publication)
    return {"train": train, "val": val}


_MAKERS: dict[str, Callable[[Manifest, str, int], Parts]] = {
    "official": _official,
    "random": _random,
    "patients": _patients,
    "leave-source-out": _leave_source_out,
    "official-cv": _official_cv,
    "official-source-cv": _official_source_cv,
}


def _train_and_val(manifest: Manifest, rest: Sequence[int], seed: int) -> Parts:
    train, val = _grouped_fold(manifest, rest, _Fold(1, round(1 / VAL_FRACTION), seed))
    return {"train": train, "val": val}


def _patient(record: Record) -> str:
    return record.patient_id


def _grouped_fold(
    manifest: Manifest,
    indices: Sequence[int],
    fold: _Fold,
    group: Callable[[Record], str] = _patient,
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The other folds and this one of a label-stratified k-fold over groups."""
    from sklearn.model_selection import StratifiedGroupKFold  # noqa: PLC0415 - slow to import

    ordered = _ordered(manifest, indices)
    chosen = [manifest.records[index] for index in ordered]
    labels = np.array([record.label is Label.COVID for record in chosen], dtype=np.int64)
    groups = np.array([group(record) for record in chosen])
    for label in Label:
        count = len({group(record) for record in chosen if record.label is label})
        if count < fold.folds:
            what = "patients" if group is _patient else "patients and publications"
            raise DataError(
                f"{manifest.root}: {count} {label.value} {what} are too few for {fold.folds} folds"
            )
    splitter = StratifiedGroupKFold(n_splits=fold.folds, shuffle=True, random_state=fold.seed)
    pairs: list[tuple[NDArray[np.intp], NDArray[np.intp]]] = list(splitter.split(labels, labels, groups))
    others, held = pairs[fold.number - 1]
    return tuple(ordered[i] for i in others), tuple(ordered[i] for i in held)


def _ordered(manifest: Manifest, indices: Iterable[int]) -> list[int]:
    """Indices in an order that depends on neither where the files lie nor how they were listed."""

    def key(index: int) -> tuple[str, str, str]:
        record = manifest.records[index]
        member = split_member(record.path)
        name = member[1].rsplit("/", 1)[-1] if member else record.path.name
        return name, record.patient_id, str(record.path)

    return sorted(indices, key=key)


def _of_split(manifest: Manifest, names: set[str]) -> tuple[int, ...]:
    return tuple(index for index, record in enumerate(manifest) if record.split in names)


def _parse_fold(kind: str, argument: str, seed: int) -> _Fold:
    match = re.fullmatch(r"(\d+)/(\d+)(?::(\d{1,9}))?", argument)
    if match:
        number, folds = int(match[1]), int(match[2])
        if folds >= 2 and 1 <= number <= folds:
            return _Fold(number, folds, seed if match[3] is None else int(match[3]))
    raise DataError(
        f"split {kind}:{argument} is not {kind}:FOLD/FOLDS, such as {kind}:1/5 to {kind}:5/5, or "
        f"{kind}:FOLD/FOLDS:SEED"
    )


def _refuse_argument(kind: str, argument: str) -> None:
    if argument:
        raise DataError(f"split {kind} takes nothing after a colon, not {argument!r}")


def _require_split_column(manifest: Manifest, kind: str) -> None:
    if not any(record.split for record in manifest):
        raise DataError(
            f"{manifest.root}: says nothing of a split, so {kind} cannot be made; possible: "
            f"{', '.join(possible_splits(manifest))}"
        )


def _require_patients(manifest: Manifest, kind: str) -> None:
    """With every patient unknown, a split by patient would quietly be one by image."""
    if not any(record.patient_known for record in manifest):
        raise DataError(
            f"{manifest.root}: says nothing of patients, so {kind} cannot be made; put each "
            "patient's files in a folder of their own or give patient_id in a manifest CSV"
        )


def _check_classes(manifest: Manifest, spec: str, parts: Parts) -> None:
    for name in ("train", "val"):
        present = {manifest.records[index].label for index in parts.get(name, ())}
        for label in Label:
            if name in parts and label not in present:
                raise DataError(f"split {spec}: its {name} part would hold no {label.value} slice")


def _check_overlap(manifest: Manifest, spec: str, parts: Parts) -> None:
    patients = patients_in_several_parts(manifest, parts)
    if not patients:
        return
    hint = "split by patients:FOLD/FOLDS instead, or allow the overlap explicitly"
    if spec.partition(":")[0] == "random":
        hint = "a random split does not regard patients; " + hint
    raise DataError(
        f"split {spec}: {len(patients)} patients are in several parts: {name_some(patients)}; {hint}"
    )
