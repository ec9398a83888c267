"""What came out of an evaluation, and its form as CSV and JSON.

Whether a classifier can tell two sets of slices apart, patients kept together.

A classifier two-sample test (D. Lopez-Paz and M. Oquab, Revisiting classifier two-sample tests, ICLR 2017),
with a linear classifier, which a hundred slices are enough for. It sees shifts of any direction, those
included that bring slices no farther from the middle of the training data.

How far evaluated data lie from what a bundle learned from, and whether its figures can carry over to them.

A model's figures hold for data like those they were measured on: a published EfficientNet fell from 0.88 to
0.56 on the slices of another hospital. What can be seen of that without trusting a single label is said
here: what the bundle would refuse, how far slices lie from the training part in the network's embedding and
in their grey values, and whether a classifier tells them from held-out slices of the training data's own
sources. The former two notice slices that are strange each by itself, the last one notices that all of them
have moved a little. The verdict's limits were set on the validation part, patients kept apart, and on its
altered slices.

How far data lie from the training data, as JSON and as rows of tables.

What opacity, the second output of some networks, says of the label: alone, and together with the first.

A network with that output answers two questions: is it COVID-19, and is there pneumonia-like opacity,
whatever its cause? No data set here states the second, so its answer is held against the label of the first.
"""

from __future__ import annotations

import csv
import io
import platform
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import StratifiedGroupKFold

from groundglass import __version__
from groundglass.errors import RunError
from groundglass.evaluation.bootstrap import LEVEL, RESAMPLES, Bootstrap, bootstrap
from groundglass.evaluation.metrics import BINS, THRESHOLD, TITLES, Metrics, compute_metrics, reliability
from groundglass.evaluation.paired import paired_difference, resampled_measures
from groundglass.evaluation.part import NetworkOutputs, Part, TrainedRun
from groundglass.files import printable
from groundglass.inference.reference import Places, Statistic

FOLDS = 5
_PENALTY = 0.01
_CLIP = 4.0


@dataclass(frozen=True)
class ToldApart:
    """How well slices of one set are told from slices of another.

    Attributes:
        auc: area under the ROC curve of slices held out, 0.5 by chance and 1 where no slice is mistaken; None
            where there are too few patients.
        low: lower bound of its 95 % interval over patients, or None.
        high: upper bound, or None.
        reason: why there is no figure.
    """

    auc: float | None
    low: float | None = None
    high: float | None = None
    reason: str | None = None


def told_apart(
    reference: NDArray[np.floating],
    reference_patient: NDArray[np.str_],
    data: NDArray[np.floating],
    data_patient: NDArray[np.str_],
    *,
    resamples: int,
    seed: int = 0,
) -> ToldApart:
    """Cross-validate a classifier of reference against data.

    Args:
        reference: description of each slice, standardised, shape (M, d).
        reference_patient: whose slice each is, shape (M,).
        data: description of each slice, on the same scales, shape (N, d).
        data_patient: whose slice each is, shape (N,).
        resamples: of the bootstrap over patients.
        seed: of folds and bootstrap.
    """
    fewest = min(len(np.unique(patients)) for patients in (reference_patient, data_patient))
    if fewest < FOLDS:
        return ToldApart(None, reason=f"fewer than {FOLDS} patients")
    values = np.clip(np.concatenate([reference, data]), -_CLIP, _CLIP)
    foreign = np.repeat(np.array([0, 1], np.int8), [len(reference), len(data)])
    sets = ((reference_patient, "reference"), (data_patient, "data"))
    patient = np.concatenate([[f"{name} {each}" for each in patients] for patients, name in sets])
    probability = np.zeros(len(foreign))
    splitter = StratifiedGroupKFold(FOLDS, shuffle=True, random_state=seed)
    for fitted, held in splitter.split(values, foreign, patient):
        model = LogisticRegression(C=_PENALTY, class_weight="balanced", max_iter=1000)
        probability[held] = model.fit(values[fitted], foreign[fitted]).predict_proba(values[held])[:, 1]
    judged = bootstrap(foreign, probability, patient, resamples=resamples, seed=seed)
    interval = judged.intervals["auc"]
    return ToldApart(float(roc_auc_score(foreign, probability)), interval.low, interval.high)


