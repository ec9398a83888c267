"""The HTML report of predictions: one file without a script, and the pictures that it shows."""

from __future__ import annotations

import hashlib
import heapq
import math
import re
from collections import Counter
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np

from groundglass import __version__
from groundglass.files import atomic_path, counted, cut_middle, printable
from groundglass.inference.bundle import Bundle
from groundglass.inference.calibration import slices_in_score
from groundglass.inference.input_check import FLAGS
from groundglass.inference.prediction import COPY, Evidence, Prediction, Status
from groundglass.inference.series import SERIES_SCORE, Axis, Curve, SeriesSummary, Totals
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


def picture_stem(file: str, frame: int | None) -> str:
    """Name of a prediction's pictures without suffix: follows from file and frame alone, and no two share one."""
    file = printable(file)
    key = f"{file}\0{frame}".encode()
    stem = re.sub(r"[^A-Za-z0-9._-]+", "_", Path(file.replace("!", "/")).stem)[:_LONGEST_STEM].lstrip("._-")
    parts = [stem or "slice", *([] if frame is None else [str(frame)]), hashlib.sha256(key).hexdigest()[:12]]
    return "-".join(parts)


def save_picture(evidence: Evidence, path: Path) -> None:
    """Write a slice with the outlines of its lungs and lesions as SVG, without any metadata."""
    seen, cropped = evidence.slice, evidence.cropped
    layers = Layers.of(seen.pixels, cropped.lungs, evidence.lesions(), seen.origin.spacing)
    with file_errors(path):
        path.write_text(layers.svg(), encoding="ascii")


def write_report(path: Path, predictions: Path, overlays: Path, bundle: Bundle, totals: Totals, command: str) -> None:
    """Write ``report.html`` of a file of JSON lines and the folder of its pictures, one of which is held at a time."""
    summaries = totals.summaries()
    survey = _Survey(read_predictions(predictions), {number for each in summaries for number in each.members})
    answered = [(number, each) for number, each in enumerate(summaries, 1) if each.counts.ok][:SERIES]
    room = SLICES // max(1, len(answered) + bool(survey.loose))
    plans = [_of_series(each, room) for _, each in answered]
    loose = survey.loose_plan(room)
    wanted = {number for plan in (*plans, loose) for number in (*plan.carriers, *plan.rest)}

    def layers(prediction: Prediction, *, small: bool) -> Layers | None:
        """A saved picture; None where it is missing or damaged."""
        try:
            picture = overlays / f"{picture_stem(prediction.file, prediction.frame)}.svg"
            found = Layers.read(picture.read_text(encoding="ascii"))
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
        series=[_panel(*each, plan) for each, plan in zip(answered, plans, strict=True)],
        series_count=len(summaries),
        most=SERIES,
        score_meaning=SERIES_SCORE,
        loose=loose if survey.loose else None,
        refusals=[(*item, survey.examples[item[0]]) for item in survey.refusals.most_common(_REASONS)],
        said={number: each for number, each in enumerate(read_predictions(predictions)) if number in wanted},
        layers=layers,
        bundle=bundle,
        written=f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
        version=__version__,
        command=printable(command),
        citation=CITATION,
        notice=NOTICE,
    )
    parts.enable_buffering(8)
    with atomic_path(path) as temporary, temporary.open("w", encoding="utf-8") as stream:
        stream.writelines(parts)


class _Plan(NamedTuple):
    """Which slices are shown of a series, or of those that form none, by their number among the predictions."""

    carriers: Sequence[int]  # those that carry the answer, in large
    rest: Sequence[int]  # the others, along the body, or by falling probability where they form no series
    left_out: int  # how many are not shown


def _of_series(summary: SeriesSummary, room: int) -> _Plan:
    """Of as many slices beside the carriers as find room, evenly spaced."""
    ranked = heapq.nlargest(CARRIERS, range(len(summary.classified)), key=summary.curve.probability.__getitem__)
    carriers = [summary.classified[place] for place in ranked]
    rest = [number for number in summary.members if number not in carriers]
    shown = rest[:: math.ceil(len(rest) / room) or 1]
    return _Plan(carriers, shown, len(rest) - len(shown))


class _Survey:
    """What one reading of the predictions tells; ``in_series`` are the numbers of those that belong to a series."""

    def __init__(self, predictions: Iterable[Prediction], in_series: Container[int]) -> None:
        self.flags: Counter[str] = Counter()
        self.refusals: Counter[str] = Counter()
        self.examples: dict[str, list[Prediction]] = {}
        self.loose: list[tuple[float, int]] = []  # of those in no series the negative probability, and the number
        for number, prediction in enumerate(predictions):
            self.flags.update(prediction.flags)
            if prediction.status is not Status.OK:
                said = COPY if prediction.is_copy else prediction.reason or "no reason given"
                reason = re.sub(r" \([^()\d]*\d[^()]*\)", "", said)
                self.refusals[reason] += 1
                examples = self.examples.setdefault(reason, [])
                examples += [prediction] * (len(examples) < _EXAMPLES)
            if number not in in_series and prediction.status is not Status.FAILED and not prediction.is_copy:
                self.loose.append((math.inf if prediction.probability is None else -prediction.probability, number))

    def loose_plan(self, room: int) -> _Plan:
        """Of slices in no series by falling probability."""
        ordered = sorted(self.loose)
        carriers = [number for place, number in ordered[:CARRIERS] if place < math.inf]
        rest = [number for _, number in ordered[len(carriers) :]]
        return _Plan(carriers, rest[:room], len(rest[room:]))


def _panel(number: int, summary: SeriesSummary, plan: _Plan) -> dict[str, Any]:
    """One series on the page: its number from 1, what is said of it, what is shown, and its curve."""
    shown = {*plan.carriers, *plan.rest}
    drawing = _draw(summary.curve, [each if each in shown else None for each in summary.classified])
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
        share = "share of the lungs that is lesion"
        volume = share if lung is None else f"{lesion:,.0f} of {lung:,.0f} ml in the slices classified"
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


def _draw(curve: Curve, links: Sequence[int | None]) -> dict[str, Any] | None:
    """A curve on a drawing of 512 x 220: its points, ticks, axis, and what it shows in words; None for a single slice.

    Of each slice ``links`` has the number of the picture to which its point leads, or None.
    """
    if len(curve.at) < 2:
        return None
    first, span = curve.at[0], (curve.at[-1] - curve.at[0]) or 1.0
    unit, axis = _AXES[curve.axis]

    def x(value: float) -> float:
        return 44 + 452 * (value - first) / span

    at = [f"{round(value, 1) + 0.0:g} {unit}".strip() for value in curve.at]
    slices = zip(curve.at, at, curve.probability, curve.label, links, strict=True)
    points = [
        {"x": x(value), "y": 168 - 156 * share, "label": label, "words": f"{place}: {share:.3f}, {label}", "link": link}
        for value, place, share, label, link in slices
    ]
    highest = max(curve.probability)
    words = (
        f"Probability of COVID in {len(points)} slices: highest {highest:.3f} at "
        f"{at[curve.probability.index(highest)]}, lowest {min(curve.probability):.3f}."
    )
    step = float(f"{span / 6:.0e}") or span  # one digit, so about six ticks
    start, end = math.ceil(first / step - 1e-9), math.floor((first + span) / step + 1e-9)
    values = [round(index * step, 6) for index in range(start, end + 1)]
    ticks = [(x(value), f"{value + 0.0:g}") for value in values]
    return {"points": points, "ticks": ticks, "axis": axis, "words": words}
