"""Evaluate a trained network on one part of a data set: predict, measure, record, warn."""

from __future__ import annotations

import shlex
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, is_dataclass, replace
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedGroupKFold, cross_val_predict

from groundglass.data.manifest import Manifest, content_hash, read_mask, read_record
from groundglass.errors import RunError
from groundglass.evaluation.bootstrap import RESAMPLES, Bootstrap, Resampling, with_interval
from groundglass.evaluation.calibration import PredictionSets, prediction_sets, series_scores
from groundglass.evaluation.metrics import BINS, THRESHOLD, Estimate, Metrics, confusion, now, reliability, versions
from groundglass.evaluation.part import Part, fingerprint, part_warnings, record_evaluation, select_part
from groundglass.evaluation.segmentation import CountedEstimate, Segmentation
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
_BATCH = 256


@dataclass(frozen=True)
class NetworkOutputs:
    """What a network says of N slices."""

    logit: NDArray[np.floating]  # of COVID, before calibration, shape (N,)
    probability: NDArray[np.floating]  # of COVID, 0 to 1, shape (N,)
    # logit of lesion of each place, shape (N, h, w); None of a network without lesion decoder
    lesion_map: NDArray[np.floating] | None
    cuts: Sequence[CroppedSlice]  # what the network was shown, and the lungs of each slice
    # why the input check refuses each slice, None for those that it accepts; None without a check
    refused: tuple[str | None, ...] | None = None
    # share of held-out slices that lie nearer to the training slices than each slice, 0 to 100, shape (N,);
    # None without a reference
    percentile: NDArray[np.float64] | None = None