Verdict = Literal["alike", "doubtful", "far", "unknown"]

FAR_OUT = (95.0, 99.0)
"""Percentiles of the held-out slices beyond which slices are counted."""

ALIKE, FAR = 0.20, 0.30
"""Up to this share of slices outside data may be alike; from this share on they are far."""

TOLD = 0.75
"""AUC from which on data that are told apart are not alike, few slices outside or not."""

FEWEST = 20
"""Slices below which there is no verdict."""

LIMITS = (
    "What leaves no trace in the picture is not seen: labels given by other rules, other diseases among "
    "NonCOVID, another share of COVID."
)


def verdict_of(outside: float, told: float | None) -> Verdict:
    """What enough slices are called.

    Args:
        outside: share of them that is refused or strange, 0 to 1.
        told: AUC with which they are told apart; None where nobody can say.
    """
    if outside >= FAR:
        return "far"
    return "doubtful" if outside > ALIKE or (told is not None and told >= TOLD) else "alike"


@dataclass(frozen=True)
class Share:
    """A share of the slices.

    Attributes:
        value: 0 to 1.
        low: lower bound of the 95 % interval over patients, None with a single patient.
        high: upper bound, likewise.
    """

    value: float
    low: float | None
    high: float | None


@dataclass(frozen=True)
class MeanSD:
    """Where slices lie among held-out slices, by one of the two distances.

    Attributes:
        beyond_95: share that lies farther than 95 % of the held-out slices; 5 % are expected.
        beyond_99: share that lies farther than 99 % of them.
        median: percentile of the middle slice, 0 to 100; 50 is expected.
        farther: chance that a slice lies farther than a held-out one, the area under the ROC curve of the
            distance; 0.5 is expected.
    """

    beyond_95: Share
    beyond_99: Share
    median: float
    farther: float


@dataclass(frozen=True)
class Shift:
    """One grey statistic of the data against the training part's.

    Attributes:
        statistic: which.
        training: its 5 %, 50 % and 95 % quantiles in the training part.
        data: the same of the data.
        shift: of the middle, in standard deviations of the training part, on the statistic's scale.
        outside: share of slices below the training part's 5 % or above its 95 % quantile; 10 % are expected.
    """

    statistic: Statistic
    training: tuple[float, ...]
    data: tuple[float, ...]
    shift: float
    outside: Share


@dataclass(frozen=True)
class Accepted:
    """The measures over the slices alone that the bundle accepts.

    Attributes:
        slices: how many.
        metrics: their measures.
        bootstrap: intervals of these.
    """

    slices: int
    metrics: Metrics
    bootstrap: Bootstrap


@dataclass(frozen=True)
class Placed:
    """Where the slices lie from the training part.

    Attributes:
        training: slices of the training part.
        held_out: held-out slices.
        outside: share that is refused, or stranger than 95 % of the held-out slices in embedding or grey
            values, whichever is stranger; 5 % and what is refused of slices alike are expected.
        embedding: by the network's embedding.
        grey: by grey statistics.
        shifts: of each grey statistic.
        told_apart: from the held-out slices.
        calibrating: how many of the slices are held-out slices themselves, which makes the data look nearer.
        places: of every slice.
    """

    training: int
    held_out: int
    outside: Share
    embedding: MeanSD
    grey: MeanSD
    shifts: tuple[Shift, ...]
    told_apart: ToldApart
    calibrating: int
    places: Places


