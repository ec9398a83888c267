"""Groups of slices whose distance from a bundle's training data is measured, and what comes out of each."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from groundglass.data.load import load_dataset
from groundglass.data.manifest import Record, read_pixels, read_record
from groundglass.errors import DataError
from groundglass.evaluation.alterations import HARMLESS, SPOILING, Alteration
from groundglass.evaluation.bundled import BundledRun
from groundglass.evaluation.distance import Distance
from groundglass.evaluation.distance_measure import Judged, measure_distance
from groundglass.evaluation.metrics import compute_metrics
from groundglass.evaluation.part import Part
from groundglass.evaluation.placement import Placement
from groundglass.evaluation.renderings import RENDERINGS
from groundglass.imaging.framing import MUCH_LUNG, find_lungs
from groundglass.imaging.phantom import make_phantom
from groundglass.imaging.read import read_slices
from groundglass.imaging.slice import CTSlice, Origin
from groundglass.imaging.source import files_below

Kind = Literal["val", "altered", "test", "elsewhere"]

_BATCH = 64
_STREAM = 0xD157
_SEVERITIES = (0.0, 0.5)


@dataclass(frozen=True)
class Slices:
    """Slices to be placed.

    Attributes:
        name: what they are.
        kind: the validation part, as it is or altered; the test part; or anything else.
        read: reads them.
        patient: whose slice each is, shape (N,).
        label: 1 for COVID and 0 for NonCOVID, shape (N,); empty where nobody knows.
    """

    name: str
    kind: Kind
    read: Callable[[], Iterator[CTSlice]]
    patient: NDArray[np.str_]
    label: NDArray[np.int8]

    @classmethod
    def of(cls, name: str, kind: Kind, part: Part) -> Slices:
        """Those of a part."""
        return cls(name, kind, lambda: map(read_record, part.records), part.patient, part.label)


@dataclass(frozen=True)
class Group:
    """What came out of a group of slices.

    Attributes:
        name: what they are.
        kind: see :class:`Slices`.
        distance: how far they lie.
        reason: why the bundle refuses each of them, None for those that it accepts, shape (N,).
        accuracy: of the model, None where labels are not known.
        auc: likewise, or where all labels are the same.
    """

    name: str
    kind: Kind
    distance: Distance
    reason: NDArray[np.object_]
    accuracy: float | None
    auc: float | None


def judge(run: BundledRun, slices: Slices, resamples: int, seed: int) -> Group:
    """Predict and place slices.

    Args:
        run: a bundle.
        slices: at least one.
        resamples: of the bootstrap over patients.
        seed: of the bootstrap.

    Raises:
        ImageError: a slice cannot be read.
    """
    read = slices.read()
    batches = [run.predict_placed(islice(read, _BATCH)) for _ in range(0, len(slices.patient), _BATCH)]
    probability = np.concatenate([predictions.probability for predictions, _ in batches])
    placement = Placement.joined([placed for _, placed in batches])
    judged = Judged(slices.label, probability, slices.patient, placement)
    distance = measure_distance(judged, resamples=resamples, seed=seed)
    metrics = compute_metrics(slices.label, probability) if len(slices.label) else None
    return Group(
        slices.name,
        slices.kind,
        distance,
        np.array(placement.reason, np.object_),
        None if metrics is None else metrics.accuracy.value,
        None if metrics is None else metrics.auc.value,
    )


def other_groups(
    parts: Mapping[str, Part], lesion_free: Path | None, lungs: Sequence[Path], phantoms: int, seed: int
) -> Iterator[Slices]:
    """The validation part altered, the test part, and slices from elsewhere.

    Args:
        parts: of the data set.
        lesion_free: folder of slices without the disease, or None.
        lungs: folders of axial chest slices whose label nobody knows.
        phantoms: of each severity.
        seed: of the phantoms.

    Raises:
        DataError: a folder is missing or empty.
    """
    for name, alter in {**RENDERINGS, **HARMLESS, **SPOILING}.items():
        yield _altered(name, parts["val"], alter)
    yield Slices.of("test part", "test", parts["test"])
    if lesion_free is not None:
        yield _lesion_free(lesion_free)
    for folder in lungs:
        yield _folder(folder)
    for severity in _SEVERITIES:
        yield _phantoms(severity, phantoms, seed)


def _altered(name: str, part: Part, alter: Alteration) -> Slices:
    def read() -> Iterator[CTSlice]:
        return (_picture(alter(read_pixels(record))) for record in part.records)

    return Slices(name, "altered", read, part.patient, part.label)


def _lesion_free(folder: Path) -> Slices:
    """Slices with lung enough to be judged; all of them NonCOVID."""
    records = [
        record
        for record in load_dataset(folder).records
        if find_lungs(read_pixels(record))[0].mean() >= MUCH_LUNG
    ]
    if not records:
        raise DataError(f"{folder}: holds no slice that shows much lung")
    return Slices(
        "lesion-free slices",
        "elsewhere",
        lambda: map(read_record, records),
        np.array([_series(record) for record in records], np.str_),
        np.zeros(len(records), np.int8),
    )


def _series(record: Record) -> str:
    """Whose slice it is: `groundglass data slices` names its files <series>_<index>."""
    return record.patient_id if record.patient_known else record.path.stem.rpartition("_")[0]


def _folder(folder: Path) -> Slices:
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder")
    found = [ct_slice for source in files_below(folder) for ct_slice in read_slices(source.path)]
    if not found:
        raise DataError(f"{folder}: holds no slice")
    patient = [ct_slice.origin.series or ct_slice.origin.file for ct_slice in found]
    return Slices(
        folder.name, "elsewhere", lambda: iter(found), np.array(patient, np.str_), np.zeros(0, np.int8)
    )


def _phantoms(severity: float, count: int, seed: int) -> Slices:
    def read() -> Iterator[CTSlice]:
        rngs = (np.random.default_rng([_STREAM, seed, index]) for index in range(count))
        return (make_phantom(rng, severity).slice for rng in rngs)

    name = "healthy phantoms" if severity == 0 else f"phantoms of severity {severity:g}"
    patient = np.array([f"phantom {index}" for index in range(count)], np.str_)
    return Slices(name, "elsewhere", read, patient, np.full(count, severity > 0, np.int8))


def _picture(pixels: NDArray[np.uint8]) -> CTSlice:
    return CTSlice(pixels, Origin("altered", "array"))