class TrainedRun(Protocol):
    """A trained network with its history: a training's run folder, a bundle, or anything else that has these.

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

    def history(self) -> Sequence[Mapping[str, float]]:
        """One mapping per epoch."""

    def plot(self) -> Figure:
        """The learning curves of a run with a history."""

    def predict(self, slices: Iterable[CTSlice]) -> NetworkOutputs:
        """Predict slices of any size, refused ones too."""


@dataclass(frozen=True)
class Applicability:
    """Whether a bundle's answers can be relied on for the evaluated slices.

    ``refused`` is the share that its input check refuses, and ``reasons`` how often each was given; ``beyond_95`` is
    explained by ``BEYOND``, None where the bundle holds no reference.
    """

    refused: Estimate
    reasons: Mapping[str, int]
    beyond_95: Estimate | None
    prediction_sets: PredictionSets


@dataclass(frozen=True)
class FormatBaseline:
    """A baseline that sees of each slice its file format, pixel mode and suffix, cross-validated over patients.

    ``formats`` counts these; ``auc_difference`` is the network's AUC less the baseline's, paired.
    """

    formats: int
    metrics: Metrics
    auc_difference: Estimate


@dataclass(frozen=True)
class Evaluation:
    """What was evaluated and what came out."""

    part: Part
    logit: NDArray[np.float64]  # of COVID, shape (N,)
    probability: NDArray[np.float64]  # of COVID, shape (N,)
    measured: Bootstrap
    warnings: tuple[str, ...]  # what a reader must know before trusting them
    # of a bundle; None for a run, which has neither input check nor prediction sets
    applicability: Applicability | None
    # by the keys of `SEGMENTATION_TITLES`; empty where the manifest names no masks of the slices
    segmentation: Mapping[str, CountedEstimate]
    # what the file format alone gives away; None where it cannot be measured
    file_format: FormatBaseline | None
    # AUC of the series scores of patients whose slices all have one label, and how many they are; None where
    # no patient is known to have several slices
    by_patient: CountedEstimate | None
    facts: Mapping[str, Any]  # what else `metrics.json` holds, by its keys

    @property
    def called(self) -> NDArray[np.bool_]:
        """Which slices are called COVID, shape (N,)."""
        return self.probability >= THRESHOLD

    @cached_property
    def document(self) -> Mapping[str, Any]:
        """Everything measured and everything needed to measure it again, as plain JSON values."""
        part, measured, patients, facts = self.part, self.measured, self.by_patient, dict(self.facts)
        applicability = _plain(self.applicability)
        if applicability and applicability["beyond_95"]:
            applicability["beyond_95"]["meaning"] = BEYOND
        covid, slices = int(part.label.sum()), len(part.records)
        return {
            "format": FORMAT,
            "run": facts.pop("run"),
            "data": {
                "name": part.data, "root": printable(part.root), "split": part.split, "part": part.name,
                "slices": slices, "covid": covid, "non_covid": slices - covid, "patients": measured.patients.count,
                "unlabelled": part.unlabelled, "fingerprint": facts.pop("fingerprint"),
            },
            "positive": "COVID",
            "threshold": THRESHOLD,
            "metrics": {name: asdict(each) for name, each in measured.metrics.items()},
            "confusion": confusion(part.label, self.probability),
            "interval": {
                **measured.method(), "one_class_resamples": measured.metrics["auc"].undefined_resamples,
                "seed": measured.patients.seed,
            },
            "calibration": {"bins": BINS, "reliability": reliability(part.label, self.probability)},
            "applicability": applicability,
            **({"segmentation": _plain(self.segmentation)} if self.segmentation else {}),
            "file_format_baseline": _plain(self.file_format),
            "by_patient": patients and {"auc": patients.estimate.bounds(), "patients": patients.slices},
            "warnings": list(self.warnings),
            **facts,
        }  # fmt: skip


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
) -> Evaluation:
    """Predict the slices of a part and measure; the evaluation of a run is recorded in its folder.

    ``part`` is ``train``, ``val``, ``test``, or ``all`` for every slice, for which ``split``, a split's specification,
    is None. ``output`` gets the report; see :func:`groundglass.evaluation.report.write_report`. ``resamples`` and
    ``seed`` are of the bootstrap over patients; ``progress`` is called after every slice.

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
    trained = info.get("training_sha256", ())
    warnings = part_warnings(manifest, chosen, hashes, trained, info["split"], probability)
    applicability = None
    if run.calibration is not None:
        applicability = _applicability(chosen.label, probability, patients, outputs, run.calibration)
    sha256, moment = fingerprint(chosen, hashes), now()
    times = 1  # A bundle is not written to once it is made.
    if run.calibration is None:
        times = record_evaluation(run.path, chosen, sha256, moment, output)
    if times > 1 and part not in {"train", "val"}:
        warnings = (
            f"These slices have been evaluated with this run {times} times, this time included. Figures on a "
            "test part hold only if nothing was chosen by them.",
            *warnings,
        )
    facts = {
        "run": {"path": printable(run.path), **{key: info.get(key) for key in _RUN}},
        "fingerprint": sha256,
        "evaluations_of_these_slices": times,
        "time": moment,
        "seconds": seconds,
        "versions": versions(),
        "command": _command(run, chosen, manifest, output, patients),
    }
    return Evaluation(
        chosen, logit, probability, measured, warnings, applicability,
        masks.figures(resamples=resamples, seed=seed), _file_format(chosen, formats, measured),
        _by_patient(chosen, probability, measured), facts,
    )  # fmt: skip


def _predict(
    run: TrainedRun, part: Part, masks: Segmentation, progress: Progress | None
) -> tuple[NetworkOutputs, list[str]]:
    """By batches, without maps and cropped slices, which need not fit into memory all at once; and the file formats."""
    formats, batches, count = list[str](), list[NetworkOutputs](), len(part.records)

    def slices() -> Iterator[CTSlice]:
        for number, record in enumerate(part.records, 1):
            ct_slice = read_record(record)
            formats.append(f"{ct_slice.origin.file_format} {ct_slice.origin.mode} {record.suffix}")
            yield ct_slice
            if progress is not None:
                progress(number, count)

    reading = slices()
    for start in range(0, count, _BATCH):
        outputs = run.predict(islice(reading, _BATCH))
        records = part.records[start : start + _BATCH]
        for index, (record, cut) in enumerate(zip(records, outputs.cuts, strict=True)):
            paths = record.lung_mask, record.lesion_mask
            if any(paths):
                true = [None if path is None else read_mask(path, cut.lungs.shape) for path in paths]
                seen = None if outputs.lesion_map is None else outputs.lesion_map[index]
                found = () if seen is None else (lesion_mask(seen, cut), in_slice(seen, cut))
                masks.add(record.patient_id, true, cut.lungs, *found)
        batches.append(replace(outputs, lesion_map=None, cuts=()))
    logit, probability = (
        np.concatenate([getattr(each, name) for each in batches]) for name in ("logit", "probability")
    )
    bad = np.flatnonzero(~(np.isfinite(logit) & (probability >= 0) & (probability <= 1)))
    if len(bad):
        name = part.file(part.records[bad[0]])
        raise RunError(f"{run.path}: no valid probability for {name}; was the training stable?")
    refused = tuple(reason for each in batches for reason in each.refused or ())
    known = [each.percentile for each in batches if each.percentile is not None]
    percentile = np.concatenate(known) if known else None
    return NetworkOutputs(logit, probability, None, (), refused, percentile), formats


