"""Rows of a table that were judged on the same slices: mean and spread over seeds, and tests between them."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from groundglass.errors import DataError
from groundglass.evaluation.bootstrap import RESAMPLES, Draws, percentile_interval, resampled_metrics
from groundglass.evaluation.metrics import THRESHOLD, compute_metrics
from groundglass.evaluation.paired import delong_test, holm, mcnemar, paired_difference
from groundglass.experiments.results import Judged, RunResult

ALPHA = 0.05
"""A difference is called one where its corrected p-value is below this."""

TESTED = ("auc", "accuracy")
"""Measures that are tested between rows."""


@dataclass(frozen=True)
class MeanSD:
    """A measure over the seeds of a row.

    Attributes:
        mean: over the seeds; None where a seed has no value.
        sd: standard deviation over the seeds; None for one seed.
        low: lower bound of the mean's 95 % interval under resampling of patients.
        high: upper bound.
        values: of each seed.
    """

    mean: float | None
    sd: float | None
    low: float | None
    high: float | None
    values: tuple[float | None, ...]


@dataclass(frozen=True)
class Row:
    """One row of a table, judged on one part.

    Attributes:
        name: of the row.
        title: what the table calls it.
        outcomes: all of its runs.
        judged: the part's slices by seed, with all folds together, in the order of their files.
    """

    name: str
    title: str
    outcomes: tuple[RunResult, ...]
    judged: Mapping[int, Judged]

    @property
    def seeds(self) -> tuple[int, ...]:
        """Seeds whose every fold is there, ascending."""
        return tuple(sorted(self.judged))

    def probability(self, seeds: Iterable[int]) -> NDArray[np.float64]:
        """Of COVID, averaged over these seeds, shape (N,)."""
        return np.asarray(np.mean([self.judged[seed].probability for seed in seeds], axis=0), np.float64)


@dataclass(frozen=True)
class MeasureTest:
    """One measure's difference between two rows.

    Attributes:
        difference: first less second; None where the measure is undefined.
        low: lower bound of its 95 % interval under resampling of patients.
        high: upper bound.
        p_slices: DeLong's for the AUC, McNemar's mid-p for the accuracy.
        p_patients: of the bootstrap over patients.
        p_corrected: the larger of the two after Holm's correction; None where either is missing.
    """

    difference: float | None
    low: float | None
    high: float | None
    p_slices: float | None
    p_patients: float | None
    p_corrected: float | None = None

    @property
    def p(self) -> float | None:
        """The larger of both: a difference must hold over slices and over patients."""
        if self.p_slices is None or self.p_patients is None:
            return None
        return max(self.p_slices, self.p_patients)

    @property
    def verdict(self) -> str:
        """``better``, ``worse``, or ``no difference shown``, of the first row."""
        if self.p_corrected is None or self.difference is None or self.p_corrected >= ALPHA:
            return "no difference shown"
        return "better" if self.difference > 0 else "worse"


@dataclass(frozen=True)
class Comparison:
    """Two rows on the same slices.

    Attributes:
        first: name of a row.
        second: name of the other.
        seeds: that both have; their probabilities are averaged and then tested.
        measures: the tests, by measure.
        first_only: slices that only the first row calls rightly.
        second_only: slices that only the second calls rightly.
        by_seed: for each seed alone, the difference and the p-value over slices of each measure.
    """

    first: str
    second: str
    seeds: tuple[int, ...]
    measures: Mapping[str, MeasureTest]
    first_only: int
    second_only: int
    by_seed: Mapping[int, Mapping[str, tuple[float | None, float | None]]]


class PairedRows:
    """Rows that were judged on the same slices.

    Args:
        outcomes: of one protocol.
        part: that they are compared on.
        resamples: of the bootstrap over patients.
        seed: of the bootstrap.

    Raises:
        DataError: rows were judged on different slices, or a row's runs have different recipes.
    """

    def __init__(
        self, outcomes: Iterable[RunResult], part: str, *, resamples: int = RESAMPLES, seed: int = 0
    ) -> None:
        self.part = part
        self.resamples = resamples
        self.seed = seed
        self.incomplete: dict[str, str] = {}
        chosen: dict[str, list[RunResult]] = {}
        for outcome in outcomes:
            if part in outcome.judged:
                chosen.setdefault(outcome.identity.row, []).append(outcome)
        self.rows = {name: row for name, each in chosen.items() if (row := self._row(name, each)).judged}
        self._check_same_slices()
        self._draws: dict[tuple[str, tuple[int, ...]], Draws] = {}

    @cached_property
    def slices(self) -> Judged:
        """The slices that all rows were judged on, with one row's logits."""
        row = next(iter(self.rows.values()))
        return row.judged[row.seeds[0]]

    @property
    def patients(self) -> int:
        """Patients of the slices."""
        return len(np.unique(self.slices.patient))

    def spread(self, name: str) -> dict[str, MeanSD]:
        """Every measure of a row over its seeds, by the measure's key."""
        row = self.rows[name]
        label = self.slices.label
        values = [compute_metrics(label, row.judged[seed].probability).values() for seed in row.seeds]
        draws = [self._resampled(name, (seed,)) for seed in row.seeds]
        return {
            measure: spread_over_runs(
                [value[measure] for value in values],
                np.mean([draw[measure] for draw in draws], axis=0),
                self.patients,
            )
            for measure in values[0]
        }

    def compare(self, pairs: Sequence[tuple[str, str]]) -> list[Comparison]:
        """Test pairs of rows; they are one family of Holm's correction, for each measure.

        Args:
            pairs: names of rows; a pair without a common seed is left out.
        """
        compared = [
            self._compare(first, second, seeds)
            for first, second in pairs
            if (seeds := self.common_seeds(first, second))
        ]
        corrected = {measure: holm([each.measures[measure].p for each in compared]) for measure in TESTED}
        return [
            replace(
                each,
                measures={
                    measure: replace(test, p_corrected=corrected[measure][index])
                    for measure, test in each.measures.items()
                },
            )
            for index, each in enumerate(compared)
        ]

    def common_seeds(self, first: str, second: str) -> tuple[int, ...]:
        """Seeds that both rows have."""
        return tuple(sorted(set(self.rows[first].judged) & set(self.rows[second].judged)))

    def _row(self, name: str, outcomes: Sequence[RunResult]) -> Row:
        for other in outcomes[1:]:
            if _contradict(other.recipe, outcomes[0].recipe):
                raise DataError(f"{other.path}: differs in its recipe from {outcomes[0].path.name}")
        judged: dict[int, Judged] = {}
        for seed in sorted({outcome.identity.seed for outcome in outcomes}):
            runs = [outcome for outcome in outcomes if outcome.identity.seed == seed]
            folds = runs[0].identity.folds
            if folds is not None and len(runs) < folds:
                self.incomplete[f"{name}, seed {seed}"] = f"{len(runs)} of {folds} folds"
                continue
            judged[seed] = _pooled([run.judged[self.part] for run in runs], runs[0])
        return Row(name, outcomes[0].identity.title, tuple(outcomes), judged)

    def _check_same_slices(self) -> None:
        for row in self.rows.values():
            for seed in row.seeds:
                judged = row.judged[seed]
                if judged.file != self.slices.file or not np.array_equal(judged.label, self.slices.label):
                    first = next(iter(self.rows.values()))
                    raise DataError(
                        f"{row.outcomes[0].path}: seed {seed} was judged on other slices than "
                        f"{first.outcomes[0].path.name}; only the same slices can be compared"
                    )

    def _resampled(self, name: str, seeds: tuple[int, ...]) -> Draws:
        key = (name, seeds)
        if key not in self._draws:
            self._draws[key] = resampled_metrics(
                self.slices.label,
                self.rows[name].probability(seeds),
                self.slices.patient,
                resamples=self.resamples,
                seed=self.seed,
            )
        return self._draws[key]

    def _compare(self, first: str, second: str, seeds: tuple[int, ...]) -> Comparison:
        tests, only = self._over_slices(first, second, seeds)
        draws = self._resampled(first, seeds), self._resampled(second, seeds)
        measures = {}
        for measure, (difference, p) in tests.items():
            bounds = paired_difference(draws[0][measure], draws[1][measure], self.patients)
            measures[measure] = MeasureTest(difference, bounds.low, bounds.high, p, bounds.p)
        by_seed = {seed: self._over_slices(first, second, (seed,))[0] for seed in seeds}
        return Comparison(first, second, seeds, measures, *only, by_seed)

    def _over_slices(
        self, first: str, second: str, seeds: tuple[int, ...]
    ) -> tuple[dict[str, tuple[float | None, float | None]], tuple[int, int]]:
        """Differences and p-values over slices by measure, and the slices only one row calls rightly."""
        label = self.slices.label
        probability = [self.rows[name].probability(seeds) for name in (first, second)]
        auc = delong_test(label, *probability)
        right = [(each >= THRESHOLD) == (label == 1) for each in probability]
        calls = mcnemar(*right)
        accuracy = float(np.mean(right[0]) - np.mean(right[1]))
        tests: dict[str, tuple[float | None, float | None]] = {
            "auc": (auc.difference, auc.p) if auc else (None, None),
            "accuracy": (accuracy, calls.mid_p),
        }
        return tests, (calls.first_only, calls.second_only)


