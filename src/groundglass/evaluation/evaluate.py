"""Evaluate a trained network on one part of a data set: predict, measure, record, warn."""

from __future__ import annotations

import shlex
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from itertools import chain, islice
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from groundglass.data.manifest import Manifest, Record, read_record
from groundglass.errors import RunError
from groundglass.evaluation import log
from groundglass.evaluation.bootstrap import RESAMPLES, Bootstrap, Share, bootstrap, share_of, with_intervals
from groundglass.evaluation.calibration import PredictionSets, prediction_sets
from groundglass.evaluation.metrics import (
    BINS,
    THRESHOLD,
    Metrics,
    compute_metrics,
    reliability,
    versions,
)
from groundglass.evaluation.part import (
    Part,
    content_hash,
    fingerprint,
    part_warnings,
    select_part,
)
from groundglass.files import printable
from groundglass.imaging.crop import Preprocessing
from groundglass.imaging.slice import CTSlice, Grey
from groundglass.inference.calibration import Calibration

FORMAT = 2
"""Version of ``metrics.json``."""

BEYOND = (
    "share of the slices whose embedding lies farther from the training slices than 95 % of held-out slices "
    "of the same sources do; 5 % are expected of data like the training data"
)
"""What the number means that says how far data lie from the training data."""

Progress = Callable[[int, int], None]
"""Takes slices done and slices in all."""

# Percentile of the held-out slices' distances from which a slice counts as far from the training data.
_FAR = 95.0
# Slices predicted in one call, which bounds memory on large data sets.
_BATCH = 256


@dataclass(frozen=True)
class NetworkOutputs:
    """What a network says of N slices.

    Attributes:
        logit: of COVID, before calibration, shape (N,).
        probability: of COVID, 0 to 1, shape (N,).
        activation_map: each place's contribution to the logit, shape (N, h, w).
        cropped: uint8, shape (N, size, size): what the network was shown, before normalisation.
    """

    logit: NDArray[np.floating]
    probability: NDArray[np.floating]
    activation_map: NDArray[np.floating]
    cropped: NDArray[np.uint8]


class TrainedRun(Protocol):
    """A trained network with its history: a training's run folder, a bundle, or anything else that has these.

    ``info`` may hold ``finished`` (bool; false or missing means unfinished), ``training_sha256`` (SHA-256 of
    the content of every training slice's file), ``training_seconds``, ``selected_epoch`` and ``versions``.
    """

    @property
    def path(self) -> Path:
        """Folder or file that it lies in."""

    @property
    def record_folder(self) -> Path | None:
        """Where evaluations are counted; None where they are not."""

    @property
    def recipe(self) -> Any:
        """How it was trained: ``recipe.name`` and ``recipe.network.name``."""

    @property
    def seed(self) -> int:
        """Seed of the training and of its split."""

    @property
    def split_spec(self) -> str:
        """Specification of the split that it was trained on."""

    @property
    def preprocessing(self) -> Preprocessing:
        """How slices are cropped."""

    @property
    def info(self) -> Mapping[str, Any]:
        """Facts about the training."""

    def history(self) -> Sequence[Mapping[str, float]]:
        """One mapping per epoch."""

    def predict(self, slices: Iterable[Grey]) -> NetworkOutputs:
        """Predict grey slices, each of shape (H, W)."""


@dataclass(frozen=True)
class Examined:
    """What a bundle says of N slices beside their probability.

    Attributes:
        reason: why the input check refuses each slice, None for those that it accepts.
        percentile: share of held-out slices that lie nearer to the training slices than each slice, 0 to 100,
            shape (N,); None where the bundle holds no reference.
    """

    reason: tuple[str | None, ...]
    percentile: NDArray[np.float64] | None


@runtime_checkable
class ExaminingRun(Protocol):
    """A trained network with an input check, calibrated prediction sets and a reference: a bundle."""

    @property
    def calibration(self) -> Calibration:
        """From logit to probability and prediction set."""

    def examine(self, slices: Iterable[CTSlice]) -> tuple[NetworkOutputs, Examined]:
        """Predict slices, and say which are refused and how far they lie from the training slices."""


