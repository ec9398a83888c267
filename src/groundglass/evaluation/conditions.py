"""One part judged under several conditions by the same networks, and by how much the figures differ."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from groundglass.evaluation.by_patient import Sampled
from groundglass.evaluation.intervals import resample_patients, weighted_metrics
from groundglass.evaluation.metrics import THRESHOLD, compute_metrics
from groundglass.evaluation.paired import paired_difference
from groundglass.evaluation.paired_rows import Spread, spread_over_runs
from groundglass.evaluation.part import Part

COMPARED = ("auc", "accuracy")
"""Measures of which differences between conditions are given."""

Probabilities = Mapping[int | None, NDArray[np.float64]]
"""What a run says of a part's N slices, shape (N,), by the quality of their container; None as they are."""

_Sample = Mapping[str, Sampled]


@dataclass(frozen=True)
class Condition:
    """One way to evaluate a part.

    Attributes:
        quality: every slice is brought to a JPEG of this quality; None for slices as they are.
        without_conflicts: slices with a copy of the opposite label are left out.
    """

    quality: int | None = None
    without_conflicts: bool = False

    @property
    def title(self) -> str:
        """The condition in words."""
        words = ["as they are"] if self.quality is None else [f"JPEG of quality {self.quality}"]
        return ", ".join([*words, *(["without conflicting twins"] if self.without_conflicts else [])])

    @property
    def references(self) -> tuple[Condition, ...]:
        """What it is compared with: each condition that differs in one thing, and slices as they are."""
        fewer = (Condition(None, self.without_conflicts), Condition(self.quality, False), Condition())
        return tuple(other for other in dict.fromkeys(fewer) if other != self)


@dataclass(frozen=True)
class ConditionDifference:
    """A condition less another, both judged by the same networks.

    Attributes:
        second: title of the other.
        measure: one of `COMPARED`.
        value: mean over the runs; None where the measure is undefined.
        low: lower bound of the 95 % interval under resampling of patients.
        high: upper bound.
        p: two-sided, of the same bootstrap.
    """

    second: str
    measure: str
    value: float | None
    low: float | None
    high: float | None
    p: float | None


@dataclass(frozen=True)
class ConditionFigures:
    """One row of networks under one condition.

    Attributes:
        title: of the condition.
        quality: of its container, if any.
        without_conflicts: whether slices were left out.
        slices: judged.
        covid: of them.
        patients: whose they are.
        measures: mean and spread over the runs, by the measures' keys.
        changed: slices called otherwise than as they are, of each run.
        differences: from other conditions.
    """

    title: str
    quality: int | None
    without_conflicts: bool
    slices: int
    covid: int
    patients: int
    measures: Mapping[str, Spread]
    changed: tuple[int, ...]
    differences: tuple[ConditionDifference, ...]


class ConditionedPart:
    """A part whose conflicting slices are known, and resamples of its patients for all conditions alike.

    Args:
        part: the slices.
        kept: which of the N slices have no copy of the opposite label, shape (N,).
        resamples: of the bootstrap over patients.
        seed: of the bootstrap.
    """

    def __init__(self, part: Part, kept: NDArray[np.bool_], resamples: int, seed: int) -> None:
        self._label, self._patient, self._kept = part.label, part.patient, kept
        self._resamples, self._seed = resamples, seed

    def figures(
        self, conditions: Sequence[Condition], runs: Sequence[Probabilities]
    ) -> tuple[ConditionFigures, ...]:
        """The figures of a row of networks under every condition.

        Args:
            conditions: each with the conditions it refers to, or without them where they are not wanted.
            runs: what each network says.
        """
        sampled = {
            condition: [self._sample(condition, run[condition.quality]) for run in runs]
            for condition in conditions
        }
        return tuple(self._figures(condition, runs, sampled) for condition in sampled)

    def _figures(
        self,
        condition: Condition,
        runs: Sequence[Probabilities],
        sampled: Mapping[Condition, Sequence[_Sample]],
    ) -> ConditionFigures:
        chosen = self._chosen(condition)
        patients = len(np.unique(self._patient[chosen]))
        own = sampled[condition]
        return ConditionFigures(
            condition.title,
            condition.quality,
            condition.without_conflicts,
            int(chosen.sum()),
            int(self._label[chosen].sum()),
            patients,
            dict(_spreads(own, patients)),
            tuple(_changed(run[condition.quality][chosen], run[None][chosen]) for run in runs),
            tuple(
                _difference(own, sampled[other], other.title, measure, patients)
                for other in condition.references
                if other in sampled
                for measure in COMPARED
            ),
        )

    def _chosen(self, condition: Condition) -> NDArray[np.bool_]:
        return self._kept if condition.without_conflicts else np.ones_like(self._kept)

    def _sample(self, condition: Condition, probability: NDArray[np.float64]) -> _Sample:
        """Every measure of a condition's slices, as they are and in every resample of all patients."""
        chosen = self._chosen(condition)
        label, said = self._label[chosen], probability[chosen]
        member = np.unique(self._patient, return_inverse=True)[1]
        # A resample can hold none of the chosen slices; its measures are NaN and left out of intervals.
        with np.errstate(invalid="ignore"):
            blocks = [
                weighted_metrics(label, said, weights[:, chosen])
                for weights in resample_patients(member, self._resamples, self._seed)
            ]
        values = compute_metrics(label, said).values()
        return {
            name: Sampled(
                np.nan if value is None else value, np.concatenate([block[name] for block in blocks])
            )
            for name, value in values.items()
        }


def _spreads(runs: Sequence[_Sample], patients: int) -> Iterator[tuple[str, Spread]]:
    for name in runs[0]:
        values = [None if np.isnan(run[name].value) else run[name].value for run in runs]
        yield name, spread_over_runs(values, _mean(runs, name).draws, patients)


def _mean(runs: Sequence[_Sample], name: str) -> Sampled:
    """A measure's mean over runs, resample by resample."""
    value = float(np.mean([run[name].value for run in runs]))
    return Sampled(value, np.mean([run[name].draws for run in runs], axis=0))


def _difference(
    runs: Sequence[_Sample], others: Sequence[_Sample], title: str, measure: str, patients: int
) -> ConditionDifference:
    first, second = _mean(runs, measure), _mean(others, measure)
    value = (first - second).value
    tested = paired_difference(first.draws, second.draws, patients)
    known = None if np.isnan(value) else value
    return ConditionDifference(title, measure, known, tested.low, tested.high, tested.p)


def _changed(first: NDArray[np.float64], second: NDArray[np.float64]) -> int:
    """Slices that are called otherwise."""
    return int(np.sum((first >= THRESHOLD) != (second >= THRESHOLD)))