def _applicability(
    label: NDArray[np.int8], probability: NDArray[np.float64], patients: Resampling, outputs: NetworkOutputs,
    calibration: Calibration,
) -> Applicability:  # fmt: skip
    refused, percentile = outputs.refused or (), outputs.percentile
    reasons = [each.partition(" (")[0].partition(":")[0] for each in refused if each is not None]
    return Applicability(
        patients.share(np.array([reason is not None for reason in refused])),
        dict(Counter(reasons).most_common()),
        None if percentile is None else patients.share(percentile >= _FAR),
        prediction_sets(label, probability, patients, calibration),
    )


def _file_format(part: Part, formats: Sequence[str], measured: Bootstrap) -> FormatBaseline | None:
    """Beside the network's measures; None where a fold would be fitted to one label."""
    label, patient, kinds = part.label, part.patient, np.unique(formats)
    folds = min(5, *(len(np.unique(patient[label == value])) for value in (0, 1)))
    if folds < 2:
        return None
    seen = np.full(len(label), 0.5)
    if len(kinds) > 1:
        splitter = StratifiedGroupKFold(folds, shuffle=True, random_state=measured.patients.seed)
        splits = list(splitter.split(label, label, patient))
        if not all(np.ptp(label[fitted]) for fitted, _ in splits):
            return None
        columns = np.array(formats)[:, None] == kinds
        fitted = cross_val_predict(LogisticRegression(), columns, label, cv=splits, method="predict_proba")
        seen = np.clip(fitted[:, 1], 0, 1)
    alone = measured.patients.measure(label, seen)
    gap = (measured.metrics["auc"].value or 0.0) - (alone.metrics["auc"].value or 0.0)
    draws = measured.draws["auc"] - alone.draws["auc"]
    return FormatBaseline(len(kinds), alone.metrics, with_interval(Estimate(gap), draws, measured.patients.count))


def _by_patient(part: Part, probability: NDArray[np.float64], measured: Bootstrap) -> CountedEstimate | None:
    if not len(series_scores(part, probability)[0]):
        return None
    score, label, _ = series_scores(part, probability, least=1)
    each = np.arange(len(score)).astype(np.str_)
    found = replace(measured.patients, patient=each).measure(label, score.clip(0, 1))
    return CountedEstimate(found.metrics["auc"], len(score))


def _command(run: TrainedRun, part: Part, manifest: Manifest, output: Path, patients: Resampling) -> str:
    words = ["groundglass", "evaluate", printable(run.path)]
    words += [word for path in manifest.given or (manifest.root,) for word in ("--data", printable(path))]
    words += ["--split", part.split] if part.split is not None else []
    words += ["--part", part.name, "--output", printable(output)]
    return shlex.join([*words, "--bootstrap", str(patients.resamples), "--seed", str(patients.seed)])


def _plain(value: Any) -> Any:
    """Data classes and mappings as JSON values, of estimates their value and bounds."""
    if isinstance(value, Estimate):
        return value.bounds()
    if isinstance(value, CountedEstimate):
        return {**value.estimate.bounds(), "slices": value.slices}
    if is_dataclass(value):
        return {each.name: _plain(getattr(value, each.name)) for each in fields(value)}
    return {name: _plain(each) for name, each in value.items()} if isinstance(value, Mapping) else value
