"""Slices without the disease and copies of them with lesions painted in: pairs that differ in nothing else.

Two kinds of slices serve. Into real ones that show no COVID-19, lesions of every kind are painted at several
severities, where a network may have seen the untouched slice in training but never these lesions: they are
drawn from a random stream of their own. Phantoms carry ground glass that went through the invented scanner's
blur and noise, and their masks with it; no network was trained on them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from groundglass.data.manifest import Label, Record, read_record
from groundglass.errors import DataError
from groundglass.imaging.framing import find_lungs
from groundglass.imaging.lesions import Distribution, Kind, paint_lesion
from groundglass.imaging.phantom import Scanner, scan
from groundglass.imaging.slice import Grey, Origin
from groundglass.imaging.thorax import Patient

SEVERITIES = (0.1, 0.25, 0.5, 0.75)
"""Of the lesions, 0 none to 1 most of the lungs."""

KINDS = tuple(Kind)

LEAST_LUNG = 0.06
"""Share of the picture that lung must fill, so that a lesion in it can be seen."""

LEAST_LESION = 0.004
"""Share of the lungs that a lesion must cover; smaller ones are left out."""

_STREAM = 0x3A95
_DISTRIBUTIONS = tuple(Distribution)
_LEVELS = (0.15, 0.85)


@dataclass(frozen=True)
class Painting:
    """A slice with a lesion.

    Attributes:
        kind: of the lesion.
        severity: of the lesion, as asked for.
        pixels: uint8, shape (H, W).
        lesion: bool, shape (H, W): True where there is lesion, inside the lungs.
    """

    kind: Kind
    severity: float
    pixels: Grey
    lesion: NDArray[np.bool_]


@dataclass(frozen=True)
class PaintedSlice:
    """An untouched slice and its painted copies.

    Attributes:
        patient: whose it is: of the manifest, else the series it was cut from.
        pixels: uint8, shape (H, W), without any lesion.
        lungs: bool, shape (H, W).
        paintings: its copies; those with too small a lesion are left out.
        record: where it came from; None for a phantom.
    """

    patient: str
    pixels: Grey
    lungs: NDArray[np.bool_]
    paintings: tuple[Painting, ...]
    record: Record | None = None


def paint_records(records: Sequence[Record], most: int, seed: int = 0) -> Iterator[PaintedSlice]:
    """Paint every kind of lesion at every severity into slices that show enough lung.

    Args:
        records: slices without the disease.
        most: slices painted; they are drawn at random where there are more.
        seed: of the choice and of the lesions.

    Raises:
        DataError: a slice is labelled COVID.
        ImageError: a slice cannot be read.
    """
    for record in records:
        if record.label is Label.COVID:
            raise DataError(f"{record.path}: labelled COVID; lesions are painted into slices without it only")
    painted = 0
    for index in np.random.default_rng([_STREAM, seed]).permutation(len(records)):
        if painted == most:
            return
        record = records[index]
        read = read_record(record)
        lungs, _ = find_lungs(read.pixels)
        if lungs.mean() < LEAST_LUNG:
            continue
        painted += 1
        paintings = tuple(_paint(read.pixels, lungs, [_STREAM, seed, int(index)]))
        yield PaintedSlice(_patient(record, read.origin), read.pixels, lungs, paintings, record)


def scan_phantoms(count: int, seed: int = 0) -> Iterator[PaintedSlice]:
    """Scan invented patients at one level each, healthy and with ground glass of every severity.

    Args:
        count: of patients.
        seed: of everything random.
    """
    for index in range(count):
        rng = np.random.default_rng([_STREAM, seed, index])
        patient = Patient.draw(rng)
        scanner = Scanner.draw(patient, rng)
        level = rng.uniform(*_LEVELS)
        healthy = scan(patient, scanner, level)
        paintings = []
        for severity in SEVERITIES:
            sick = scan(patient, scanner, level, severity)
            if _large_enough(sick.lesions, healthy.lungs):
                paintings.append(Painting(Kind.GROUND_GLASS, severity, sick.slice.pixels, sick.lesions))
        yield PaintedSlice(healthy.patient_id, healthy.slice.pixels, healthy.lungs, tuple(paintings))


def _paint(pixels: Grey, lungs: NDArray[np.bool_], entropy: Sequence[int]) -> Iterator[Painting]:
    for kind_number, kind in enumerate(KINDS):
        for severity_number, severity in enumerate(SEVERITIES):
            rng = np.random.default_rng([*entropy, kind_number, severity_number])
            distribution = _DISTRIBUTIONS[rng.integers(len(_DISTRIBUTIONS))]
            painted = paint_lesion(pixels, lungs, kind, severity, rng, distribution)
            lesion = painted.mask & lungs
            if _large_enough(lesion, lungs):
                yield Painting(kind, severity, painted.pixels, lesion)


def _large_enough(lesion: NDArray[np.bool_], lungs: NDArray[np.bool_]) -> bool:
    return bool(lesion.sum() > LEAST_LESION * lungs.sum())


def _patient(record: Record, origin: Origin) -> str:
    """Slices of one series resemble each other, so that they count as one patient's."""
    if record.patient_known:
        return record.patient_id
    # `groundglass data slices` names its files <series>_<index>.
    return origin.series or record.path.stem.rpartition("_")[0] or record.path.stem