@dataclass(frozen=True)
class Distance:
    """How far the data lie from the training data.

    Attributes:
        slices: how many were placed.
        patients: they belong to.
        refused: share that the bundle's users would be refused an answer for.
        reasons: how often each reason was given, without the numbers in it.
        accepted: measures of the others; None where there are none.
        placed: None where the bundle carries no reference.
    """

    slices: int
    patients: int
    refused: Share
    reasons: Mapping[str, int]
    accepted: Accepted | None
    placed: Placed | None

    @property
    def verdict(self) -> Verdict:
        """Whether the data are like the training data."""
        if self.slices < FEWEST:
            return "unknown"
        if self.placed is None:
            return "far" if self.refused.value >= FAR else "unknown"
        return verdict_of(self.placed.outside.value, self.placed.told_apart.auc)

    @property
    def words(self) -> str:
        """The verdict in words."""
        if self.slices < FEWEST:
            return f"{self.slices} slices are too few to say whether they are like the training data."
        if self.placed is None:
            return f"{_percent(self.refused)} of the slices are refused: {_MEANING[self.verdict]} {_UNKNOWN}"
        told = self.placed.told_apart.auc
        apart = (
            ""
            if told is None
            else f", and a classifier tells them from such slices with an AUC of {told:.2f}"
        )
        copies = self.placed.calibrating
        note = f" {copies} of them are held-out slices themselves." if copies else ""
        return (
            f"{_percent(self.placed.outside)} of the slices are refused or stranger than 95 % of held-out "
            f"slices of the training data's sources{apart}: {_MEANING[self.verdict]}{note}"
        )


_MEANING: Mapping[Verdict, str] = {
    "alike": "the data look like the training data.",
    "doubtful": "the data differ from the training data; the figures of the model card may not carry over.",
    "far": "the figures of the model card do not carry over to these data.",
    "unknown": "how far these data lie from the training data is not known.",
}
_UNKNOWN = "The bundle carries no statistics of its training data; `groundglass reference` adds them."


def _percent(share: Share) -> str:
    low, high = share.low, share.high
    bounds = "" if low is None or high is None else f" (95 % interval {100 * low:.0f}–{100 * high:.0f} %)"
    return f"{100 * share.value:.0f} %{bounds}"


HEADLINES = ("accuracy", "auc", "recall", "specificity")
"""Measures of the accepted slices that tables show."""


@dataclass(frozen=True)
class DistanceRow:
    """One row of the table of distances.

    Attributes:
        title: what is measured.
        value: as it is shown.
        interval: its 95 % interval as it is shown, or a dash.
        alike: what data like the training data's sources give, as it is shown; may be empty.
    """

    title: str
    value: str
    interval: str
    alike: str = ""


@dataclass(frozen=True)
class ShiftRow:
    """One grey statistic as it is shown.

    Attributes:
        title: its name and unit.
        training: median and 5 to 95 % range of the training part.
        data: the same of the data.
        shift: of the median, in standard deviations of the training part.
        outside: share of slices outside the training part's range.
    """

    title: str
    training: str
    data: str
    shift: str
    outside: str


def distance_rows(distance: Distance) -> list[DistanceRow]:
    """What is to be said of a distance, in its order."""
    rows = [_share("Refused by the bundle", distance.refused, "about 1 %")]
    if distance.placed is not None:
        rows += _placed_rows(distance.placed)
    if distance.accepted is not None and distance.refused.value > 0:
        rows += _accepted_rows(distance.accepted)
    return rows


def shift_rows(distance: Distance) -> list[ShiftRow]:
    """The grey statistics; none where the bundle carries no reference."""
    shifts = () if distance.placed is None else distance.placed.shifts
    return [
        ShiftRow(
            f"{shift.statistic.name} ({shift.statistic.unit})",
            _range(shift.training),
            _range(shift.data),
            f"{shift.shift:+.1f}",
            f"{shift.outside.value:.0%}",
        )
        for shift in shifts
    ]


def distance_document(distance: Distance) -> dict[str, Any]:
    """Everything measured, as plain JSON values."""
    accepted = distance.accepted
    return {
        "verdict": distance.verdict,
        "words": distance.words,
        "limits": LIMITS,
        "thresholds": {"alike": ALIKE, "far": FAR, "told_apart": TOLD, "fewest_slices": FEWEST},
        "slices": distance.slices,
        "patients": distance.patients,
        "refused": {**asdict(distance.refused), "reasons": dict(distance.reasons)},
        "accepted": None if accepted is None else _accepted_document(accepted),
        "placed": None if distance.placed is None else _placed_document(distance.placed),
    }