def _contradict(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether recipes differ in a field that both have; a result may be older than some fields."""
    for key in one.keys() & other.keys():
        first, second = one[key], other[key]
        if isinstance(first, Mapping) and isinstance(second, Mapping):
            if _contradict(first, second):
                return True
        elif first != second:
            return True
    return False


def _pooled(parts: Sequence[Judged], run: RunResult) -> Judged:
    """All folds together, in the order of their files."""
    files = [file for part in parts for file in part.file]
    if len(set(files)) < len(files):
        raise DataError(f"{run.path}: a slice was judged twice; each file must stand in one fold and once")
    order = sorted(range(len(files)), key=files.__getitem__)
    return Judged(
        tuple(files[index] for index in order),
        np.concatenate([part.label for part in parts])[order],
        np.concatenate([part.patient for part in parts])[order],
        np.concatenate([part.logit for part in parts])[order],
    )


def spread_over_runs(values: Sequence[float | None], draws: NDArray[np.float64], patients: int) -> MeanSD:
    """Mean and spread of a measure over runs that were judged on the same slices.

    Args:
        values: of each run; None where it is undefined.
        draws: the mean over the runs in every resample of the patients, shape (R,), NaN where undefined.
        patients: that were resampled; with fewer than two there are no bounds.
    """
    known = [value for value in values if value is not None]
    if len(known) < len(values):
        return MeanSD(None, None, None, None, tuple(values))
    sd = statistics.stdev(known) if len(known) > 1 else None
    interval = percentile_interval(draws, patients)
    return MeanSD(statistics.fmean(known), sd, interval.low, interval.high, tuple(values))
