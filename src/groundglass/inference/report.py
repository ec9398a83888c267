"""The HTML report of predictions: one file without a script, and the pictures that it shows."""

from __future__ import annotations

import hashlib
import heapq
import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np

from groundglass import __version__
from groundglass.files import atomic_path, counted, cut_middle, printable
from groundglass.inference.bundle import Bundle
from groundglass.inference.calibration import slices_in_score
from groundglass.inference.input_check import FLAGS
from groundglass.inference.prediction import Evidence, Prediction, Status
from groundglass.inference.series import SERIES_SCORE, Axis, Curve, SeriesSummary, Totals, place_on
from groundglass.inference.writers import file_errors, read_predictions
from groundglass.reporting.html import CITATION, NOTICE, environment
from groundglass.reporting.overlay import Layers, Picture, fit, grey_picture

SERIES, SLICES, CARRIERS = 200, 1000, 3
"""Most series on the page, most slices beside those that carry an answer, and how many of these each series shows."""

_REASONS, _EXAMPLES = 50, 3
_HEIGHT, _SMALL, _LONGEST_STEM = 320, 224, 60
_AXES: Mapping[Axis, tuple[str, str]] = {
    "mm": ("mm", "position towards the head, mm"),
    "frame": ("", "frame"),
    "order": ("", "slice, in the order of reading"),
}


def evidence_picture(evidence: Evidence) -> Picture:
    """A slice and beside it the same with lungs and lesions outlined, (H, W, 3): 320 pixels high, or less if wide."""
    grey, drawn = (fit(each, _HEIGHT) for each in (grey_picture(evidence.slice.pixels), evidence.picture()))
    return np.hstack([grey, np.full((len(grey), 6, 3), 255, np.uint8), drawn])


def picture_name(file: str, frame: int | None) -> str:
    """Name of a prediction's picture: follows from file and frame alone, and no two share one."""
    file = printable(file)
    key = f"{file}\0{frame}".encode()
    stem = re.sub(r"[^A-Za-z0-9._-]+", "_", Path(file.replace("!", "/")).stem)[:_LONGEST_STEM].lstrip("._-")
    parts = [stem or "slice", *([] if frame is None else [str(frame)]), hashlib.sha256(key).hexdigest()[:12]]
    return "-".join(parts) + ".svg"


def save_picture(evidence: Evidence, path: Path) -> None:
    """Write a slice with the outlines of its lungs and lesions as SVG, without any metadata."""
    seen, cropped = evidence.slice, evidence.cropped
    layers = Layers.of(seen.pixels, cropped.lungs, evidence.lesions(), seen.origin.spacing)
    with file_errors(path):
        path.write_text(layers.svg(), encoding="ascii")


def write_report(path: Path, predictions: Path, overlays: Path, bundle: Bundle, totals: Totals, command: str) -> None:
    """Write ``report.html`` of a file of JSON lines and the folder of its pictures, one of which is held at a time."""
    summaries, survey = totals.summaries(), _Survey(totals)
    for number, prediction in enumerate(read_predictions(predictions)):
        survey.add(number, prediction)
    room = SLICES // max(1, len(survey.groups))
    plans = {key: _Plan.of(each, room, thin=key is not None) for key, each in survey.groups.items()}
    wanted = {number for plan in plans.values() for number in (*plan.carriers, *plan.rest)}

    def layers(prediction: Prediction, *, small: bool) -> Layers | None:
        """A saved picture; None where it is missing or damaged."""
        try:
            name = picture_name(prediction.file, prediction.frame)
            found = Layers.read((overlays / name).read_text(encoding="ascii"))
            return found.small(_SMALL) if found and small else found
        except (OSError, ValueError):
            return None

    page = environment()
    page.filters |= {"minus": lambda text: text.replace("-", "−"), "place": _place, "middle": _shortened}
    parts = page.get_template("prediction.html.j2").stream(
        report={
            "title": f"Predictions in {counted(totals.counts.total, 'slice')}",
            "subtitle": f"{totals.in_words}. Model: {bundle.info.name}.",
            "warnings": _warnings(totals, survey.flags),
        },
        limits=bundle.info.calibration.uncertain,
        coverage=bundle.info.calibration.coverage,
        series=[_panel(key, summaries[key - 1], plans[key]) for key in sorted(filter(None, plans))],
        series_count=len(summaries),
        most=SERIES,
        score_meaning=SERIES_SCORE,
        loose=plans.get(None),
        refusals=[(*item, survey.examples[item[0]]) for item in survey.refusals.most_common(_REASONS)],
        said={number: each for number, each in enumerate(read_predictions(predictions)) if number in wanted},
        layers=layers,
        picture=lambda each: f"{overlays.name}/{picture_name(each.file, each.frame)}",
        bundle=bundle,
        written=f"{datetime.now(timezone.utc):%Y-%m-%d %H:%M} UTC",
        version=__version__,
        command=printable(command),
        citation=CITATION,
        notice=NOTICE,
    )
    parts.enable_buffering(8)
    with atomic_path(path) as temporary, temporary.open("w", encoding="utf-8") as stream:
        stream.writelines(parts)


