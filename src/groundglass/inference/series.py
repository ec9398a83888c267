"""What the predictions of a series say together: counts, a curve along the body axis, a series score."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from html import escape
from itertools import pairwise
from pathlib import PurePath
from statistics import median_low
from typing import Any, Literal, NamedTuple

import numpy as np

from groundglass.files import printable
from groundglass.imaging.slice import is_uid
from groundglass.imaging.source import split_member
from groundglass.inference.calibration import (
    COVID,
    MUCH_OPACITY,
    NON_COVID,
    UNCERTAIN,
    Conformal,
    series_score,
    slices_in_score,
)
from groundglass.inference.input_check import DOUBTFUL
from groundglass.inference.prediction import COPY, Prediction, Status

Axis = Literal["mm", "frame", "order"]
"""What a curve runs along: position towards the head in mm, index in a file, or order of reading."""

SERIES_SCORE = (
    "Mean of the highest fifth of the calibrated probabilities of COVID among the series' classified slices, "
    "at least three of them, or all where there are fewer. It orders series; it is no diagnosis and no "
    "probability of disease."
)

_RESAMPLES, _MOST_CARRIERS = 500, 10
_CARRIER = ("file", "frame", "position", "probability")
_LABELS = {COVID: "covid", NON_COVID: "non_covid", UNCERTAIN: "uncertain"}


def score_interval(probabilities: Sequence[float]) -> tuple[float, float] | None:
    """Where 95 % of the scores lie when the slices are drawn again with replacement; None for a single slice.

    It tells how much hangs on single slices. Neighbours look alike, so another scan would vary more.
    """
    count = len(probabilities)
    if count < 2:
        return None
    values, rng = np.sort(probabilities), np.random.default_rng(0)
    rest = count - slices_in_score(count)
    # Positions in the sorted values, so that a partial sort of integers does.
    scores = values[np.partition(rng.integers(count, size=(_RESAMPLES, count)), rest)[:, rest:]].mean(axis=1)
    low, high = np.percentile(scores, (2.5, 97.5))
    return float(low), float(high)


def _label(
    score: float | None, opacity: Opacity | None, seen: Sequence[Prediction], rule: Conformal | None
) -> str | None:
    """``uncertain`` where all slices are or most show too little, and for NonCOVID in lungs as opaque as theirs."""
    if score is None or rule is None:
        return None
    label = rule.label(rule.prediction_set(score))
    much = opacity is not None and opacity.percent > MUCH_OPACITY
    hidden = 2 * sum(not DOUBTFUL.isdisjoint(each.flags) for each in seen) > len(seen)
    unsure = hidden or all(each.label == UNCERTAIN for each in seen)
    return UNCERTAIN if unsure or (label == NON_COVID and much) else label


@dataclass
class Counts:
    """How many slices came out how: classified (``ok``), of these by label, refused, and those that cannot be read."""

    ok: int = 0
    refused: int = 0
    failed: int = 0
    covid: int = 0
    non_covid: int = 0
    uncertain: int = 0

    @property
    def total(self) -> int:
        """All slices; a file that could not be read counts as one."""
        return self.ok + self.refused + self.failed

    def add(self, prediction: Prediction) -> None:
        """Count one prediction."""
        label = _LABELS.get(prediction.label or "") if prediction.status is Status.OK else None
        for name in filter(None, (prediction.status.value, label)):
            setattr(self, name, getattr(self, name) + 1)

    def in_words(self, outside_lungs: int = 0, copies: int = 0) -> str:
        """Such as ``25 slices: 20 classified (1 COVID, 16 NonCOVID, 3 uncertain), 4 outside the lungs, 1 failed``.

        ``outside_lungs`` are refused slices of another part of the body; ``copies`` are not counted.
        """
        labels = f" ({self.covid:,} COVID, {self.non_covid:,} NonCOVID, {self.uncertain:,} uncertain)"
        parts = [f"{self.ok:,} classified{labels if self.ok else ''}"]
        refused = self.refused - outside_lungs
        others = {"outside the lungs": outside_lungs, "refused": refused, "failed": self.failed}
        parts += [f"{count:,} {name}" for name, count in others.items() if count]
        more = f"; {copies:,} {'copies' if copies > 1 else 'copy'} of these left out" if copies else ""
        return f"{self.total:,} slice{'s' * (self.total != 1)}: {', '.join(parts)}{more}"


@dataclass(frozen=True)
class Curve:
    """Probability of COVID and label of each classified slice of a series.

    ``at`` are their places on the ``axis``, not falling: from the feet to the head where positions are known.
    """

    axis: Axis
    at: tuple[float, ...]
    probability: tuple[float, ...]
    label: tuple[str, ...]


@dataclass(frozen=True)
class Opacity:
    """How much of the lungs in all classified slices together is lesion.

    In percent, the slices' mean where the spacing is not known; and both volumes in ml, None where spacing or
    positions are not known.
    """

    percent: float
    lung_ml: float | None = None
    lesion_ml: float | None = None

    @classmethod
    def of(cls, classified: Iterable[Prediction]) -> Opacity | None:
        """That of classified slices; None where none has one."""
        known = [each for each in classified if each.opacity is not None]
        percent, area = ([each.opacity or 0 for each in known], [each.lung_cm2 or 0 for each in known])
        if not all(area) or not known:
            return cls(round(math.fsum(percent) / len(known), 2)) if known else None
        lesion = [share / 100 * lungs for share, lungs in zip(percent, area, strict=True)]
        share = round(100 * math.fsum(lesion) / math.fsum(area), 2)
        at = {round(each.position, 1): each.position for each in known if each.position is not None}
        if len(at) < 2 or any(each.position is None for each in known):
            return cls(share)
        # The median gap, the smaller of two in the middle: where slices were left out gaps are larger. A place that was
        # reconstructed twice counts once, by the mean of its images.
        gap = median_low(second - first for first, second in pairwise(sorted(at.values()))) / 10
        images = Counter(round(each.position or 0, 1) for each in known)
        depth = [gap / images[round(each.position or 0, 1)] for each in known]
        return cls(share, *(round(math.fsum(np.multiply(depth, of)), 1) for of in (area, lesion)))

    @property
    def in_words(self) -> str:
        """Such as ``lung opacity 12.3 %, 410 of 3,330 ml``."""
        volume = "" if self.lung_ml is None else f", {self.lesion_ml:,.0f} of {self.lung_ml:,.0f} ml"
        return f"lung opacity {self.percent:.1f} %{volume}"


@dataclass(frozen=True)
class SeriesSummary:
    """What is said of one series or volume.

    Attributes:
        study: DICOM Study Instance UID, or None.
        series: DICOM Series Instance UID, or None for what has none.
        stack: see :class:`groundglass.inference.prediction.Prediction`.
        place: the first folder that its files lie in, or the file that holds it.
        counts: of its slices.
        outside_lungs: how many of the refused slices show another part of the body.
        label: COVID, NonCOVID or ``uncertain`` by the bundle's rule on the score, no diagnosis; None where nothing
            was classified or the bundle has no rule.
        series_score: see :data:`SERIES_SCORE`.
        interval: see :func:`score_interval`.
        carriers: the slices of the highest probability that are in the score, at most ten.
        opacity: see :class:`Opacity`; None where no slice has one.
        curve: of the classified slices.
        members: which predictions are of the series, by their number from 0 in the order of reading, along the curve's
            axis.
        classified: those of them that are on the curve, in its order.
    """

    study: str | None
    series: str | None
    stack: str | None
    place: str
    counts: Counts
    outside_lungs: int
    label: str | None
    series_score: float | None
    interval: tuple[float, float] | None
    carriers: tuple[Prediction, ...]
    opacity: Opacity | None
    curve: Curve
    members: tuple[int, ...]
    classified: tuple[int, ...]

    @property
    def name(self) -> str:
        """The last part of the place, fit for a heading."""
        return PurePath(self.place).name or self.place

    @property
    def in_words(self) -> str:
        """How many slices came out how."""
        return self.counts.in_words(self.outside_lungs)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for a JSON file."""
        counts = self.counts
        return {
            **{name: getattr(self, name) for name in ("study", "series", "stack", "place")},
            "slices": counts.total,
            "classified": counts.ok,
            "refused": counts.refused,
            "positive": counts.covid,
            "negative": counts.non_covid,
            "uncertain": counts.uncertain,
            "label": self.label,
            "series_score": self.series_score,
            "interval": self.interval and list(self.interval),
            "carriers": [{name: each.to_dict()[name] for name in _CARRIER} for each in self.carriers],
            "slices_in_score": slices_in_score(self.counts.ok),
            "opacity": self.opacity and asdict(self.opacity),
            "curve": asdict(self.curve),
        }

    def _repr_html_(self) -> str:
        score = "" if self.series_score is None else f", series score {self.series_score:.3f} (no diagnosis)"
        opacity = "" if self.opacity is None else f", {self.opacity.in_words}"
        answer = f"<b>{self.label or 'no label'}</b>{score}{opacity}"
        return f"<p>{escape(self.name)}: {answer}<br>{escape(self.in_words)}</p>"