@dataclass(frozen=True)
class Applicability:
    """Whether a bundle's answers can be relied on for the evaluated slices.

    Attributes:
        refused: share of the slices that its input check refuses.
        reasons: how often each reason was given, without the numbers in it.
        beyond_95: see ``BEYOND``; None where the bundle holds no reference.
        prediction_sets: what they are worth.
    """

    refused: Share
    reasons: Mapping[str, int]
    beyond_95: Share | None
    prediction_sets: PredictionSets

    def document(self) -> dict[str, Any]:
        """Everything as plain JSON values."""
        beyond = None if self.beyond_95 is None else {**asdict(self.beyond_95), "meaning": BEYOND}
        return {**asdict(self), "beyond_95": beyond}


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
        times_evaluated: how often these slices have been evaluated with this run, this time included; 1 where
            evaluations are not counted.
        time: when, ISO 8601 in UTC.
        seconds: how long reading and predicting took.
        command: reproduces the evaluation.
        applicability: of a bundle; None for a run, which has neither input check nor prediction sets.
    """

    part: Part
    sha256: str
    logit: NDArray[np.float64]
    probability: NDArray[np.float64]
    metrics: Metrics
    bootstrap: Bootstrap
    warnings: tuple[str, ...]
    times_evaluated: int
    time: str
    seconds: float
    command: str
    applicability: Applicability | None = None

    @property
    def called(self) -> NDArray[np.bool_]:
        """Which slices are called COVID, shape (N,)."""
        return self.probability >= THRESHOLD


def evaluate(
    run: TrainedRun,
    manifest: Manifest,
    split: str | None,
    part: str,
    output: Path,
    *,
    data: Path | None = None,
    resamples: int = RESAMPLES,
    seed: int = 0,
    progress: Progress | None = None,
) -> Evaluation:
    """Predict the slices of a part and measure; the evaluation of a run is recorded in its folder.

    Args:
        run: the trained network.
        manifest: the data set.
        split: specification of the split, or None where ``part`` is ``all``.
        part: ``train``, ``val``, ``test``, or ``all`` for every slice.
        output: folder that gets the report; see :func:`groundglass.evaluation.report.write_report`.
        data: path that the manifest was read from, for the command to reproduce; the manifest's root unless
            given.
        resamples: of the bootstrap over patients.
        seed: of the bootstrap.
        progress: called after every slice.

    Raises:
        RunError: the run is unfinished, its log is damaged, or its network gives no number.
        DataError: the part is empty or unlabelled, or the split does not fit the data set.
        ImageError: a slice of the part cannot be read. None is left out silently.
    """
    if not run.info.get("finished", False):
        raise RunError(
            f"{run.path}: the training has not finished; finish it with `groundglass train --resume`"
        )
    chosen = select_part(manifest, split, part, run.seed)
    hashes = [content_hash(record) for record in chosen.records]
    warnings = part_warnings(manifest, chosen, hashes, run.info.get("training_sha256", ()), run.split_spec)
    start = time.perf_counter()
    logit, probability, examined = _predict(run, chosen, progress)
    seconds = time.perf_counter() - start
    metrics = compute_metrics(chosen.label, probability)
    intervals = bootstrap(chosen.label, probability, chosen.patient, resamples=resamples, seed=seed)
    applicability = None
    if isinstance(run, ExaminingRun) and examined is not None:
        applicability = _applicability(chosen, probability, examined, run.calibration, resamples, seed)
    sha256, now = fingerprint(chosen, hashes), datetime.now(timezone.utc).isoformat(timespec="seconds")
    # A bundle is not written to once it is made.
    log_folder = run.record_folder
    times = 1 if log_folder is None else log.record(log_folder, chosen, sha256, now, output)
    if times > 1 and part not in {"train", "val"}:
        warnings = (
            f"These slices have been evaluated with this run {times} times, this time included. Figures on a "
            "test part hold only if nothing was chosen by them.",
            *warnings,
        )
    command = _command(run, chosen, data or manifest.root, output, resamples, seed)
    return Evaluation(
        chosen, sha256, logit, probability, metrics, intervals, warnings, times, now, seconds, command,
        applicability,
    )  # fmt: skip


def _predict(
    run: TrainedRun, part: Part, progress: Progress | None
) -> tuple[NDArray[np.float64], NDArray[np.float64], Examined | None]:
    """Logits and probabilities of a part's slices, shape (N,) each, and what a bundle says beside."""
    slices, count = _slices(part.records, progress), len(part.records)
    outputs: list[NetworkOutputs] = []
    examined: list[Examined] = []
    for _ in range(0, count, _BATCH):
        batch = islice(slices, _BATCH)
        if isinstance(run, ExaminingRun):
            output, beside = run.examine(batch)
            examined.append(beside)
        else:
            output = run.predict(each.pixels for each in batch)
        outputs.append(output)
    logit = np.concatenate([np.asarray(each.logit, np.float64) for each in outputs])
    probability = np.concatenate([np.asarray(each.probability, np.float64) for each in outputs])
    if logit.shape != (count,) or probability.shape != logit.shape:
        raise RunError(f"{run.path}: {count} slices gave {len(probability)} predictions")
    bad = np.flatnonzero(~(np.isfinite(logit) & (probability >= 0) & (probability <= 1)))
    if len(bad):
        name = part.file(part.records[bad[0]])
        raise RunError(
            f"{run.path}: the network gives no valid probability for {name}; was the training stable?"
        )
    if not examined:
        return logit, probability, None
    known = [each.percentile for each in examined if each.percentile is not None]
    reasons = tuple(chain.from_iterable(each.reason for each in examined))
    return logit, probability, Examined(reasons, np.concatenate(known) if known else None)


