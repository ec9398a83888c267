"""Rows of a table that were evaluated on the same slices: mean and SD over seeds, and tests between rows."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from groundglass.errors import DataError
from groundglass.evaluation.bootstrap import RESAMPLES, Draws, Resampling, with_interval
from groundglass.evaluation.metrics import Estimate, compute_metrics
from groundglass.evaluation.paired import ALPHA, PAIRED_TESTS, holm, paired_difference, resamples_for
from groundglass.experiments.results import Predictions, RunResult, complete


@dataclass(frozen=True)
class MeanSD:
    """A measure over the seeds of a row, and the 95 % interval of the mean under resampling of patients.

    There is no mean where a seed has no value, no SD with one seed, and no interval with one patient.
    """

    mean: float | None
    sd: float | None
    low: float | None
    high: float | None
    values: tuple[float | None, ...]

    @classmethod
    def of(cls, values: Sequence[float | None], low: float | None = None, high: float | None = None) -> MeanSD:
        """Mean and SD of the values, with bounds that are known already."""
        known = [value for value in values if value is not None]
        if not known or len(known) < len(values):
            return cls(None, None, None, None, tuple(values))
        sd = statistics.stdev(known) if len(known) > 1 else None
        return cls(statistics.fmean(known), sd, low, high, tuple(values))


@dataclass(frozen=True)
class Row:
    """One row of a table: its runs, and by seed the predictions of one part, all folds together, by file."""

    name: str
    results: Sequence[RunResult]
    predictions: Mapping[int, Predictions]

    @property
    def first(self) -> RunResult:
        """Its first run."""
        return self.results[0]

    @property
    def title(self) -> str:
        """What a table calls it."""
        return self.first.identity.title

    @property
    def family(self) -> str:
        """The network's name without its size."""
        return self.first.network.rpartition("-")[0]

    @property
    def seeds(self) -> tuple[int, ...]:
        """Seeds whose every fold is there, ascending."""
        return tuple(sorted(self.predictions))

    def probability(self, seeds: Iterable[int]) -> NDArray[np.float64]:
        """Of COVID, averaged over these seeds, shape (N,)."""
        return np.asarray(np.mean([self.predictions[seed].probability for seed in seeds], axis=0), np.float64)


