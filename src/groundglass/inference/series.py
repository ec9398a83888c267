"""What the predictions of a series say together: counts, a curve along the body axis, a series score."""

from __future__ import annotations

import heapq
import math
import sys
from array import array
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from html import escape
from itertools import pairwise
from operator import itemgetter
from pathlib import PurePath
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np

from groundglass.files import printable
from groundglass.imaging.slice import is_uid
from groundglass.inference.calibration import MUCH_OPACITY, Conformal
from groundglass.inference.prediction import COVID, NON_COVID, UNCERTAIN, Prediction, Status, frame_of

if TYPE_CHECKING:
    import pandas as pd

Axis = Literal["mm", "frame", "order"]
"""What a curve runs along: position towards the head in mm, index in a file, or order of reading."""

SERIES_SCORE = (
    "Mean of the highest fifth of the calibrated probabilities of COVID among the series' classified slices, "
    "at least three of them, or all where there are fewer. It orders series; it is no diagnosis and no "
    "probability of disease."
)

_SHARE, _LEAST = 0.2, 3
_RESAMPLES, _MOST_CARRIERS = 500, 10
_MEMBER = ".zip!"
_LABELS = {COVID: "covid", NON_COVID: "non_covid", UNCERTAIN: "uncertain"}


def series_score(probabilities: Sequence[float]) -> float | None:
    """The score of a series, see :data:`SERIES_SCORE`; None where no slice was classified.

    Lesions fill a part of the lung only: the mean over all slices would drown them, the maximum would hang on
    a single one.
    """
    if not probabilities:
        return None
    highest = sorted(probabilities, reverse=True)[: slices_in_score(len(probabilities))]
    return math.fsum(highest) / len(highest)


def slices_in_score(count: int) -> int:
    """How many of so many classified slices a series score is the mean of."""
    return min(count, max(_LEAST, math.ceil(_SHARE * count)))


class _Key(NamedTuple):
    """What a series is known by; slices without UID also by their folder."""

    study: str | None
    series: str | None
    stack: str | None


_Part = tuple[_Key, str]
"""Key and place of what lies in one folder."""


def score_interval(probabilities: Sequence[float]) -> tuple[float, float] | None:
    """Where 95 % of the scores lie when the slices are drawn again with replacement; None for a single slice.

    It tells how much hangs on single slices. Neighbours look alike, so another scan would vary more.
    """
    count = len(probabilities)
    if count < 2:
        return None
    values, rng = np.sort(probabilities), np.random.default_rng(0)
    highest = slices_in_score(count)
    scores = [
        # Positions in the sorted values, so that a partial sort of integers does.
        values[np.partition(rng.integers(count, size=count), count - highest)[count - highest :]].mean()
        for _ in range(_RESAMPLES)
    ]
    low, high = np.percentile(scores, (2.5, 97.5))
    return float(low), float(high)


def series_label(score: float | None, opacity: Opacity | None, rule: Conformal | None) -> str | None:
    """The label of a series; ``uncertain`` for NonCOVID in lungs as opaque as makes a slice uncertain."""
    if score is None or rule is None:
        return None
    label = rule.label(rule.prediction_set(score))
    much = opacity is not None and opacity.percent > MUCH_OPACITY
    return UNCERTAIN if label == NON_COVID and much else label


@dataclass
class Counts:
    """How many slices came out how.

    Attributes:
        ok: classified.
        refused: not an axial lung CT slice.
        failed: could not be read.
        covid: classified, labelled COVID.
        non_covid: classified, labelled NonCOVID.
        uncertain: classified, labelled neither.
    """

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
        names = [prediction.status.value]
        if prediction.status is Status.OK and prediction.label in _LABELS:
            names.append(_LABELS[prediction.label])
        for name in names:
            setattr(self, name, getattr(self, name) + 1)

    def in_words(self, outside_lungs: int = 0, copies: int = 0) -> str:
        """Such as ``25 slices: 20 classified (1 COVID, 16 NonCOVID, 3 uncertain), 4 outside the lungs, 1 failed``.

        Args:
            outside_lungs: how many of the refused slices show another part of the body.
            copies: of slices that were counted, beside them.
        """
        labels = f"{self.covid:,} COVID, {self.non_covid:,} NonCOVID, {self.uncertain:,} uncertain"
        parts = [f"{self.ok:,} classified" + f" ({labels})" * (self.ok > 0)]
        refused = self.refused - outside_lungs
        others = {"outside the lungs": outside_lungs, "refused": refused, "failed": self.failed}
        parts += [f"{count:,} {name}" for name, count in others.items() if count]
        more = f"; {copies:,} {'copies' if copies > 1 else 'copy'} of these left out" if copies else ""
        return f"{self.total:,} slice{'s' * (self.total != 1)}: {', '.join(parts)}{more}"