def _slices(records: Sequence[Record], progress: Progress | None) -> Iterator[CTSlice]:
    for number, record in enumerate(records, 1):
        yield read_record(record)
        if progress is not None:
            progress(number, len(records))


def _applicability(
    part: Part, probability: NDArray[np.float64], examined: Examined, calibration: Calibration,
    resamples: int, seed: int,
) -> Applicability:  # fmt: skip
    def share(holds: NDArray[np.bool_]) -> Share:
        return share_of(holds, part.patient, resamples=resamples, seed=seed)

    percentile = examined.percentile
    reasons = [each.partition(" (")[0].partition(":")[0] for each in examined.reason if each is not None]
    return Applicability(
        share(np.array([reason is not None for reason in examined.reason])),
        dict(Counter(reasons).most_common()),
        None if percentile is None else share(percentile >= _FAR),
        prediction_sets(part, probability, calibration, resamples=resamples, seed=seed),
    )


def _command(run: TrainedRun, part: Part, data: Path, output: Path, resamples: int, seed: int) -> str:
    words = ["groundglass", "evaluate", printable(run.path), "--data", printable(data)]
    words += ["--split", part.split] if part.split is not None else []
    words += ["--part", part.name, "--output", printable(output)]
    return shlex.join([*words, "--bootstrap", str(resamples), "--seed", str(seed)])


def metrics_document(run: TrainedRun, evaluation: Evaluation) -> dict[str, Any]:
    """Everything measured and everything needed to measure it again, as plain JSON values."""
    part, intervals = evaluation.part, evaluation.bootstrap
    covid = int(part.label.sum())
    applicability = evaluation.applicability
    return {
        "format": FORMAT,
        "run": {
            "path": printable(run.path),
            "recipe": run.recipe.name,
            "network": run.recipe.network.name,
            "seed": run.seed,
            "split": run.split_spec,
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
                **values,
                "undefined_resamples": intervals.intervals[name].undefined,
                "interval_reason": intervals.intervals[name].reason,
            }
            for name, values in with_intervals(evaluation.metrics, intervals).items()
        },
        "confusion": asdict(evaluation.metrics.confusion),
        "interval": {
            **intervals.method(),
            "one_class_resamples": intervals.one_class,
            "seed": intervals.seed,
        },
        "calibration": {
            "bins": BINS,
            "reliability": [asdict(each) for each in reliability(part.label, evaluation.probability)],
        },
        "applicability": None if applicability is None else applicability.document(),
        "warnings": list(evaluation.warnings),
        "evaluations_of_these_slices": evaluation.times_evaluated,
        "time": evaluation.time,
        "seconds": round(evaluation.seconds, 3),
        "versions": versions(),
        "command": evaluation.command,
    }
