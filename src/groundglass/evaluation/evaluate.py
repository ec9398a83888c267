"""Evaluate a trained network on one part of a data set and write what was found.

What evaluated slices share with the training, and what else makes figures look better than they are.

One look of a trained network at a part: its predictions, the record of the look, and what it warns of.

Where evaluated slices lie from a bundle's training data, slice by slice.

A bundle as something that can be evaluated: it predicts what it predicts for its users, without torch.

Measure how far evaluated slices lie from what a bundle learned from.
"""

from __future__ import annotations

import shlex
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from itertools import islice
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from groundglass.data.manifest import Manifest, Record, read_pixels, read_record
from groundglass.errors import ImageError, RunError
from groundglass.evaluation import log as ledger
from groundglass.evaluation.bootstrap import LEVEL, RESAMPLES, Proportion, bootstrap, resample_patients
from groundglass.evaluation.metrics import compute_metrics
from groundglass.evaluation.part import (
    NetworkOutputs,
    Part,
    TrainedRun,
    content_hash,
    fingerprint,
    select_part,
)
from groundglass.evaluation.report import build_report
from groundglass.evaluation.result import (
    FAR_OUT,
    Accepted,
    Distance,
    Evaluation,
    MeanSD,
    OpacityLogits,
    Placed,
    Share,
    Shift,
    ToldApart,
    metrics_document,
    predictions_csv,
    told_apart,
)
from groundglass.files import printable, write_json, write_text
from groundglass.imaging.crop import CroppedSlice, Preprocessing
from groundglass.imaging.slice import CTSlice
from groundglass.inference.bundle import Bundle
from groundglass.inference.engine import Outputs
from groundglass.inference.input_check import InputCheck
from groundglass.inference.reference import QUANTILES, STATISTICS, Places, Reference, exposure, linear
from groundglass.reporting.html import render


def part_warnings(run: TrainedRun, manifest: Manifest, part: Part, hashes: Sequence[str]) -> tuple[str, ...]:
    """What a reader must know of these slices before trusting their figures, most serious first.

    A slice was trained on if its file has the same content as a training slice's, wherever it lies now. A
    patient was trained on if any of the data set's slices of that patient was.

    Args:
        run: the trained network; ``run.info["training_sha256"]`` names the content of its training slices.
        manifest: the data set.
        part: its slices that are evaluated.
        hashes: of the content of each slice of the part.
    """
    trained = frozenset(run.info.get("training_sha256", ()))
    warnings = []
    if not trained:
        warnings.append(
            "The run does not say which slices it was trained on: whether they are among these is not known."
        )
    seen = sum(sha256 in trained for sha256 in hashes)
    patients = _trained_patients(manifest, part, hashes, trained)
    if seen == len(hashes):
        warnings.append(
            "The network was trained on these very slices: the figures say how well it remembers, not how "
            "well it recognises."
        )
    elif seen:
        warnings.append(
            f"{seen} of {len(hashes)} slices have the same content as a slice that the network was trained "
            "on: the figures are too good."
        )
    known = frozenset(record.patient_id for record in part.records if record.patient_known)
    if shared := known & patients:
        slices = sum(record.patient_id in shared for record in part.records)
        warnings.append(
            f"{slices} of {len(hashes)} slices belong to {len(shared)} patients of whom the network was "
            "trained on a slice: the figures are too good."
        )
    if part.name == "val" and part.split == run.split_spec:
        warnings.append(
            "The validation part serves the choice of recipe and weights: its figures are optimistic."
        )
    return (*warnings, *_gaps(part))


def _gaps(part: Part) -> list[str]:
    warnings = []
    if part.unlabelled:
        warnings.append(f"{part.unlabelled} slices without a label were left out.")
    unknown = sum(not record.patient_known for record in part.records)
    if unknown:
        warnings.append(
            f"The patient of {unknown} of {len(part.records)} slices is not known; each of these slices "
            "counts as a patient of its own, so that intervals may be too narrow."
        )
    return warnings


