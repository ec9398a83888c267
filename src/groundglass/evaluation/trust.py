"""How far findings can be trusted, measured: calibration, sets, refusal, dose-response, deletion."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from groundglass.data.foreign import ForeignPicture, read_foreign
from groundglass.data.load import load_dataset
from groundglass.data.manifest import PARTS, read_pixels
from groundglass.errors import DataError
from groundglass.evaluation.alterations import HARMLESS, SPOILING
from groundglass.evaluation.deletion import PAINTS, Deletion, deletion
from groundglass.evaluation.dose_response import DoseResponse, dose_response
from groundglass.evaluation.part import Part, select_part
from groundglass.evaluation.prediction_sets import (
    CalibrationReport,
    PredictionSets,
    calibration_report,
    prediction_sets,
)
from groundglass.evaluation.refusal import (
    RefusedShare,
    refused_altered,
    refused_files,
    refused_foreign,
    refused_share,
    together,
)
from groundglass.evaluation.result import versions
from groundglass.imaging.framing import MUCH_LUNG, find_lungs
from groundglass.imaging.phantom import Scanner, scan
from groundglass.imaging.slice import CTSlice
from groundglass.imaging.source import files_below
from groundglass.imaging.thorax import Patient
from groundglass.inference.bundle import Bundle
from groundglass.inference.classifier import Classifier

_STREAM = 0x7257
_PHANTOM_SEVERITIES = (0.0, 0.25, 0.5, 0.75, 1.0)
_LEVELS = (0.15, 0.3, 0.5, 0.7, 0.85, 0.9)
_ENDS = (0.0, 0.05, 0.95, 1.0)
_MUCH, _LITTLE, _NONE = "at least 6 % lung", "less than 6 % lung", "no lung found, rightly refused"


@dataclass(frozen=True)
class TrustJob:
    """What is to be measured on what.

    Attributes:
        bundle: verified.
        data: the labelled data set, of which the bundle learned one part.
        split: its specification.
        seed: of everything random.
        lesion_free: folder of slices without the disease, or None.
        lungs: further folders of axial chest slices.
        foreign: folders of pictures to be refused, as `groundglass.data.foreign` writes them or any other.
        phantoms: of the dose-response; other sets of phantoms are in proportion.
    """

    bundle: Bundle
    data: Path
    split: str
    seed: int = 0
    lesion_free: Path | None = None
    lungs: tuple[Path, ...] = ()
    foreign: tuple[Path, ...] = ()
    phantoms: int = 200


@dataclass(frozen=True)
class TrustReport:
    """Everything measured.

    Attributes:
        bundle: its id.
        data: name of the data set.
        split: its specification.
        seed: of everything random.
        versions: of what measured.
        calibration: for the parts val, to which it was fitted, and test.
        sets: for the part test.
        lungs: refused among axial lung slices, by group.
        foreign: refused among the foreign set, by kind.
        foreign_together: all of it, and its kinds that the gate's lessons hold or do not.
        harmless: refused among the test part's slices, altered so that they could still be judged.
        spoilt: refused among them, altered so that they could not.
        dose: the dose-response.
        deletions: of COVID slices of the part test, for each paint.
    """

    bundle: str
    data: str
    split: str
    seed: int
    versions: dict[str, str]
    calibration: tuple[CalibrationReport, ...]
    sets: PredictionSets
    lungs: tuple[RefusedShare, ...]
    foreign: tuple[RefusedShare, ...]
    foreign_together: tuple[RefusedShare, ...]
    harmless: tuple[RefusedShare, ...]
    spoilt: tuple[RefusedShare, ...]
    dose: DoseResponse
    deletions: tuple[Deletion, ...]

    def as_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


def measure_trust(job: TrustJob, tell: Callable[[str], None] = lambda step: None) -> TrustReport:
    """Measure everything.

    Args:
        job: what on what.
        tell: told of each step, in words.

    Raises:
        DataError: a data set, part or folder is missing or empty.
        ImageError: a slice of the data set cannot be read.
    """
    manifest = load_dataset(job.data)
    parts = {name: select_part(manifest, job.split, name, job.seed) for name in PARTS}
    pictures = [picture for folder in job.foreign for picture in _foreign(folder)]
    classifier = Classifier(job.bundle)
    tell("calibration and prediction sets")
    calibration, sets = _calibration(job.bundle, parts)
    tell("refusal: lung slices")
    lungs = tuple(_lungs(job, classifier, parts))
    test = [read_pixels(record) for record in parts["test"].records]
    harmless = refused_altered(classifier, test, HARMLESS)
    spoilt = refused_altered(classifier, test, SPOILING)
    tell("refusal: foreign pictures")
    foreign = refused_foreign(classifier, pictures)
    tell("dose-response")
    dose = dose_response(job.bundle, job.phantoms, max(1, job.phantoms // 4), job.seed)
    tell("deletion")
    deletions = _deletions(job, parts["test"])
    return TrustReport(
        job.bundle.id,
        manifest.name,
        job.split,
        job.seed,
        versions(("numpy",)),
        calibration,
        sets,
        lungs,
        tuple(foreign),
        tuple(_together(foreign)),
        tuple(harmless),
        tuple(spoilt),
        dose,
        deletions,
    )


def _foreign(folder: Path) -> list[ForeignPicture]:
    pictures = read_foreign(folder)
    if not pictures:
        raise DataError(f"{folder}: holds no picture")
    return pictures


def _calibration(
    bundle: Bundle, parts: dict[str, Part]
) -> tuple[tuple[CalibrationReport, ...], PredictionSets]:
    reports = []
    for name in ("val", "test"):
        logit, label = _logits(bundle, parts[name]), parts[name].label
        reports.append(calibration_report(name, label, logit, bundle.calibration))
    return tuple(reports), prediction_sets("test", label, logit, bundle.calibration)


def _logits(bundle: Bundle, part: Part) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Logits of every slice, refused or not, shape (N,)."""
    engine, framing = bundle.engine(), bundle.framing
    framed = (framing.frame(read_pixels(record)).pixels for record in part.records)
    return np.array([engine.run(framing.normalise(pixels[None])).logit[0] for pixels in framed], np.float64)