@dataclass(frozen=True)
class Curve:
    """Probability along a series, from the feet to the head where positions are known.

    Attributes:
        axis: what ``at`` is.
        at: of each classified slice, not falling.
        probability: of COVID, calibrated.
        label: of each slice.
    """

    axis: Axis
    at: tuple[float, ...]
    probability: tuple[float, ...]
    label: tuple[str, ...]


@dataclass(frozen=True)
class Opacity:
    """How much of a series' lungs is lesion.

    Attributes:
        percent: of the lungs in all classified slices together; their mean where the spacing is not known.
        lung_ml: volume of the lungs in the classified slices, in ml; None where spacing or positions are not known.
        lesion_ml: volume of the lesions in ml, or None.
    """

    percent: float
    lung_ml: float | None = None
    lesion_ml: float | None = None

    @classmethod
    def of(
        cls, percent: Sequence[float], lung_cm2: Sequence[float], position: Sequence[float]
    ) -> Opacity | None:
        """That of slices with these opacities, areas and positions in mm, NaN where one is not known."""
        known = [number for number, value in enumerate(percent) if not math.isnan(value)]
        if not known:
            return None
        area = [lung_cm2[number] for number in known]
        if any(map(math.isnan, area)) or not sum(area):
            return cls(round(math.fsum(percent[number] for number in known) / len(known), 2))
        lesion = math.fsum(percent[number] / 100 * lung_cm2[number] for number in known)
        share = round(100 * lesion / math.fsum(area), 2)
        at = sorted({position[number] for number in known})
        if any(map(math.isnan, at)) or len(at) < 2:
            return cls(share)
        # The median gap, so that a slice that was left out does not count twice.
        gap = sorted(second - first for first, second in pairwise(at))[(len(at) - 1) // 2] / 10
        return cls(share, round(math.fsum(area) * gap, 1), round(lesion * gap, 1))

    @property
    def in_words(self) -> str:
        """Such as ``lung opacity 12.3 %, 410 of 3,330 ml``."""
        volume = "" if self.lung_ml is None else f", {self.lesion_ml:,.0f} of {self.lung_ml:,.0f} ml"
        return f"lung opacity {self.percent:.1f} %{volume}"


@dataclass(frozen=True)
class Carrier:
    """A slice that the score of its series rests on.

    Attributes:
        file: as in its prediction.
        frame: index in the file, or None.
        position: towards the head in mm, or None.
        probability: of COVID, calibrated.
    """

    file: str
    frame: int | None
    position: float | None
    probability: float


@dataclass(frozen=True)
class SeriesSummary:
    """What is said of one series or volume.

    Attributes:
        study: DICOM Study Instance UID, or None.
        series: DICOM Series Instance UID, or None for what has none.
        stack: see :class:`groundglass.inference.prediction.Prediction`.
        place: the first folder that its files lie in, or the file that holds it.
        counts: of its slices; files of the folder that could not be read count as failed where nothing else
            lies in that folder.
        outside_lungs: how many of the refused slices show another part of the body.
        label: COVID, NonCOVID or ``uncertain`` by the bundle's rule on the score, no diagnosis; None where nothing
            was classified or the bundle has no rule.
        series_score: see :data:`SERIES_SCORE`.
        interval: see :func:`score_interval`.
        carriers: the slices of the highest probability that are in the score, at most ten.
        opacity: see :class:`Opacity`; None where no slice has one.
        curve: of the classified slices.
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
    carriers: tuple[Carrier, ...]
    opacity: Opacity | None
    curve: Curve

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
        counts, curve = self.counts, asdict(self.curve)
        return {
            "study": self.study,
            "series": self.series,
            "stack": self.stack,
            "place": self.place,
            "slices": counts.total,
            "classified": counts.ok,
            "refused": counts.refused,
            "failed": counts.failed,
            "positive": counts.covid,
            "negative": counts.non_covid,
            "uncertain": counts.uncertain,
            "label": self.label,
            "series_score": self.series_score,
            "interval": self.interval and list(self.interval),
            "carriers": [asdict(each) for each in self.carriers],
            "slices_in_score": slices_in_score(counts.ok),
            "opacity": None if self.opacity is None else asdict(self.opacity),
            "curve": {key: list(each) if isinstance(each, tuple) else each for key, each in curve.items()},
        }

    def to_frame(self) -> pd.DataFrame:
        """The curve as a pandas table: ``at``, ``probability`` and ``label`` of each classified slice.

        Raises:
            PredictionError: pandas is not installed.
        """
        return frame_of(self.to_dict()["curve"])

    def _repr_html_(self) -> str:
        score = "" if self.series_score is None else f", series score {self.series_score:.3f} (no diagnosis)"
        opacity = "" if self.opacity is None else f", {self.opacity.in_words}"
        answer = f"<b>{self.label or 'no label'}</b>{score}{opacity}"
        return f"<p>{escape(self.name)}: {answer}<br>{escape(self.in_words)}</p>"


@dataclass
class _Series:
    """A series as it comes, of one folder; a few bytes a slice."""

    key: _Key
    place: str
    counts: Counts = field(default_factory=Counts)
    outside_lungs: int = 0
    position: array[float] = field(default_factory=lambda: array("d"))
    frame: array[float] = field(default_factory=lambda: array("d"))
    probability: array[float] = field(default_factory=lambda: array("d"))
    opacity: array[float] = field(default_factory=lambda: array("d"))
    lung_cm2: array[float] = field(default_factory=lambda: array("d"))
    label: list[str] = field(default_factory=list)
    highest: list[tuple[float, int, Carrier]] = field(default_factory=list)  # a heap

    def add(self, prediction: Prediction) -> None:
        self.counts.add(prediction)
        self.outside_lungs += prediction.outside_lungs
        if prediction.status is Status.OK and prediction.probability is not None:
            for name in ("position", "frame", "opacity", "lung_cm2"):
                value = getattr(prediction, name)
                getattr(self, name).append(math.nan if value is None else value)
            self.probability.append(prediction.probability)
            self.label.append(sys.intern(str(prediction.label)))  # one text for all slices
            carrier = Carrier(
                printable(prediction.file), prediction.frame, prediction.position, prediction.probability
            )
            entry = (prediction.probability, -len(self.label), carrier)
            (heapq.heappush if len(self.highest) < _MOST_CARRIERS else heapq.heappushpop)(self.highest, entry)

    def summary(self, failed: int, rule: Conformal | None) -> SeriesSummary:
        score = series_score(self.probability)
        opacity = Opacity.of(self.opacity, self.lung_cm2, self.position)
        carriers = [entry[2] for entry in sorted(self.highest, key=itemgetter(0, 1), reverse=True)]
        return SeriesSummary(
            **self.key._asdict(),
            place=self.place,
            counts=replace(self.counts, failed=self.counts.failed + failed),
            outside_lungs=self.outside_lungs,
            label=series_label(score, opacity, rule),
            series_score=score,
            interval=score_interval(self.probability),
            carriers=tuple(carriers[: min(_MOST_CARRIERS, slices_in_score(len(self.probability)))]),
            opacity=opacity,
            curve=self._curve(),
        )

    @classmethod
    def joined(cls, parts: Sequence[_Series]) -> _Series:
        """Parts of one series as a whole; at least one."""
        if len(parts) == 1:
            return parts[0]
        whole = cls(parts[0].key, parts[0].place)
        for part in parts:
            whole.outside_lungs += part.outside_lungs
            for name, count in asdict(part.counts).items():
                setattr(whole.counts, name, getattr(whole.counts, name) + count)
            for column in fields(cls):
                if isinstance(values := getattr(whole, column.name), array | list):
                    values.extend(getattr(part, column.name))
        return whole

    def _curve(self) -> Curve:
        axis: Axis = "order"
        along: Sequence[float] = range(len(self.probability))
        if not any(map(math.isnan, self.position)):
            axis, along = "mm", self.position
        elif not any(map(math.isnan, self.frame)):
            axis, along = "frame", self.frame
        order = sorted(range(len(along)), key=along.__getitem__)
        at, probability = (tuple(values[index] for index in order) for values in (along, self.probability))
        return Curve(axis, at, probability, tuple(self.label[index] for index in order))


class Totals:
    """Sums predictions up as they come.

    Args:
        rule: from a series score to a label.

    Attributes:
        counts: over all predictions.
        outside_lungs: refused slices of another part of the body.
        copies: of slices that were counted.
    """

    def __init__(self, rule: Conformal | None = None) -> None:
        self.counts = Counts()
        self._rule = rule
        self.outside_lungs = self.copies = 0
        self._series: dict[_Part, _Series] = {}
        self._whole: tuple[list[_Series], dict[_Part, int]] | None = None
        self._by_place: dict[str, set[_Part]] = {}
        self._loose: set[str] = set()
        self._failed: list[str] = []

    def add(self, prediction: Prediction) -> None:
        """Take one prediction in; pictures that belong to no series and copies are counted only."""
        if prediction.is_copy:
            self.copies += 1
            return
        self.counts.add(prediction)
        self.outside_lungs += prediction.outside_lungs
        part, file = _part(prediction), printable(prediction.file)
        if part is not None:
            key, place = part
            self._series.setdefault(part, _Series(key, place)).add(prediction)
            self._whole = None
            for known in {place, file} if prediction.frame is not None else {place}:
                self._by_place.setdefault(known, set()).add(part)
        elif prediction.status is Status.FAILED:
            self._failed.append(file)
        else:
            self._loose.add(_folder(file))

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
        expected = sum(each.outside_lungs for each in self._joined()[0] if each.counts.ok)
        return self.counts.refused + self.counts.failed - expected

    def number(self, prediction: Prediction) -> int | None:
        """The number from 1 of a prediction's series among :meth:`summaries`, None where it has none."""
        part = None if prediction.is_copy else _part(prediction)
        return None if part is None else self._joined()[1].get(part)

    def summaries(self) -> list[SeriesSummary]:
        """The series and volumes, in the order in which they came."""
        whole, numbers = self._joined()
        failed = Counter(numbers.get(part) for part in map(self._owner, self._failed) if part)
        return [series.summary(failed[number], self._rule) for number, series in enumerate(whole, 1)]

    def _joined(self) -> tuple[list[_Series], dict[_Part, int]]:
        """The series, and the number of the one that each part belongs to.

        Parts in several folders are one series where their UID can be one, unless they lie on each other: some
        anonymisers give all series one UID.
        """
        if self._whole is None:
            parts: list[list[_Series]] = []
            places: list[set[float]] = []
            numbers: dict[_Part, int] = {}
            known: dict[_Key, list[int]] = {}
            for part, series in self._series.items():
                at = {round(place, 2) for place in series.position}
                alike = known.setdefault(series.key, []) if is_uid(series.key.series) else []
                index = next((index for index in alike if places[index].isdisjoint(at)), len(parts))
                if index == len(parts):
                    alike.append(index)
                    parts.append([])
                    places.append(set())
                parts[index].append(series)
                places[index] |= at
                numbers[part] = index + 1
            self._whole = [_Series.joined(each) for each in parts], numbers
        return self._whole

    def _owner(self, file: str) -> _Part | None:
        """The one series that a file which could not be read must belong to, or None."""
        own, folder = self._by_place.get(file), _folder(file)
        parts = own if own is not None else self._by_place.get(folder, set())
        if len(parts) != 1 or (own is None and folder in self._loose):
            return None
        return next(iter(parts))


def _part(prediction: Prediction) -> _Part | None:
    """What the part of a series that lies in one folder is known by; a file of several slices without UID is one."""
    file, key = printable(prediction.file), _Key(prediction.study, prediction.series, prediction.stack)
    if prediction.series is None and prediction.frame is not None:
        return key, file
    return None if prediction.series is None and prediction.stack is None else (key, _folder(file))


def _folder(file: str) -> str:
    """The folder of a file, or that of a zip's member within the zip, or the zip itself."""
    end = file.lower().find(_MEMBER)
    if end < 0:
        return str(PurePath(file).parent)
    archive, member = file[: end + len(_MEMBER) - 1], file[end + len(_MEMBER) :]
    inner = member.rpartition("/")[0]
    return f"{archive}!{inner}" if inner else archive
