"""Evaluate a trained network on one part of a data set: predict, measure, record, warn."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import cross_val_predict

from groundglass.data.manifest import Manifest, content_hash, read_mask, read_record
from groundglass.errors import RunError
from groundglass.evaluation.bootstrap import RESAMPLES, Bootstrap, Resampling, with_interval
from groundglass.evaluation.calibration import prediction_sets, series_scores
from groundglass.evaluation.metrics import BINS, THRESHOLD, Estimate, confusion, now, reliability, versions
from groundglass.evaluation.part import Part, fingerprint, part_warnings, patient_folds, record_evaluation, select_part
from groundglass.evaluation.segmentation import Segmentation
from groundglass.files import printable
from groundglass.imaging.crop import CroppedSlice, in_slice, lesion_mask
from groundglass.imaging.slice import CTSlice
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

# What is repeated of a run's facts.
_RUN = ("recipe", "network", "seed", "split", "training_seconds", "versions")
# Percentile of the held-out slices' distances from which a slice counts as far from the training data.
_FAR = 95.0
# Slices predicted in one call, which bounds memory on large data sets.
_BATCH = 64


@dataclass(frozen=True)
class NetworkOutputs:
    """What a network says of N slices."""

    logit: NDArray[np.floating]  # of COVID, before calibration, shape (N,)
    probability: NDArray[np.floating]  # of COVID, 0 to 1, shape (N,)
    # logit of lesion of each place, shape (N, h, w); None of a network without lesion decoder
    lesion_map: NDArray[np.floating] | None
    cuts: Sequence[CroppedSlice]  # what the network was shown, and the lungs of each slice
    # why the input check refuses each slice, None for those that it accepts; empty without a check
    refused: Sequence[str | None] = ()
    # share of held-out slices that lie nearer to the training slices than each slice, 0 to 100, shape (N,);
    # None without a reference
    percentile: NDArray[np.float64] | None = None


class TrainedRun(Protocol):
    """A trained network: a training's run folder, a bundle, or anything else that has these.

    ``info`` names ``recipe``, ``network``, ``seed`` and ``split``; it may hold ``finished`` (bool; false or missing
    means unfinished), ``training_sha256`` (SHA-256 of the content of every training slice's file),
    ``training_seconds`` and ``versions``.
    """

    @property
    def path(self) -> Path:
        """Folder or file that it lies in."""

    @property
    def info(self) -> Mapping[str, Any]:
        """Facts about the training."""

    @property
    def calibration(self) -> Calibration | None:
        """From logit to prediction set: a bundle's, which also has an input check; None of a run.

        Evaluations of a run are counted in its folder.
        """

    def predict(self, slices: Iterable[CTSlice]) -> NetworkOutputs:
        """Predict slices of any size, refused ones too."""


@dataclass(frozen=True)
class Evaluation:
    """What was evaluated and what came out."""

    part: Part
    logit: NDArray[np.float64]  # of COVID, shape (N,)
    probability: NDArray[np.float64]  # of COVID, shape (N,)
    measured: Bootstrap
    # everything measured and everything needed to measure it again, as plain JSON values: ``metrics.json``
    document: Mapping[str, Any]


def evaluate(
    run: TrainedRun,
    manifest: Manifest,
    split: str | None,
    part: str,
    output: Path,
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
    progress: Progress | None = None,
    command: str = "",
) -> Evaluation:
    """Predict the slices of a part and measure; the evaluation of a run is recorded in its folder.

    ``part`` is ``train``, ``val``, ``test``, or ``all`` for every slice, for which ``split``, a split's specification,
    is None. ``output`` gets the report; see :func:`groundglass.evaluation.report.write_report`. ``resamples`` and
    ``seed`` are of the bootstrap over patients; ``progress`` is called after every slice; ``command`` is what
    measures it again.

    Raises:
        RunError: the run is unfinished, its log is damaged, or its network gives no number.
        DataError: the part is empty or unlabelled, or the split does not fit the data set.
        ImageError: a slice of the part cannot be read. None is left out silently.
    """
    info = run.info
    if not info.get("finished", False):
        raise RunError(f"{run.path}: the training has not finished; finish it with `groundglass train --resume`")
    chosen = select_part(manifest, split, part, info["seed"])
    hashes = [content_hash(record) for record in chosen.records]
    start, masks = time.perf_counter(), Segmentation()
    outputs, formats = _predict(run, chosen, masks, progress)
    seconds = round(time.perf_counter() - start, 3)
    logit, probability = (np.asarray(each, np.float64) for each in (outputs.logit, outputs.probability))
    patients = Resampling(chosen.patient, resamples, seed)
    measured = patients.measure(chosen.label, probability)
    trained = frozenset(info.get("training_sha256", ()))
    warnings = part_warnings(manifest, chosen, hashes, trained, info["split"], probability)
    sha256, moment, times = fingerprint(chosen, hashes), now(), 1
    if run.calibration is None:  # A bundle is not written to once it is made.
        times = record_evaluation(run.path, chosen, sha256, moment, output)
    if times > 1 and part not in {"train", "val"}:
        counted = f"These slices have been evaluated with this run {times} times, this time included."
        warnings.insert(0, f"{counted} Figures on a test part hold only if nothing was chosen by them.")
    segmentation = masks.figures(resamples=resamples, seed=seed)
    covid, slices = int(chosen.label.sum()), len(chosen.records)
    document = {
        "format": FORMAT,
        "run": {"path": printable(run.path), **{key: info.get(key) for key in _RUN}},
        "data": {
            "name": chosen.data, "root": printable(chosen.root), "split": chosen.split, "part": chosen.name,
            "slices": slices, "covid": covid, "non_covid": slices - covid, "patients": patients.count,
            "unlabelled": chosen.unlabelled, "fingerprint": sha256,
        },
        **_measures(chosen.label, probability, measured),
        "applicability": _applicability(chosen, outputs, patients, run.calibration),
        **({"segmentation": segmentation} if segmentation else {}),
        "file_format_baseline": _file_format(chosen, formats, measured),
        "by_patient": _by_patient(chosen, probability, measured),
        "warnings": warnings,
        "evaluations_of_these_slices": times,
        "time": moment,
        "seconds": seconds,
        "versions": versions(),
        "command": command,
    }  # fmt: skip
    return Evaluation(chosen, logit, probability, measured, document)


def _predict(
    run: TrainedRun, part: Part, masks: Segmentation, progress: Progress | None
) -> tuple[NetworkOutputs, list[str]]:
    """By batches, without maps and cropped slices, which need not fit into memory all at once; and the file formats."""
    formats, batches, count = list[str](), list[NetworkOutputs](), len(part.records)
    for start in range(0, count, _BATCH):
        records = part.records[start : start + _BATCH]
        read = [read_record(record) for record in records]
        kinds = ((each.origin.file_format, each.origin.mode) for each in read)
        formats += [f"{kind} {mode} {record.suffix}" for (kind, mode), record in zip(kinds, records, strict=True)]
        outputs = run.predict(read)
        for index, (record, cut, ct_slice) in enumerate(zip(records, outputs.cuts, read, strict=True)):
            paths = record.lung_mask, record.lesion_mask
            if any(paths):
                true = [None if path is None else read_mask(path, ct_slice) for path in paths]
                seen = None if outputs.lesion_map is None else outputs.lesion_map[index]
                found = () if seen is None else (lesion_mask(seen, cut), in_slice(seen, cut))
                masks.add(record.patient_id, true, cut.lungs, *found)
            if progress is not None:
                progress(start + index + 1, count)
        batches.append(replace(outputs, lesion_map=None, cuts=()))
    logit = np.concatenate([each.logit for each in batches])
    probability = np.concatenate([each.probability for each in batches])
    bad = np.flatnonzero(~(np.isfinite(logit) & (probability >= 0) & (probability <= 1)))
    if len(bad):
        name = part.file(part.records[bad[0]])
        raise RunError(f"{run.path}: no valid probability for {name}; was the training stable?")
    refused = [reason for each in batches for reason in each.refused]
    known = [each.percentile for each in batches if each.percentile is not None]
    percentile = np.concatenate(known) if known else None
    return NetworkOutputs(logit, probability, None, (), refused, percentile), formats


def _measures(label: NDArray[np.int8], probability: NDArray[np.float64], measured: Bootstrap) -> dict[str, Any]:
    undefined = measured.metrics["auc"].undefined_resamples
    return {
        "positive": "COVID",
        "threshold": THRESHOLD,
        "metrics": {name: asdict(each) for name, each in measured.metrics.items()},
        "confusion": confusion(label, probability),
        "interval": {**measured.method(), "one_class_resamples": undefined, "seed": measured.patients.seed},
        "calibration": {"bins": BINS, "reliability": reliability(label, probability)},
    }


def _applicability(
    part: Part, outputs: NetworkOutputs, patients: Resampling, calibration: Calibration | None
) -> dict[str, Any] | None:
    """Whether a bundle's answers can be relied on for these slices; None for a run, which has no input check."""
    if calibration is None:
        return None
    reasons = [reason.partition(" (")[0].partition(":")[0] for reason in outputs.refused if reason is not None]
    beyond = None if outputs.percentile is None else patients.share(outputs.percentile >= _FAR)
    return {
        "refused": patients.share(np.array([reason is not None for reason in outputs.refused])).bounds(),
        "reasons": dict(Counter(reasons).most_common()),
        "beyond_95": beyond and {**beyond.bounds(), "meaning": BEYOND},
        "prediction_sets": prediction_sets(part.label, outputs.probability, patients, calibration, Estimate.bounds),
    }


def _file_format(part: Part, formats: Sequence[str], measured: Bootstrap) -> dict[str, Any] | None:
    """A baseline that sees of each slice its file format, pixel mode and suffix, cross-validated over patients.

    Beside its measures ``formats``, which counts these, and the network's AUC less its, paired. None where a fold would
    be fitted to one label.
    """
    label, kinds = part.label, np.unique(formats)
    folds = patient_folds(label, part.patient, measured.patients.seed)
    if not folds:
        return None
    seen = np.full(len(label), 0.5)
    if len(kinds) > 1:
        columns = np.array(formats)[:, None] == kinds
        fitted = cross_val_predict(LogisticRegression(), columns, label, cv=folds, method="predict_proba")
        seen = np.clip(fitted[:, 1], 0, 1)
    alone = measured.patients.measure(label, seen)
    gap = (measured.metrics["auc"].value or 0.0) - (alone.metrics["auc"].value or 0.0)
    draws = measured.draws["auc"] - alone.draws["auc"]
    return {
        "formats": len(kinds),
        "metrics": {name: each.bounds() for name, each in alone.metrics.items()},
        "auc_difference": with_interval(Estimate(gap), draws, measured.patients.count).bounds(),
    }


def _by_patient(part: Part, probability: NDArray[np.float64], measured: Bootstrap) -> dict[str, Any] | None:
    """AUC of the series scores of patients whose slices have one label; None where no patient has several slices."""
    if not len(series_scores(part, probability)[0]):
        return None
    score, label, _ = series_scores(part, probability, least=1)
    each = np.arange(len(score)).astype(np.str_)
    found = replace(measured.patients, patient=each).measure(label, score.clip(0, 1))
    return {"auc": found.metrics["auc"].bounds(), "patients": len(score)}