class PairedRows:
    """Rows of one protocol that were evaluated on the same slices of one part.

    ``incomplete`` names rows whose folds are not all there.

    Raises:
        DataError: rows were evaluated on different slices, or a row's runs have different recipes.
    """

    def __init__(self, results: Iterable[RunResult], part: str) -> None:
        self.part, self._draws = part, cache(self._resampled)
        self.incomplete: dict[str, str] = {}
        evaluated = [result for result in results if part in result.predictions]
        self.folds = {result.identity.fold for result in evaluated}
        names = dict.fromkeys(result.identity.row for result in evaluated)
        rows = [self._row(name, [each for each in evaluated if each.identity.row == name]) for name in names]
        self.rows = {row.name: row for row in rows if row.predictions}
        for row in self.rows.values():
            for seed, own in row.predictions.items():
                if own.file != self.slices.file or not np.array_equal(own.label, self.slices.label):
                    other = next(iter(self.rows.values())).results[0].path.name
                    raise DataError(
                        f"{row.results[0].path}: seed {seed} was evaluated on other slices than {other}; only the same "
                        "slices can be compared"
                    )

    @cached_property
    def slices(self) -> Predictions:
        """The slices that all rows were evaluated on, with one row's logits."""
        row = next(iter(self.rows.values()))
        return row.predictions[row.seeds[0]]

    @cached_property
    def patients(self) -> int:
        """Patients of the slices."""
        return Resampling(self.slices.patient).count

    def summary(self, name: str) -> dict[str, MeanSD]:
        """Every measure of a row over its seeds, by the measure's key."""
        row, summaries = self.rows[name], {}
        values = [compute_metrics(self.slices.label, row.predictions[seed].probability) for seed in row.seeds]
        draws = [self._draws(name, (seed,), RESAMPLES) for seed in row.seeds]
        for measure in values[0]:
            mean = np.mean([draw[measure] for draw in draws], axis=0)
            bounds = with_interval(Estimate(None), mean, self.patients)
            known = () if bounds.low == bounds.high else (bounds.low, bounds.high)  # no certainty: no resample differs
            summaries[measure] = MeanSD.of([each[measure].value for each in values], *known)
        return summaries

    def compare(self, pairs: Iterable[tuple[str, str]]) -> list[dict[str, Any]]:
        """Test pairs of rows; they are one family of Holm's correction, for each measure.

        Tested are the averaged probabilities of the ``seeds`` that both have; a pair without one is left out. Of each
        of the ``measures`` there are the ``difference``, first row less second, with its 95 % interval under
        resampling of patients; ``p_slices``, DeLong's for the AUC and McNemar's mid-p for the accuracy; ``p_patients``,
        the bootstrap's; ``p_corrected``, the larger of both after Holm's correction: a difference must hold over slices
        and over patients. None stands for what is undefined. By the ``verdict`` the first row is ``better``, ``worse``
        or there is ``no difference shown``.
        """
        common = {(one, other): {*self.rows[one].seeds} & {*self.rows[other].seeds} for one, other in pairs}
        tested = {pair: tuple(sorted(seeds)) for pair, seeds in common.items() if seeds}
        resamples, found = resamples_for(len(tested)), list[dict[str, Any]]()
        for (first, second), seeds in tested.items():
            measures = {name: self._test(name, (first, second), seeds, resamples) for name in PAIRED_TESTS}
            head = {"first": first, "second": second, "seeds": seeds, "resamples": resamples}
            found.append({**head, "measures": measures})
        for name in PAIRED_TESTS:
            tests = [each["measures"][name] for each in found]
            both = [(test["p_slices"], test["p_patients"]) for test in tests]
            for test, p in zip(tests, holm([None if None in each else max(each) for each in both]), strict=True):
                shown = p is not None and p < ALPHA and test["difference"] is not None
                test["p_corrected"] = p
                test["verdict"] = ("better" if test["difference"] > 0 else "worse") if shown else "no difference shown"
        return found

    def _row(self, name: str, results: Sequence[RunResult]) -> Row:
        first = complete(results[0].recipe)
        for other in results[1:]:
            own = complete(other.recipe)
            # A file of weights may have been moved; its kind is in the row's name.
            if any(first.get(key, own[key]) != own[key] for key in own if key != "network.weights"):
                raise DataError(f"{other.path}: differs in its recipe from {results[0].path.name}")
        predictions: dict[int, Predictions] = {}
        for seed in sorted({result.identity.seed for result in results}):
            runs = [result for result in results if result.identity.seed == seed]
            if len(runs) < len(self.folds):
                self.incomplete[f"{name}, seed {seed}"] = f"{len(runs)} of {len(self.folds)} folds"
            else:
                predictions[seed] = _pooled([run.predictions[self.part] for run in runs], runs[0])
        return Row(name, results, predictions)

    def _resampled(self, name: str, seeds: tuple[int, ...], resamples: int) -> Draws:
        """Every measure in every resample of the patients, the same resamples for all rows."""
        probability = self.rows[name].probability(seeds)
        return Resampling(self.slices.patient, resamples).draws(self.slices.label, probability)

    def _test(self, measure: str, pair: tuple[str, str], seeds: tuple[int, ...], resamples: int) -> dict[str, Any]:
        first, second = (self.rows[name].probability(seeds) for name in pair)
        difference, p = PAIRED_TESTS[measure](self.slices.label, first, second)
        one, other = (self._draws(name, seeds, resamples)[measure] for name in pair)
        low, high, p_patients = paired_difference(one, other, self.patients)
        return {"difference": difference, "low": low, "high": high, "p_slices": p, "p_patients": p_patients}


def _pooled(parts: Sequence[Predictions], run: RunResult) -> Predictions:
    """All folds together, in the order of their files."""
    files = [file for part in parts for file in part.file]
    if len(set(files)) < len(files):
        raise DataError(f"{run.path}: a slice was evaluated twice; each file must be in one fold, once")
    order = sorted(range(len(files)), key=files.__getitem__)
    columns = zip(*((part.label, part.patient, part.logit) for part in parts), strict=True)
    return Predictions(tuple(sorted(files)), *(np.concatenate(each)[order] for each in columns))
