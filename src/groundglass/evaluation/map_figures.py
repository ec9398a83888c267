"""From what networks say of painted slices to figures with intervals, by severity and kind of the lesion."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from groundglass.evaluation.by_patient import PatientResamples, Sampled
from groundglass.evaluation.map_answers import RISE, Answer
from groundglass.evaluation.painted_slices import KINDS, SEVERITIES, PaintedSlice
from groundglass.evaluation.paired import paired_difference
from groundglass.evaluation.paired_rows import Spread, spread_over_runs

EVERYTHING = "all"

COMPARED = ("pointing", "energy", f"pointing{RISE}", f"energy{RISE}", "noticed", "auc")
"""Measures of which differences between models are given."""

_EVEN = {
    "pointing": "even_pointing",
    "near": "near_of_lungs",
    "energy": "even_energy",
    "energy_of_lungs": "even_energy_of_lungs",
}

Measures = Mapping[str, Sampled]


@dataclass(frozen=True)
class Figures:
    """What one model's maps are worth on some of a group's paintings.

    Attributes:
        subset: ``all``, ``severity 0.25``, ``kind consolidation`` and the like.
        paintings: how many.
        measures: mean and spread over the model's runs, by name: the means of all scores of
            `map_answers.Answer`; ``twin_called``, the share of untouched slices called COVID; ``auc`` of
            painted against untouched slices; and ending in ``_beyond``, by how much a map exceeds one of its
            grid that shows the lungs and nothing else.
    """

    subset: str
    paintings: int
    measures: Mapping[str, Spread]


@dataclass(frozen=True)
class MapDifference:
    """The first model less another on the same paintings.

    Attributes:
        first: its name.
        second: name of the other.
        measure: one of `COMPARED`.
        value: of the means over runs.
        low: lower bound of the 95 % interval under resampling of patients; None for fewer than two.
        high: upper bound.
        p: two-sided, of the same bootstrap.
    """

    first: str
    second: str
    measure: str
    value: float
    low: float | None
    high: float | None
    p: float | None


@dataclass(frozen=True)
class Cases:
    """The painted copies of a group of slices, in the order in which they were judged.

    Attributes:
        kind: of each of N copies.
        severity: likewise.
        patient: likewise.
        twin_patient: of each of M untouched slices.
    """

    kind: NDArray[np.str_]
    severity: NDArray[np.float64]
    patient: NDArray[np.str_]
    twin_patient: NDArray[np.str_]

    @classmethod
    def of(cls, rows: Sequence[tuple[str, float, str]], twin_patients: Sequence[str]) -> Cases:
        """Cases from kind, severity and patient of each copy, at least one."""
        kind, severity, patient = zip(*rows, strict=True)
        twins = np.array(twin_patients, np.str_)
        return cls(np.array(kind, np.str_), np.array(severity), np.array(patient, np.str_), twins)

    @staticmethod
    def rows(piece: PaintedSlice) -> list[tuple[str, float, str]]:
        """Kind, severity and patient of each copy of a slice."""
        return [(each.kind.value, each.severity, piece.patient) for each in piece.paintings]

    def subsets(self) -> Iterator[tuple[str, NDArray[np.bool_]]]:
        """Names of subsets that hold a copy, and which; a subset that holds all of them is not told apart."""
        everything = np.ones(len(self.kind), np.bool_)
        yield EVERYTHING, everything
        parts = [(f"severity {severity:g}", self.severity == severity) for severity in SEVERITIES]
        parts += [(f"kind {kind.value}", self.kind == kind.value) for kind in KINDS]
        yield from ((name, chosen) for name, chosen in parts if chosen.any() and not chosen.all())


def sample(
    answers: Sequence[Answer], cases: Cases, chosen: NDArray[np.bool_], resamples: PatientResamples
) -> Measures:
    """Every measure of one run on some copies.

    Args:
        answers: of each untouched slice, its copies with it.
        cases: what the copies are.
        chosen: which of them are measured, shape (N,), at least one.
        resamples: of the group's patients.
    """
    scores = [score for answer in answers for score in answer.scores]
    patient, twin_patient = cases.patient[chosen], cases.twin_patient
    columns = {name: np.array([score[name] for score in scores])[chosen] for name in scores[0]}
    twins = {name: np.array([answer.twin[name] for answer in answers]) for name in answers[0].twin}
    measures = {name: resamples.mean(values, patient) for name, values in columns.items()}
    measures["twin_called"] = resamples.mean(twins["called"], twin_patient)
    measures["auc"] = resamples.auc(columns["logit"], patient, twins["logit"], twin_patient)
    for name, chance in _EVEN.items():
        for each in (name, f"{name}{RISE}"):
            measures[f"{each}_beyond"] = measures[each] - measures[chance]
    return measures


def figures(
    runs: Sequence[Sequence[Answer]], cases: Cases, resamples: PatientResamples
) -> tuple[Figures, ...]:
    """A model's figures, on everything and on subsets.

    Args:
        runs: the answers of each of its runs.
        cases: what the copies are.
        resamples: of the group's patients.
    """
    return tuple(
        Figures(subset, int(chosen.sum()), _spreads(runs, cases, chosen, resamples))
        for subset, chosen in cases.subsets()
    )


def differences(
    models: Mapping[str, Sequence[Sequence[Answer]]], cases: Cases, resamples: PatientResamples
) -> Iterator[MapDifference]:
    """The first model less each other one, on everything.

    Args:
        models: the answers of each run, by model.
        cases: what the copies are.
        resamples: of the group's patients.
    """
    everything = np.ones(len(cases.kind), np.bool_)
    means = {
        name: _mean([sample(answers, cases, everything, resamples) for answers in runs])
        for name, runs in models.items()
    }
    first, *others = means
    for other in others:
        for measure in COMPARED:
            one, two = means[first][measure], means[other][measure]
            tested = paired_difference(one.draws, two.draws, resamples.patients)
            yield MapDifference(first, other, measure, (one - two).value, tested.low, tested.high, tested.p)


def _spreads(
    runs: Sequence[Sequence[Answer]],
    cases: Cases,
    chosen: NDArray[np.bool_],
    resamples: PatientResamples,
) -> dict[str, Spread]:
    sampled = [sample(answers, cases, chosen, resamples) for answers in runs]
    return {
        name: spread_over_runs([each[name].value for each in sampled], mean.draws, resamples.patients)
        for name, mean in _mean(sampled).items()
    }


def _mean(runs: Sequence[Measures]) -> Measures:
    """The mean over runs, resample by resample."""
    return {
        name: Sampled(
            float(np.mean([run[name].value for run in runs])),
            np.mean([run[name].draws for run in runs], axis=0),
        )
        for name in runs[0]
    }