class _Part(NamedTuple):
    """What the part of a series that lies in one folder is known by; a file of several slices without UID is one."""

    study: str | None
    series: str | None
    stack: str | None
    place: str

    @classmethod
    def of(cls, prediction: Prediction) -> _Part | None:
        file, uids = printable(prediction.file), (prediction.study, prediction.series, prediction.stack)
        if prediction.series is None and prediction.frame is not None:
            return cls(*uids, file)
        return None if uids[1:] == (None, None) else cls(*uids, _folder(file))


_Numbered = tuple[int, Prediction]


def _summary(part: _Part, slices: Sequence[_Numbered], rule: Conformal | None) -> SeriesSummary:
    """Of the slices of a series, which its first part names, in the order of reading."""
    counts = Counts()
    for _, each in slices:
        counts.add(each)
    classified = [(number, each) for number, each in slices if each.status is Status.OK]
    seen = [each for _, each in classified]
    probability = [each.probability or 0 for each in seen]
    score, opacity = series_score(probability), Opacity.of(seen)
    axis: Axis = "order" if any(each.frame is None for each in seen) else "frame"
    axis = axis if any(each.position is None for each in seen) else "mm"
    highest = sorted(range(len(seen)), key=probability.__getitem__, reverse=True)
    carriers = highest[: min(_MOST_CARRIERS, slices_in_score(len(seen)))]
    curve = sorted((_place(axis, order, each), order) for order, each in enumerate(seen))
    return SeriesSummary(
        **part._asdict(),
        counts=counts,
        outside_lungs=sum(each.outside_lungs for _, each in slices),
        label=_label(score, opacity, seen, rule),
        series_score=score,
        interval=score_interval(probability),
        carriers=tuple(seen[order] for order in carriers),
        opacity=opacity,
        curve=Curve(
            axis,
            tuple(at for at, _ in curve),
            tuple(probability[order] for _, order in curve),
            tuple(str(seen[order].label) for _, order in curve),
        ),
        members=tuple(number for _, number in sorted((_place(axis, *each), each[0]) for each in slices)),
        classified=tuple(classified[order][0] for _, order in curve),
    )