def _lungs(job: TrustJob, classifier: Classifier, parts: dict[str, Part]) -> Iterator[RefusedShare]:
    for name in ("val", "test", "train"):
        files = [record.path for record in parts[name].records]
        yield refused_files(classifier, f"{parts[name].data}, {name}", files, taught=name == "train")
    if job.lesion_free is not None:
        yield from _lesion_free(classifier, job.lesion_free)
    for folder in job.lungs:
        yield refused_files(classifier, folder.name, _files(folder))
    for severity in _PHANTOM_SEVERITIES:
        title = "healthy phantoms" if severity == 0 else f"phantoms of severity {severity:g}"
        yield refused_share(title, classifier.predict_slices(_phantoms(job, severity)))
    yield refused_share(
        "phantoms above and below the lungs", classifier.predict_slices(_phantoms(job, 0.0, _ENDS))
    )


def _lesion_free(classifier: Classifier, folder: Path) -> Iterator[RefusedShare]:
    """By how much of the picture is lung: slices cut from series reach into neck and abdomen."""
    groups: dict[str, list[Path]] = {_MUCH: [], _LITTLE: [], _NONE: []}
    for record in load_dataset(folder).records:
        lungs, found = find_lungs(read_pixels(record))
        groups[_NONE if not found else _MUCH if lungs.mean() >= MUCH_LUNG else _LITTLE].append(record.path)
    for name, files in groups.items():
        yield refused_files(classifier, f"lesion-free slices, {name}", files, taught=name != _LITTLE)


def _files(folder: Path) -> Sequence[Path]:
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder")
    return [source.path for source in files_below(folder)]


def _phantoms(job: TrustJob, severity: float, levels: Sequence[float] = _LEVELS) -> Iterator[CTSlice]:
    """Phantoms of one severity at levels from top to bottom, each patient at all of them."""
    for index in range(max(1, job.phantoms // 20)):
        rng = np.random.default_rng([_STREAM, job.seed, index])
        patient = Patient.draw(rng)
        scanner = Scanner.draw(patient, rng)
        yield from (scan(patient, scanner, level, severity).slice for level in levels)


def _together(foreign: Sequence[RefusedShare]) -> Iterator[RefusedShare]:
    if not foreign:
        return
    yield together("all foreign pictures", foreign)
    yield together("of kinds in the gate's lessons", [each for each in foreign if each.taught])
    yield together("of other kinds", [each for each in foreign if not each.taught])


def _deletions(job: TrustJob, part: Part) -> tuple[Deletion, ...]:
    covid = part.label == 1
    slices = [read_pixels(record) for record, positive in zip(part.records, covid, strict=True) if positive]
    if not slices:
        raise DataError(f"{part.title}: holds no COVID slice, which the deletion check needs")
    return tuple(deletion(job.bundle, slices, part.patient[covid], paint, job.seed) for paint in PAINTS)