def _placed_rows(placed: Placed) -> Iterator[DistanceRow]:
    yield _share("Refused or beyond 95 %", placed.outside, "5 to 6 %")
    for name, spread in (("Embedding", placed.embedding), ("Grey values", placed.grey)):
        yield _share(f"{name} beyond 95 %", spread.beyond_95, "5 %")
        yield _share(f"{name} beyond 99 %", spread.beyond_99, "1 %")
        yield DistanceRow(f"{name}, middle percentile", f"{spread.median:.0f}", "–", "50")
    told = placed.told_apart
    value = f"– ({told.reason})" if told.auc is None else f"{told.auc:.2f}"
    interval = "–" if told.low is None else f"{told.low:.2f}–{told.high:.2f}"
    yield DistanceRow("Told apart (AUC)", value, interval, "0.5")


def _accepted_rows(accepted: Accepted) -> Iterator[DistanceRow]:
    values = accepted.metrics.values()
    for name in HEADLINES:
        value, interval = values[name], accepted.bootstrap.intervals[name]
        yield DistanceRow(
            f"{TITLES[name]}, accepted slices",
            "–" if value is None else f"{value:.3f}",
            "–" if interval.low is None else f"{interval.low:.3f}–{interval.high:.3f}",
        )


def _share(title: str, share: Share, alike: str) -> DistanceRow:
    interval = "–" if share.low is None else f"{100 * share.low:.1f}–{100 * (share.high or 0):.1f} %"
    return DistanceRow(title, f"{100 * share.value:.1f} %", interval, alike)


def _range(quantiles: tuple[float, ...]) -> str:
    low, middle, high = quantiles
    return f"{middle:.3g} ({low:.3g}–{high:.3g})"


def _accepted_document(accepted: Accepted) -> dict[str, Any]:
    intervals = accepted.bootstrap.intervals
    return {
        "slices": accepted.slices,
        "confusion": asdict(accepted.metrics.confusion),
        "metrics": {
            name: {**asdict(metric), "low": intervals[name].low, "high": intervals[name].high}
            for name, metric in accepted.metrics
        },
    }


def _placed_document(placed: Placed) -> dict[str, Any]:
    return {
        "training_slices": placed.training,
        "held_out_slices": placed.held_out,
        "outside": asdict(placed.outside),
        "embedding": asdict(placed.embedding),
        "grey": {
            **asdict(placed.grey),
            "statistics": [
                {
                    "name": shift.statistic.name,
                    "unit": shift.statistic.unit,
                    "training": _quantiles(shift.training),
                    "data": _quantiles(shift.data),
                    "shift": shift.shift,
                    "outside": asdict(shift.outside),
                }
                for shift in placed.shifts
            ],
        },
        "told_apart": asdict(placed.told_apart),
        "calibrating_slices": placed.calibrating,
    }


def _quantiles(values: tuple[float, ...]) -> dict[str, float]:
    return dict(zip(("low", "median", "high"), values, strict=True))


@dataclass(frozen=True)
class Ranking:
    """How well some score ranks COVID slices above NonCOVID ones.

    Attributes:
        auc: area under the ROC curve against the label, or None and the reason why there is none.
        low: lower bound of its 95 % interval, by the bootstrap over patients.
        high: upper bound.
        reason: why something is missing.
        gain: ``auc`` less that of the network's probability of COVID on the same slices.
        gain_low: lower bound of its interval, by the same resamples.
        gain_high: upper bound.
    """

    auc: float | None
    low: float | None
    high: float | None
    reason: str | None
    gain: float | None
    gain_low: float | None
    gain_high: float | None