def _place(axis: Axis, number: int, prediction: Prediction) -> float:
    """Of a slice on an axis; infinite where it is not known."""
    place = {"mm": prediction.position, "frame": prediction.frame, "order": number}[axis]
    return math.inf if place is None else place


class Totals:
    """Sums predictions up, those given and all that come; ``rule`` leads from a series score to a label."""

    def __init__(self, rule: Conformal | None = None, predictions: Iterable[Prediction] = ()) -> None:
        self.counts = Counts()
        self.outside_lungs = 0  # refused slices of another part of the body
        self.copies = 0  # of slices that were counted
        self._rule = rule
        self._parts: dict[_Part, list[_Numbered]] = {}
        self._images: dict[int, str] = {}  # the file of each DICOM image, about 150 bytes
        self._summaries: list[SeriesSummary] | None = None
        for prediction in predictions:
            self.add(prediction)

    def add(self, prediction: Prediction) -> Prediction:
        """Take one prediction in, and give what counts: for a copy of an earlier image, that it is one.

        Copies have one SOP Instance UID, place and outcome. What has the same UID and looks different is no copy:
        some anonymisers give all images one UID. Copies, and pictures that belong to no series, are counted only.
        """
        key = None if prediction.is_copy else _image(prediction)
        first = prediction.file if key is None else self._images.setdefault(key, prediction.file)
        if first is not prediction.file:
            reason = f"{COPY} of {first}, which counts: both have one SOP Instance UID"
            said: dict[str, Any] = dict.fromkeys(("probability", "label", "opacity", "lung_cm2", "evidence"))
            said |= {"prediction_set": (), "flags": (), "status": Status.REFUSED, "reason": reason}
            prediction = replace(prediction, **said)
        if prediction.is_copy:
            self.copies += 1
            return prediction
        number, self._summaries = self.counts.total + self.copies, None
        self.counts.add(prediction)
        self.outside_lungs += prediction.outside_lungs
        if (part := _Part.of(prediction)) is not None:
            self._parts.setdefault(part, []).append((number, replace(prediction, evidence=None, patient=None)))
        return prediction

    @property
    def in_words(self) -> str:
        """How many slices came out how."""
        return self.counts.in_words(self.outside_lungs, self.copies)

    @property
    def left_out(self) -> int:
        """Slices that should have been classified and were not.

        Those outside the lungs are no failure where the rest of their series was classified: every chest CT
        holds neck and abdomen.
        """
        expected = sum(each.outside_lungs for each in self.summaries() if each.counts.ok)
        return self.counts.refused + self.counts.failed - expected

    def summaries(self) -> list[SeriesSummary]:
        """The series and volumes, in the order in which they came."""
        if self._summaries is None:
            joined = self._joined()
            self._summaries = [_summary(part, sorted(slices), self._rule) for part, slices, _ in joined]
        return self._summaries

    def _joined(self) -> list[tuple[_Part, list[_Numbered], set[float]]]:
        """First part, slices, and places of the classified ones, of each series.

        Parts in several folders are one series where their UID can be one, unless they lie on each other: some
        anonymisers give all series one UID.
        """
        series: list[tuple[_Part, list[_Numbered], set[float]]] = []
        alike: dict[tuple[str | None, ...], list[tuple[_Part, list[_Numbered], set[float]]]] = {}
        for part, slices in self._parts.items():
            placed = (each.position for _, each in slices if each.status is Status.OK)
            at = {round(position, 2) for position in placed if position is not None}
            known = alike.setdefault(part[:3] if is_uid(part.series) else part, [])
            if (own := next((each for each in known if each[2].isdisjoint(at)), None)) is None:
                own = (part, [], set())
                known.append(own)
                series.append(own)
            own[1].extend(slices)
            own[2].update(at)
        return series


def _image(prediction: Prediction) -> int | None:
    """What an image is known again by; None where it has no SOP Instance UID, or nothing else is known of it."""
    if prediction.instance is None or (prediction.position is None and prediction.probability is None):
        return None
    names = ("study", "series", "stack", "instance", "slice_number", "frame", "position", "status", "reason")
    seen = tuple(getattr(prediction, name) for name in (*names, "opacity", "lung_cm2"))
    return hash((*seen, prediction.probability and round(prediction.probability, 6)))


def _folder(file: str) -> str:
    """The folder of a file, or that of a zip's member within the zip, or the zip itself."""
    archive, *member = split_member(file) or (file,)
    if not member:
        return str(PurePath(archive).parent)
    inner = member[0].rpartition("/")[0]
    return f"{archive}!{inner}" if inner else str(archive)