class _Member(NamedTuple):
    """A slice of a series: its place, its number among the predictions, its probability."""

    at: float
    number: int
    probability: float | None


@dataclass(frozen=True)
class _Plan:
    """Which slices of a series are shown, by their number among the predictions."""

    carriers: Sequence[int]  # those that carry the answer, in large
    rest: Sequence[int]  # the others, along the body, or by falling probability where they form no series
    classified: Sequence[int]  # all that were classified, as they lie on the curve
    left_out: int  # how many are not shown

    @classmethod
    def of(cls, members: list[_Member], room: int, *, thin: bool) -> _Plan:
        ordered = sorted(members)
        classified = [each for each in ordered if each.probability is not None]
        carriers = heapq.nlargest(CARRIERS, classified, key=lambda each: each.probability or 0)
        rest = [each.number for each in ordered if each not in carriers]
        shown = rest[:: math.ceil(len(rest) / room) or 1] if thin else rest[:room]
        large, curve = ([each.number for each in chosen] for chosen in (carriers, classified))
        return cls(large, shown, curve, len(rest) - len(shown))


class _Survey:
    """What one reading of the predictions tells; ``groups`` by the number of the series, None for loose slices."""

    def __init__(self, totals: Totals) -> None:
        self.groups: dict[int | None, list[_Member]] = {}
        self.refusals: Counter[str] = Counter()
        self.examples: dict[str, list[Prediction]] = {}
        self.flags: Counter[str] = Counter()
        self._totals = totals
        answered = [(number, each) for number, each in enumerate(totals.summaries(), 1) if each.counts.ok]
        self._axes = {number: each.curve.axis for number, each in answered[:SERIES]}

    def add(self, number: int, prediction: Prediction) -> None:
        self.flags.update(prediction.flags)
        if prediction.status is not Status.OK:
            reason = re.sub(r" \([^)]*\d[^)]*\)", "", prediction.reason or "no reason given")
            self.refusals[reason] += 1
            examples = self.examples.setdefault(reason, [])
            examples += [prediction] * (len(examples) < _EXAMPLES)
        if prediction.status is Status.FAILED or prediction.is_copy:
            return
        series, probability = self._totals.number(prediction), prediction.probability
        if series is None or series in self._axes:
            at = math.inf if probability is None else -probability
            at = at if series is None else place_on(self._axes[series], prediction, number)
            self.groups.setdefault(series, []).append(_Member(at, number, probability))


def _panel(number: int, summary: SeriesSummary, plan: _Plan) -> dict[str, Any]:
    """One series on the page: its number from 1, what is said of it, what is shown, and its curve."""
    shown = {*plan.carriers, *plan.rest}
    drawing = _draw(summary.curve, [each if each in shown else None for each in plan.classified])
    answers = list(_answers(summary))
    return {"number": number, "summary": summary, "answers": answers, "plan": plan, "drawing": drawing}