@dataclass(frozen=True)
class MeasuredOpacity:
    """What the second output says of N slices, and what that is worth for the label.

    Attributes:
        logit: of opacity, shape (N,).
        probability: of opacity, shape (N,).
        alone: how opacity alone ranks the slices.
        mean_logit: how the mean of both logits does.
    """

    logit: NDArray[np.float64]
    probability: NDArray[np.float64]
    alone: Ranking
    mean_logit: Ranking

    def document(self) -> dict[str, Any]:
        """The measures as plain JSON values."""
        return {"alone": asdict(self.alone), "mean_logit": asdict(self.mean_logit)}


def opacity_columns(opacity: MeasuredOpacity | None, slices: int) -> list[list[str]]:
    """What ``predictions.csv`` says of it: names, then one row per slice; all empty where there is none."""
    if opacity is None:
        return [[]] * (slices + 1)
    numbers = zip(opacity.probability, opacity.logit, strict=True)
    return [["opacity", "opacity_logit"], *([f"{each:.9g}" for each in pair] for pair in numbers)]


class OpacityLogits:
    """Keeps what the second output says, batch by batch, where a network has one."""

    def __init__(self) -> None:
        self._batches: list[NDArray[np.float64]] = []

    def take(self, predictions: NetworkOutputs) -> None:
        """Keep what these predictions say of opacity, which may be nothing."""
        logit = getattr(predictions, "opacity_logit", None)
        if logit is not None:
            self._batches.append(np.asarray(logit, np.float64))

    def measure(
        self, part: Part, covid: NDArray[np.float64], *, resamples: int = RESAMPLES, seed: int = 0
    ) -> MeasuredOpacity | None:
        """Hold what was kept against the label of COVID; None where nothing was.

        Args:
            part: the slices that were predicted, in order.
            covid: logit of COVID, shape (N,).
            resamples: of the bootstrap over patients.
            seed: of the bootstrap.

        Raises:
            RunError: the network gave no valid number for a slice.
        """
        if not self._batches:
            return None
        opacity = np.concatenate(self._batches)
        bad = np.flatnonzero(~np.isfinite(opacity))
        if len(bad):
            name = part.file(part.records[bad[0]])
            raise RunError(f"the network gives no valid opacity for {name}; was the training stable?")

        def ranking(logit: NDArray[np.float64]) -> Ranking:
            return _ranking(part, logit, covid, resamples, seed)

        return MeasuredOpacity(opacity, _sigmoid(opacity), ranking(opacity), ranking((covid + opacity) / 2))


def _ranking(
    part: Part, logit: NDArray[np.float64], covid: NDArray[np.float64], resamples: int, seed: int
) -> Ranking:
    scores = [_sigmoid(each) for each in (logit, covid)]
    auc, first = (compute_metrics(part.label, score).auc for score in scores)
    measured = bootstrap(part.label, scores[0], part.patient, resamples=resamples, seed=seed)
    own, other = (
        resampled_measures(part.label, score, part.patient, resamples=resamples, seed=seed)["auc"]
        for score in scores
    )
    interval, gain = measured.intervals["auc"], paired_difference(own, other, measured.patients)
    return Ranking(
        auc.value,
        interval.low,
        interval.high,
        auc.reason or interval.reason,
        None if auc.value is None or first.value is None else auc.value - first.value,
        gain.low,
        gain.high,
    )


def _sigmoid(logit: NDArray[np.float64]) -> NDArray[np.float64]:
    """Probabilities in the order of the logits, from any finite logit."""
    return np.asarray(np.exp(-np.logaddexp(0, -logit)), np.float64)


@dataclass(frozen=True)
class Evaluation:
    """What was evaluated and what came out.

    Attributes:
        part: the slices.
        sha256: fingerprint of their contents and labels.
        logit: of COVID, shape (N,).
        probability: of COVID, shape (N,).
        metrics: the measures.
        bootstrap: their intervals.
        warnings: what a reader must know before trusting them.
        looks: how often these slices have been evaluated with this run, this time included.
        time: when, ISO 8601 in UTC.
        seconds: how long reading and predicting took.
        command: reproduces the evaluation.
        distance: how far the slices lie from the training data; None for a run, which does not know.
        opacity: what the second output says; None where the network has none.
    """

    part: Part
    sha256: str
    logit: NDArray[np.float64]
    probability: NDArray[np.float64]
    metrics: Metrics
    bootstrap: Bootstrap
    warnings: tuple[str, ...]
    looks: int
    time: str
    seconds: float
    command: str
    distance: Distance | None = None
    opacity: MeasuredOpacity | None = None

    @property
    def called(self) -> NDArray[np.bool_]:
        """Which slices are called COVID, shape (N,)."""
        return self.probability >= THRESHOLD