def _trained_patients(
    manifest: Manifest, part: Part, hashes: Sequence[str], trained: frozenset[str]
) -> frozenset[str]:
    """Known patients of the data set's slices that were trained on."""
    if not trained:
        return frozenset()
    known = dict(zip(part.records, hashes, strict=True))
    patients = set()
    for record in manifest.records:
        if not record.patient_known or record.patient_id in patients:
            continue
        try:
            sha256 = known[record] if record in known else content_hash(record)
        except ImageError:
            continue  # It lies outside the part, and what cannot be read was not trained on.
        if sha256 in trained:
            patients.add(record.patient_id)
    return frozenset(patients)


Progress = Callable[[int, int], None]
"""Called with slices done and slices in all."""

Take = Callable[[NetworkOutputs], None]
"""Called with the predictions of some slices, in order."""

_BATCH = 256
"""Slices predicted in one call, which bounds memory on large data sets."""


def require_finished(run: TrainedRun, *, allow_unfinished: bool = False) -> None:
    """Refuse a run whose training has not ended.

    Raises:
        RunError: it has not, and that is not allowed.
    """
    if not run.info.get("finished", False) and not allow_unfinished:
        raise RunError(f"{run.path}: the training has not finished; resume it, or pass --allow-unfinished")


def predict_part(
    run: TrainedRun,
    part: Part,
    progress: Progress | None = None,
    alter: Callable[[NDArray[np.uint8]], NDArray[np.uint8]] | None = None,
    take: Take | None = None,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Logits and probabilities of every slice of a part, shape (N,) each.

    Args:
        run: the trained network.
        part: the slices.
        progress: told of every slice.
        alter: done to every slice before it is cropped.
        take: given the predictions of every batch, for what else they say.

    Raises:
        RunError: the network gives no valid number for a slice.
        ImageError: a slice cannot be read. None is left out silently.
    """
    slices = _pixels(part.records, progress)
    altered = slices if alter is None else map(alter, slices)
    logits: list[NDArray[np.float64]] = []
    probabilities: list[NDArray[np.float64]] = []
    for _ in range(0, len(part.records), _BATCH):
        predictions = run.predict(islice(altered, _BATCH))
        if take is not None:
            take(predictions)
        logits.append(np.asarray(predictions.logit, np.float64))
        probabilities.append(np.asarray(predictions.probability, np.float64))
    return checked(run, part, np.concatenate(logits), np.concatenate(probabilities))


def checked(
    run: TrainedRun, part: Part, logit: NDArray[np.float64], probability: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Logits and probabilities of a part's slices as they are, where they are all valid.

    Raises:
        RunError: one is not, or they are not as many as the slices.
    """
    if logit.shape != (len(part.records),) or probability.shape != logit.shape:
        raise RunError(f"{run.path}: {len(part.records)} slices gave {len(probability)} predictions")
    bad = np.flatnonzero(~(np.isfinite(logit) & (probability >= 0) & (probability <= 1)))
    if len(bad):
        name = part.file(part.records[bad[0]])
        raise RunError(
            f"{run.path}: the network gives no valid probability for {name}; was the training stable?"
        )
    return logit, probability


def _pixels(records: Sequence[Record], progress: Progress | None) -> Iterator[NDArray[np.uint8]]:
    for number, record in enumerate(records, 1):
        yield read_pixels(record)
        if progress is not None:
            progress(number, len(records))


def record_look(run: TrainedRun, part: Part, sha256: str, now: str, output: Path) -> int:
    """Record a look in the run's folder.

    Args:
        run: the trained network.
        part: the slices looked at.
        sha256: fingerprint of their contents and labels.
        now: when, ISO 8601 in UTC.
        output: folder that gets the report.

    Returns:
        How often these slices have been looked at with this run, this time included; 1 where looks are not
        counted.

    Raises:
        RunError: the record is damaged or cannot be written.
    """
    entry = ledger.Entry(
        data=part.data,
        split=part.split,
        part=part.name,
        slices=len(part.records),
        fingerprint=sha256,
        time=now,
        output=printable(output.absolute()),
    )
    return 1 if run.record_folder is None else ledger.record(run.record_folder, entry)


def look_warnings(run: TrainedRun, part: Part, looks: int) -> list[str]:
    """What a reader must know of the run's state and of how often it was asked.

    Args:
        run: the trained network.
        part: the slices looked at.
        looks: as :func:`record_look` counts them.
    """
    warnings = []
    if not run.info.get("finished", False):
        warnings.append("The training has not finished: these are figures of an intermediate state.")
    if looks > 1 and part.name not in {"train", "val"}:
        warnings.append(
            f"These slices have been evaluated with this run {looks} times, this time included. Figures on a "
            "test part hold only if nothing was chosen by them."
        )
    return warnings


_BATCH_PLACEMENT = 256
"""Slices placed in one call, which bounds memory on large data sets."""


@dataclass(frozen=True)
class Placement:
    """What is known of N slices beside their probability.

    Attributes:
        reason: why the gate refuses each slice, None for those that it accepts.
        reference: that they are placed by; None where the bundle carries none.
        places: where they lie, None likewise.
    """

    reason: tuple[str | None, ...]
    reference: Reference | None = None
    places: Places | None = None

    @classmethod
    def joined(cls, pieces: Sequence[Placement]) -> Placement:
        """Several, one behind the other."""
        known = [piece.places for piece in pieces if piece.places is not None]
        reasons = tuple(reason for piece in pieces for reason in piece.reason)
        return cls(reasons, pieces[0].reference, _joined(known) if known else None)


@runtime_checkable
class PlacingRun(Protocol):
    """A trained network that knows where its training data lie, as a bundle does and a run does not."""

    def predict_placed(self, slices: Iterable[CTSlice]) -> tuple[NetworkOutputs, Placement]:
        """Predict slices and place them."""


def predict_and_place(
    run: TrainedRun, part: Part, progress: Progress | None = None, take: Take | None = None
) -> tuple[NDArray[np.float64], NDArray[np.float64], Placement | None]:
    """Logits and probabilities of every slice of a part, shape (N,) each, and where the slices lie.

    Args:
        run: the trained network; where it is no :class:`PlacingRun`, nothing is placed.
        part: the slices.
        progress: told of every slice.
        take: given the predictions of every batch, for what else they say; of a :class:`PlacingRun` nothing.

    Raises:
        RunError: the network gives no valid number for a slice.
        ImageError: a slice cannot be read. None is left out silently.
    """
    if not isinstance(run, PlacingRun):
        return (*predict_part(run, part, progress, take=take), None)
    slices = _slices(part.records, progress)
    batches = [
        run.predict_placed(islice(slices, _BATCH_PLACEMENT))
        for _ in range(0, len(part.records), _BATCH_PLACEMENT)
    ]
    logit, probability = (
        np.concatenate([np.asarray(getattr(predictions, name), np.float64) for predictions, _ in batches])
        for name in ("logit", "probability")
    )
    return (*checked(run, part, logit, probability), Placement.joined([placed for _, placed in batches]))


def _slices(records: Sequence[Record], progress: Progress | None) -> Iterator[CTSlice]:
    for number, record in enumerate(records, 1):
        yield read_record(record)
        if progress is not None:
            progress(number, len(records))


def _joined(places: Sequence[Places]) -> Places:
    names = ("embedding", "grey", "either", "coordinates", "statistics")
    return Places(**{name: np.concatenate([getattr(each, name) for each in places]) for name in names})


@dataclass(frozen=True)
class BundledOutputs:
    """What a bundle says of N slices.

    Attributes:
        logit: of COVID, before calibration, shape (N,).
        probability: of COVID, calibrated, shape (N,).
        activation_map: contributions to the logit, shape (N, h, w).
        cropped: the cropped slices, shape (N, size, size).
    """

    logit: NDArray[np.float64]
    probability: NDArray[np.float64]
    activation_map: NDArray[np.float32]
    cropped: NDArray[np.uint8]


@dataclass(frozen=True)
class _Named:
    name: str


@dataclass(frozen=True)
class _RecipeNames:
    name: str
    network: _Named


class BundledRun:
    """Wraps a bundle for :func:`groundglass.evaluation.evaluate.evaluate`.

    Slices that the bundle would refuse are judged all the same: a measurement leaves nothing out. Which they
    are is told beside, and how far each slice lies from the training data.

    Args:
        bundle: verified.
    """

    def __init__(self, bundle: Bundle) -> None:
        self.bundle = bundle
        self.path = bundle.path
        training = bundle.info.training
        self.recipe = _RecipeNames(
            str(training.get("recipe", "")), _Named(str(bundle.info.network.get("name", "")))
        )
        self.seed = int(training.get("seed", 0))
        self.split_spec = str(training.get("split", ""))

    @property
    def record_folder(self) -> Path | None:
        """Nowhere: a bundle is not written to once it is made."""
        return None

    @property
    def preprocessing(self) -> Preprocessing:
        """How slices are cropped."""
        return self.bundle.preprocessing

    @property
    def info(self) -> Mapping[str, Any]:
        """Facts about the training, as far as the bundle carries them."""
        training = self.bundle.info.training
        return {
            "finished": True,
            "training_sha256": training.get("sha256", ()),
            "lesion_free": training.get("lesion_free"),
            "training_seconds": training.get("seconds"),
            "versions": training.get("versions") or {},
        }

    def history(self) -> Sequence[Mapping[str, Any]]:
        """Nothing: a bundle does not carry it."""
        return ()

    def predict(self, slices: Iterable[NDArray[np.uint8]]) -> BundledOutputs:
        """Predict grey slices, each of shape (H, W), one by one as the bundle's users do."""
        cropped = [self.preprocessing.apply(pixels).pixels for pixels in slices]
        return self._predictions(cropped, [self._ask(pixels) for pixels in cropped])

    def predict_placed(self, slices: Iterable[CTSlice]) -> tuple[BundledOutputs, Placement]:
        """Predict slices, and say which of them the bundle would refuse and where they lie."""
        gate = self.bundle.input_check
        cropped, outputs, reasons, grey = [], [], [], []
        for ct_slice in slices:
            frame = self.preprocessing.apply(ct_slice.pixels)
            output = self._ask(frame.pixels)
            reasons.append(_reason(gate, ct_slice, frame, output))
            grey.append(exposure(frame))
            cropped.append(frame.pixels)
            outputs.append(output)
        reference: Reference | None = None
        places = None if reference is None else reference.place(_embeddings(outputs), np.stack(grey))
        return self._predictions(cropped, outputs), Placement(tuple(reasons), reference, places)

    def _ask(self, cropped: NDArray[np.uint8]) -> Outputs:
        return self.bundle.engine().run(self.preprocessing.normalise(cropped[None]))

    def _predictions(
        self, cropped: Sequence[NDArray[np.uint8]], outputs: Sequence[Outputs]
    ) -> BundledOutputs:
        calibration = self.bundle.calibration
        logit = np.array([output.logit[0] for output in outputs], np.float64)
        return BundledOutputs(
            logit,
            np.array([calibration.probability(value) for value in logit], np.float64),
            np.concatenate([output.activation_map for output in outputs]),
            np.array(cropped, np.uint8),
        )


def _embeddings(outputs: Sequence[Outputs]) -> NDArray[np.float32]:
    return np.concatenate([output.embedding for output in outputs])


def _reason(gate: InputCheck, ct_slice: CTSlice, cropped: CroppedSlice, outputs: Outputs) -> str | None:
    """Why the bundle's users would be refused an answer."""
    return gate.after(outputs.embedding[0], gate.before(ct_slice, cropped)).reason


@dataclass(frozen=True)
class Judged:
    """N evaluated slices.

    Attributes:
        label: 1 for COVID and 0 for NonCOVID, shape (N,); empty where nobody knows.
        probability: of COVID, shape (N,).
        patient: whose slice each is, shape (N,).
        placement: where they lie.
    """

    label: NDArray[np.int8]
    probability: NDArray[np.float64]
    patient: NDArray[np.str_]
    placement: Placement


def measure_distance(judged: Judged, *, resamples: int, seed: int = 0) -> Distance:
    """Sum up where evaluated slices lie.

    Args:
        judged: the slices, at least one.
        resamples: of the bootstrap over patients.
        seed: of the bootstrap.
    """
    placement = judged.placement
    refused = np.array([reason is not None for reason in placement.reason])
    share = _Shares(judged.patient, resamples, seed)
    reasons = Counter(
        reason.partition(" (")[0].partition(":")[0] for reason in placement.reason if reason is not None
    )
    return Distance(
        len(refused),
        len(np.unique(judged.patient)),
        share.of(refused),
        dict(reasons.most_common()),
        _accepted(judged, ~refused, resamples, seed),
        _placed(judged, refused, share),
    )


class _Shares:
    """Shares of the slices with intervals over their patients: a bootstrap, or Wilson's for none and all."""

    def __init__(self, patient: NDArray[np.str_], resamples: int, seed: int) -> None:
        self.resamples, self.seed = resamples, seed
        self._member = np.unique(patient, return_inverse=True)[1].ravel()
        self._patients = int(self._member.max()) + 1

    def of(self, holds: NDArray[np.bool_]) -> Share:
        """The share of slices of which something holds, shape (N,)."""
        return self.of_each(holds[:, None])[0]

    def of_each(self, holds: NDArray[np.bool_]) -> list[Share]:
        """The share of slices of which each of several things holds, shape (N, things)."""
        if self._patients == 1:
            return [Share(float(value), None, None) for value in holds.mean(axis=0)]
        draws = np.concatenate(
            [
                weights @ holds / weights.sum(axis=1, keepdims=True)
                for weights in resample_patients(self._member, self.resamples, self.seed)
            ]
        )
        bounds = np.percentile(draws, [50 * (1 - LEVEL), 50 * (1 + LEVEL)], axis=0)
        return [self._share(*each) for each in zip(holds.T, *bounds, strict=True)]

    def _share(self, holds: NDArray[np.bool_], low: float, high: float) -> Share:
        if not holds.all() and holds.any():
            return Share(float(holds.mean()), float(low), float(high))
        # No resample differs; how sure that is follows from the number of patients.
        certain = Proportion.of(np.full(self._patients, holds.all()))
        return Share(float(holds.mean()), certain.low, certain.high)


def _accepted(judged: Judged, accepted: NDArray[np.bool_], resamples: int, seed: int) -> Accepted | None:
    if not len(judged.label) or not accepted.any():
        return None
    label, probability = judged.label[accepted], judged.probability[accepted]
    resampled = bootstrap(label, probability, judged.patient[accepted], resamples=resamples, seed=seed)
    return Accepted(len(label), compute_metrics(label, probability), resampled)


def _placed(judged: Judged, refused: NDArray[np.bool_], share: _Shares) -> Placed | None:
    reference, places = judged.placement.reference, judged.placement.places
    if reference is None or places is None:
        return None
    same = _same(places.statistics, reference.held_out_statistics)
    return Placed(
        int(reference.slices),
        len(reference.held_out),
        share.of(refused | (places.either >= FAR_OUT[0])),
        _spread(places.embedding, share),
        _spread(places.grey, share),
        tuple(_shifts(reference, places.statistics, share)),
        _told_apart(reference, places, judged.patient, share),
        int(same.sum()),
        places,
    )


def _told_apart(reference: Reference, places: Places, patient: NDArray[np.str_], share: _Shares) -> ToldApart:
    """Held-out slices that are among the data say nothing and are left out."""
    other = ~_same(reference.held_out_statistics, places.statistics)
    if not other.any():
        return ToldApart(None, reason="the same slices")
    return told_apart(
        _described(reference, reference.held_out, reference.held_out_statistics)[other],
        reference.held_out_group.astype(np.str_)[other],
        _described(reference, places.coordinates, places.statistics),
        patient,
        resamples=share.resamples,
        seed=share.seed,
    )


def _same(statistics: NDArray[np.float32], others: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Which slices have exactly the grey statistics of one of the others: no two slices do."""
    known = {row.tobytes() for row in np.asarray(others, np.float32)}
    return np.array([row.tobytes() in known for row in np.asarray(statistics, np.float32)], np.bool_)


def _spread(percentile: NDArray[np.float64], share: _Shares) -> MeanSD:
    beyond_95, beyond_99 = share.of_each(percentile[:, None] >= np.array(FAR_OUT))
    return MeanSD(beyond_95, beyond_99, float(np.median(percentile)), float(percentile.mean() / 100))


def _shifts(reference: Reference, statistics: NDArray[np.float32], share: _Shares) -> Sequence[Shift]:
    data = np.quantile(statistics, QUANTILES, axis=0)
    low, _, high = reference.quantiles
    middles = linear(np.stack([data[1], reference.quantiles[1]]))
    shift = (middles[0] - middles[1]) / reference.grey.spread
    outside = share.of_each((statistics < low) | (statistics > high))
    return [
        Shift(
            statistic,
            tuple(float(value) for value in reference.quantiles[:, column]),
            tuple(float(value) for value in data[:, column]),
            float(shift[column]),
            outside[column],
        )
        for column, statistic in enumerate(STATISTICS)
    ]


def _described(
    reference: Reference, coordinates: NDArray[np.floating], statistics: NDArray[np.float32]
) -> NDArray[np.float32]:
    """What slices are told apart by, standardised, shape (N, k + S)."""
    grey = reference.grey.coordinates(linear(statistics))
    return np.concatenate([coordinates, grey], axis=1, dtype=np.float32)


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
    allow_unfinished: bool = False,
    progress: Progress | None = None,
) -> Evaluation:
    """Predict the slices of a part, measure, write ``metrics.json``, ``predictions.csv`` and ``report.html``.

    Of a bundle it is measured as well how far the slices lie from its training data. The evaluation of a run
    is also recorded in its folder before anything is written elsewhere.

    Args:
        run: the trained network.
        manifest: the data set.
        split: specification of the split, or None where ``part`` is ``all``.
        part: ``train``, ``val``, ``test``, or ``all`` for every slice.
        output: folder for the files, made where it is missing.
        data: path that the manifest was read from, for the command to reproduce; the manifest's root unless
            given.
        resamples: of the bootstrap over patients.
        seed: of the bootstrap.
        allow_unfinished: evaluate a run whose training has not ended, with a warning.
        progress: told of every slice.

    Raises:
        RunError: the run is unfinished, its record is damaged, or its network gives no number.
        DataError: the part is empty or unlabelled, or the split does not fit the data set.
        ImageError: a slice of the part cannot be read. None is left out silently.
    """
    require_finished(run, allow_unfinished=allow_unfinished)
    chosen = select_part(manifest, split, part, run.seed)
    hashes = [content_hash(record) for record in chosen.records]
    warnings = part_warnings(run, manifest, chosen, hashes)
    start = time.perf_counter()
    said = OpacityLogits()
    logit, probability, placement = predict_and_place(run, chosen, progress, said.take)
    seconds = time.perf_counter() - start
    metrics = compute_metrics(chosen.label, probability)
    intervals = bootstrap(chosen.label, probability, chosen.patient, resamples=resamples, seed=seed)
    opacity = said.measure(chosen, logit, resamples=resamples, seed=seed)
    distance = None
    if placement is not None:
        judged = Judged(chosen.label, probability, chosen.patient, placement)
        distance = measure_distance(judged, resamples=resamples, seed=seed)
    sha256, now = fingerprint(chosen, hashes), datetime.now(timezone.utc).isoformat(timespec="seconds")
    looks = record_look(run, chosen, sha256, now, output)
    evaluation = Evaluation(
        part=chosen,
        sha256=sha256,
        logit=logit,
        probability=probability,
        metrics=metrics,
        bootstrap=intervals,
        warnings=(*look_warnings(run, chosen, looks), *warnings),
        looks=looks,
        time=now,
        seconds=seconds,
        command=_command(
            run, chosen, data or manifest.root, output, ("--bootstrap", resamples, "--seed", seed)
        ),
        distance=distance,
        opacity=opacity,
    )
    write_text(output / "predictions.csv", predictions_csv(evaluation))
    write_text(output / "report.html", render(build_report(run, evaluation)))
    write_json(output / "metrics.json", metrics_document(run, evaluation))
    return evaluation


def _command(run: TrainedRun, part: Part, data: Path, output: Path, settings: Sequence[str | int]) -> str:
    words = ["groundglass", "evaluate", printable(run.path), "--data", printable(data)]
    words += ["--split", part.split] if part.split is not None else []
    words += ["--part", part.name, "--output", printable(output), *map(str, settings)]
    words += [] if run.info.get("finished", False) else ["--allow-unfinished"]
    return shlex.join(words)
