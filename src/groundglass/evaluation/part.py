"""The slices of a data set that are evaluated, what they share with the training, and the log of evaluations.

A test part says something only while nothing is chosen on it. Evaluating it again is not forbidden, but counted
in a run's folder.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence, Set
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import StratifiedGroupKFold

from groundglass.data.manifest import Label, Manifest, Record, content_hash
from groundglass.data.splits import make_split
from groundglass.errors import DataError, ImageError, RunError
from groundglass.files import name_some, printable, write_json

_Fold = tuple[NDArray[np.intp], NDArray[np.intp]]


@dataclass(frozen=True)
class Part:
    """Labelled slices to evaluate, from the data set ``data`` that was read from ``root``.

    ``name`` is ``train``, ``val``, ``test`` or ``all``, which has no ``split``; ``unlabelled`` slices were left out.
    """

    data: str
    root: Path
    split: str | None
    name: str
    records: tuple[Record, ...]
    unlabelled: int = 0

    def of_both_labels(self) -> Part:
        """The slices of sources with both labels, where there are such: with one label a source tells little."""
        single = one_label(self.records)
        both = tuple(each for each in self.records if each.hospital not in single)
        return replace(self, records=both) if both else self

    @property
    def label(self) -> NDArray[np.int8]:
        """1 for COVID and 0 for NonCOVID, shape (N,)."""
        return np.array([record.label is Label.COVID for record in self.records], np.int8)

    @property
    def patient(self) -> NDArray[np.str_]:
        """Patient ids, shape (N,)."""
        return np.array([record.patient_id for record in self.records], np.str_)

    @property
    def title(self) -> str:
        """The part in words, such as ``COVID-CT, test part (split official)``."""
        which = "all slices" if self.split is None else f"{self.name} part (split {self.split})"
        return f"{self.data}, {which}"

    def file(self, record: Record) -> str:
        """A record's path below the data set's folder, as text that can always be written as UTF-8."""
        path = record.path
        path = path.relative_to(self.root) if path.is_relative_to(self.root) else path
        return printable(path.as_posix())


def select_part(manifest: Manifest, split: str | None, part: str, seed: int) -> Part:
    """Pick the labelled slices of one part; arguments as of :func:`groundglass.evaluation.evaluate.evaluate`.

    Raises:
        DataError: the split has no such part, or the part holds no labelled slice.
    """
    records = manifest.records
    if part == "all":
        split = None
    elif split is None:
        raise DataError(f"part {part!r} of which split? Name one, for example --split official")
    else:
        indices = make_split(manifest, split, seed=seed, allow_overlap=True).part(part)
        records = tuple(records[index] for index in indices)
    labelled = tuple(record for record in records if record.label is not None)
    if not labelled:
        what = f"the {part} part of {manifest.name}" if split else f"{manifest.name} ({manifest})"
        why = f"none of its {len(records)} slices has a label" if records else "it is empty"
        raise DataError(f"{what} cannot be evaluated: {why}")
    return Part(manifest.name, manifest.root, split, part, labelled, len(records) - len(labelled))


def fingerprint(part: Part, hashes: Sequence[str]) -> str:
    """SHA-256 over contents and labels: equal for the same slices, wherever they lie and however ordered."""
    lines = sorted(f"{sha256} {each.label_name}" for sha256, each in zip(hashes, part.records, strict=True))
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def one_label(records: Iterable[Record]) -> dict[str, str]:
    """Of several sources, those whose slices all have one label, and that label."""
    labels = {(record.hospital, record.label.value) for record in records if record.label}
    times = Counter(source for source, _ in labels)
    return {source: label for source, label in sorted(labels) if times[source] == 1 < len(times)}


def patient_folds(label: NDArray[np.int8], patient: NDArray[np.str_], seed: int) -> list[_Fold]:
    """Slices to fit to and to predict of each of at most five folds over patients; none where it would fit one label.

    ``label`` and ``patient`` are as in `Part`, shape (N,).
    """
    count = min(5, *(len(np.unique(patient[label == value])) for value in (0, 1)))
    if count < 2:
        return []
    folds = list(StratifiedGroupKFold(count, shuffle=True, random_state=seed).split(label, label, patient))
    return folds if all(np.ptp(label[fitted]) for fitted, _ in folds) else []


def part_warnings(
    manifest: Manifest, part: Part, hashes: Sequence[str], trained: Set[str], trained_on: str,
    probability: NDArray[np.float64],
) -> list[str]:  # fmt: skip
    """What a reader must know of these slices before trusting their figures, most serious first.

    A slice was trained on if its file has the same content as a training slice's, wherever it lies now; a patient if
    any of the data set's slices of that patient was. ``hashes`` are SHA-256 of the part's slices, ``trained`` those of
    every training slice, empty where not known; ``trained_on`` is the split of the training, ``probability`` that of
    COVID, shape (N,).
    """
    warnings, count = [], len(hashes)
    if not trained:
        warnings.append("The run does not say which slices it was trained on: they may be among these.")
    if seen := sum(sha256 in trained for sha256 in hashes):
        warnings.append(f"The network was trained on {seen} of these {count} slices: the figures are too good.")
    patients = _trained_patients(manifest, dict(zip(part.records, hashes, strict=True)), trained)
    if shared := [record.patient_id for record in part.records if record.patient_id in patients]:
        warnings.append(
            f"{len(shared)} of {count} slices belong to {len(set(shared))} patients of whom the network was "
            "trained on a slice: the figures are too good."
        )
    if part.name == "val" and part.split == trained_on:
        warnings.append("The validation part chooses recipe and weights: its figures are optimistic.")
    if single := one_label(part.records):
        named = name_some([f"{source} ({label})" for source, label in single.items()])
        rest = np.array([record.hospital not in single for record in part.records])
        auc = f"{roc_auc_score(part.label[rest], probability[rest]):.3f}" if rest.any() else "not known"
        warnings += [f"Slices of {named} have one label, which flatters.", f"Without {named} the AUC is {auc}."]
    if part.unlabelled:
        warnings.append(f"{part.unlabelled} slices without a label were left out.")
    if unknown := sum(not record.patient_known for record in part.records):
        warnings.append(
            f"The patient of {unknown} of {count} slices is not known; each of their files counts as a "
            "patient of its own, so that intervals may be too narrow."
        )
    return warnings


def _trained_patients(manifest: Manifest, known: Mapping[Record, str], trained: Set[str]) -> set[str]:
    """Known patients of the data set's slices that were trained on; ``known`` are hashes of some."""
    patients: set[str] = set()
    for record in manifest.records if trained else ():
        if record.patient_known and record.patient_id not in patients:
            # What cannot be read lies outside the part and was not trained on.
            with suppress(ImageError):
                if (known.get(record) or content_hash(record)) in trained:
                    patients.add(record.patient_id)
    return patients


def record_evaluation(run: Path, part: Part, sha256: str, time: str, output: Path) -> int:
    """Add an evaluation to the log in a run's folder; says how often its slices have been evaluated with this run.

    ``sha256`` is the :func:`fingerprint` of the part's slices, ``time`` ISO 8601 in UTC. A RunError where the log is
    damaged or cannot be written.
    """
    entry = {
        "data": part.data, "split": part.split, "part": part.name, "slices": len(part.records),
        "fingerprint": sha256, "time": time, "output": printable(output.absolute()),
    }  # fmt: skip
    path = run / "evaluations.json"
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))["evaluations"] if path.exists() else []
        times = [each["fingerprint"] for each in (*entries, entry)].count(sha256)
        write_json(path, {"format": 1, "evaluations": [*entries, entry]})
    except OSError as error:
        advice = f"the evaluation cannot be recorded ({error}); make the run writable"
        raise RunError(f"{path}: {advice}") from None
    except (ValueError, TypeError, KeyError) as error:
        raise RunError(f"{path}: the evaluation log cannot be read ({error}); repair or remove it") from None
    return times