def predictions_csv(evaluation: Evaluation) -> str:
    """One line per slice: file, label, patient_id, source, split, probability, logit, prediction.

    Where the network has the second output, opacity (a probability) and opacity_logit follow.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    second = opacity_columns(evaluation.opacity, len(evaluation.part.records))
    columns = ["file", "label", "patient_id", "source", "split", "probability", "logit", "prediction"]
    writer.writerow([*columns, *second[0]])
    for record, probability, logit, called, more in zip(
        evaluation.part.records,
        evaluation.probability,
        evaluation.logit,
        evaluation.called,
        second[1:],
        strict=True,
    ):
        file = evaluation.part.file(record)
        patient, source = (_writable(field) for field in (record.patient_id, record.source))
        label = record.label.value if record.label else ""
        numbers = [f"{probability:.9g}", f"{logit:.9g}"]
        split = record.split or ""
        verdict = "COVID" if called else "NonCOVID"
        writer.writerow([file, label, patient, source, split, *numbers, verdict, *more])
    return text.getvalue()


def _writable(text: str) -> str:
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def versions(
    packages: Sequence[str] = ("numpy", "scikit-learn", "opencv-python-headless"),
) -> dict[str, str]:
    """Versions of what computes the figures: this package, Python, and other packages."""
    return {"groundglass": __version__, "python": platform.python_version()} | {
        name: version(name) for name in packages
    }


def metrics_document(run: TrainedRun, evaluation: Evaluation) -> dict[str, Any]:
    """Everything measured and everything needed to measure it again, as plain JSON values."""
    part, intervals = evaluation.part, evaluation.bootstrap
    covid = int(part.label.sum())
    return {
        "format": 1,
        "run": {
            "path": printable(run.path),
            "recipe": run.recipe.name,
            "network": run.recipe.network.name,
            "seed": run.seed,
            "split": run.split_spec,
            "finished": bool(run.info.get("finished", False)),
            "training_seconds": run.info.get("training_seconds"),
            "versions": run.info.get("versions"),
        },
        "data": {
            "name": part.data,
            "root": printable(part.root),
            "split": part.split,
            "part": part.name,
            "slices": len(part.records),
            "covid": covid,
            "non_covid": len(part.records) - covid,
            "patients": intervals.patients,
            "unlabelled": part.unlabelled,
            "fingerprint": evaluation.sha256,
        },
        "positive": "COVID",
        "threshold": THRESHOLD,
        "metrics": {
            name: {
                **asdict(metric),
                "low": intervals.intervals[name].low,
                "high": intervals.intervals[name].high,
                "undefined_resamples": intervals.intervals[name].undefined,
                "interval_reason": intervals.intervals[name].reason,
            }
            for name, metric in evaluation.metrics
        },
        "confusion": asdict(evaluation.metrics.confusion),
        "interval": {
            "level": LEVEL,
            "method": "percentile bootstrap over patients",
            "resamples": intervals.resamples,
            "one_class_resamples": intervals.one_class,
            "seed": intervals.seed,
        },
        "calibration": {
            "bins": BINS,
            "reliability": [asdict(each) for each in reliability(part.label, evaluation.probability)],
        },
        **({} if evaluation.opacity is None else {"opacity": evaluation.opacity.document()}),
        **({} if evaluation.distance is None else {"distance": distance_document(evaluation.distance)}),
        "warnings": list(evaluation.warnings),
        "evaluations_of_these_slices": evaluation.looks,
        "time": evaluation.time,
        "seconds": round(evaluation.seconds, 3),
        "versions": versions(),
        "command": evaluation.command,
    }