def _answers(summary: SeriesSummary) -> Iterator[tuple[str, str, str]]:
    """What stands in large print: what it is, its value, and what it rests on."""
    if summary.label is not None:
        yield "Label", summary.label, "of the series, by its score; no diagnosis"
    if summary.series_score is not None:
        used = slices_in_score(summary.counts.ok)
        words = "that slice's probability" if used == 1 else f"mean of the {used} highest probabilities"
        if summary.interval is not None:
            words += "; {:.3f}–{:.3f} when slices are drawn again".format(*summary.interval)
        yield "Series score", f"{summary.series_score:.3f}", words
    if summary.opacity is not None:
        percent, lesion, lung = summary.opacity.percent, summary.opacity.lesion_ml, summary.opacity.lung_ml
        volume = "share of the lungs that is lesion" if lung is None else f"{lesion:,.0f} of {lung:,.0f} ml"
        yield "Lung opacity", f"{percent:.1f} %", volume


def _place(prediction: Prediction) -> str:
    """Where a slice lies in its series: ``−12.5 mm``, ``frame 3``, or nothing."""
    if prediction.position is not None:
        return f"{round(prediction.position, 1) + 0.0:.1f} mm".replace("-", "−")
    return "" if prediction.frame is None else f"frame {prediction.frame}"


def _shortened(file: str, width: int = 40) -> str:
    """A name of a file without its folders, shortened in the middle."""
    return cut_middle(PurePosixPath(file.replace("\\", "/").replace("!", "/")).name or file, width)


def _warnings(totals: Totals, flags: Counter[str]) -> Iterator[str]:
    if totals.counts.ok == 0:
        yield "No slice could be classified."
    if totals.counts.failed:
        failed = counted(totals.counts.failed, "file")
        yield f"{failed} could not be read; the slices in them are missing here."
    for flag, count in sorted(flags.items()):
        meaning = f": {FLAGS[flag]}" if flag in FLAGS else ""
        yield f"{counted(count, 'slice')} {'is' if count == 1 else 'are'} flagged {flag}{meaning}."


class _Point(NamedTuple):
    """A slice on a curve: its place, its label, what it says, and the slice that it leads to."""

    x: float
    y: float
    label: str
    words: str
    link: int | None


class _Drawing(NamedTuple):
    """A curve on a drawing of 512 x 220: its slices, ticks, axis, and what it shows in words."""

    points: Sequence[_Point]
    ticks: Sequence[tuple[float, str]]
    axis: str
    words: str


def _draw(curve: Curve, links: Sequence[int | None]) -> _Drawing | None:
    """None where one slice is all."""
    if len(curve.at) < 2:
        return None
    first, span = curve.at[0], (curve.at[-1] - curve.at[0]) or 1.0
    unit, axis = _AXES[curve.axis]

    def x(value: float) -> float:
        return 44 + 452 * (value - first) / span

    at = [f"{round(value, 1) + 0.0:g} {unit}".strip() for value in curve.at]
    points = [
        _Point(x(value), 168 - 156 * height, label, f"{named}: {height:.3f}, {label}", link)
        for value, named, height, label, link in zip(curve.at, at, curve.probability, curve.label, links, strict=True)
    ]
    highest = max(curve.probability)
    words = (
        f"Probability of COVID in {len(points)} slices: highest {highest:.3f} at "
        f"{at[curve.probability.index(highest)]}, lowest {min(curve.probability):.3f}."
    )
    step = float(f"{span / 6:.0e}")  # one digit, so about six ticks
    start, end = math.ceil(first / step - 1e-9), math.floor((first + span) / step + 1e-9)
    ticks = [round(index * step, 6) for index in range(start, end + 1)]
    return _Drawing(points, [(x(value), f"{value + 0.0:g}") for value in ticks], axis, words)
