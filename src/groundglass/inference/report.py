"""The HTML report of predictions: one file, its only script named by its hash, and the pictures it shows."""

from __future__ import annotations

import base64
import hashlib
import heapq
import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from importlib.resources import files
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from markupsafe import Markup

from groundglass import __version__
from groundglass.files import atomic_path, counted, printable
from groundglass.inference.bundle import Bundle
from groundglass.inference.input_check import FLAGS
from groundglass.inference.prediction import COVID, NON_COVID, Evidence, Prediction, Status
from groundglass.inference.series import (
    SERIES_SCORE,
    Axis,
    Counts,
    Curve,
    SeriesSummary,
    Totals,
    slices_in_score,
)
from groundglass.inference.writers import file_errors, read_predictions
from groundglass.reporting.html import NOTICE, environment
from groundglass.reporting.overlay import Picture, fit, grey_picture, outlined_slice, overlay, side_by_side

GALLERY, UNCLASSIFIED = 1000, 100
"""Most slices shown, and how many of these may be refused and failed ones where there are more in all."""

PANELS = 200
"""Most series shown."""

_DATA_NOTICE = (
    "The slices belong to their patients and publishers; the paths of files may name them. Look through this "
    "page before you pass it on."
)
_HEIGHT = 320
_SMALL_WIDTH, _QUALITY = 420, 80
_LONGEST_STEM = 60
_AXES: Mapping[Axis, tuple[str, str]] = {
    "mm": ("mm", "position towards the head, mm"),
    "frame": ("", "frame"),
    "order": ("", "slice, in the order of reading"),
}
# Size and margins of a curve's drawing; with more slices than _MARKED their markers would cover each other.
_CURVE_WIDTH, _CURVE_HEIGHT = 640, 200
_LEFT, _RIGHT, _TOP, _BOTTOM, _INSET = 40, 14, 12, 46, 8
_MARKED = 300


def evidence_picture(evidence: Evidence) -> Picture:
    """A slice and, where it was classified, its cropped slice under the activation map; 320 pixels high.

    Returns:
        Shape (320, W, 3).
    """
    pixels, cropped = evidence.slice.pixels, evidence.cropped
    side = min(round(_HEIGHT * max(pixels.shape) / pixels.shape[0]), 2 * _HEIGHT)
    whole = outlined_slice(pixels, cropped.lungs, cropped.box, side)
    # Black above and below: what is very wide is not enlarged.
    missing = max(_HEIGHT - whole.shape[0], 0)
    whole = np.pad(whole, ((missing // 2, missing - missing // 2), (0, 0), (0, 0)))
    shown = fit(cropped.pixels, _HEIGHT)
    inner = (
        grey_picture(shown) if evidence.activation_map is None else overlay(shown, evidence.activation_map)
    )
    return side_by_side([whole, inner], _HEIGHT)


def picture_name(file: str, frame: int | None) -> str:
    """Name of a prediction's picture: follows from file and frame alone, and no two share one."""
    key = f"{printable(file)}\0{frame}".encode()
    stem = re.sub(r"[^A-Za-z0-9._-]+", "_", Path(file.replace("!", "/")).stem)[:_LONGEST_STEM].lstrip("._-")
    parts = [stem or "slice", *([] if frame is None else [str(frame)]), hashlib.sha256(key).hexdigest()[:12]]
    return "-".join(parts) + ".png"


def save_picture(picture: Picture, path: Path) -> None:
    """Write a picture as PNG without any metadata."""
    # Level 1 is 4 times as fast as the default, and the files are a tenth larger.
    colours = cv2.cvtColor(picture, cv2.COLOR_RGB2BGR)
    _, content = cv2.imencode(".png", colours, [cv2.IMWRITE_PNG_COMPRESSION, 1])
    with file_errors(path):
        path.write_bytes(content.tobytes())


def write_report(
    path: Path, predictions: Path, overlays: Path, bundle: Bundle, totals: Totals, command: str
) -> None:
    """Write ``report.html``, holding a few slices of it at a time.

    Args:
        path: of the page.
        predictions: JSON lines.
        overlays: folder of the predictions' pictures.
        bundle: that made them.
        totals: what all predictions say together.
        command: as it was given.
    """
    choice = _choose(predictions, totals.counts)
    summaries = totals.summaries()
    script = (files("groundglass.reporting") / "templates" / "gallery.js").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode("ascii")
    report = {
        "title": f"Predictions in {totals.counts.total:,} slice{'s' * (totals.counts.total != 1)}",
        "subtitle": f"{totals.in_words}. Model: {bundle.info.name}.",
        "warnings": _warnings(totals.counts, choice.flags),
        "tiles": _tiles(totals),
        "label_note": _label_note(bundle),
        "series": [_Panel(summary) for summary in summaries[:PANELS]],
        "series_note": _series_note(len(summaries)),
        "slices": _cards(predictions, overlays, choice, totals),
        "slices_note": f"{choice.words} Pictures open in full size from the folder {overlays.name} beside this "
        "page. Colours are scaled to the strongest place of each slice; they do not compare between slices.",
        "facts": _facts(bundle),
        "command": printable(command),
    }
    parts = (
        environment()
        .get_template("prediction.html.j2")
        .stream(
            report=report,
            notice=NOTICE,
            data_notice=_DATA_NOTICE,
            script=Markup(script),  # noqa: S704 - own script
            digest=Markup(digest),  # noqa: S704 - own hash
        )
    )
    parts.enable_buffering(64)
    with atomic_path(path) as temporary, temporary.open("w", encoding="utf-8") as stream:
        stream.writelines(parts)


@dataclass(frozen=True)
class _Choice:
    """Which predictions the gallery shows, by their number; None for all."""

    numbers: frozenset[int] | None
    words: str
    flags: Counter[str]


@dataclass(frozen=True)
class _Panel:
    """One series."""

    summary: SeriesSummary

    @property
    def identity(self) -> str:
        """What distinguishes the series from others of the same title."""
        place, uid = self.summary.place, self.summary.series
        return place if uid is None else f"{place}, series {uid}"

    @property
    def score_note(self) -> str:
        used = slices_in_score(self.summary.counts.ok)
        if used < 2:
            return "that slice's probability" if used else "no slice was classified"
        return f"mean of the {used} highest probabilities"

    @property
    def curve_words(self) -> str:
        """What the curve shows, for everybody, screen readers included."""
        curve = self.summary.curve
        peak = max(range(len(curve.at)), key=curve.probability.__getitem__)
        where = _number(round(curve.at[peak], 1), _AXES[curve.axis][0])
        return (
            f"Probability of COVID in {len(curve.at)} slices: highest {curve.probability[peak]:.3f} at {where}, "
            f"lowest {min(curve.probability):.3f}."
        )

    @property
    def svg(self) -> Markup | None:
        """The curve in the colours of the page; None where one slice is all."""
        drawn = self.summary.curve if len(self.summary.curve.at) > 1 else None
        return None if drawn is None else Markup("".join(_draw(drawn)))  # noqa: S704 - numbers, constants


@dataclass(frozen=True)
class _Card:
    """One slice of the gallery.

    Attributes:
        order: its number in the order of the predictions.
        prediction: what is said of it.
        series: number of its series in the report, or None.
        picture: data URI, or None.
        link: relative address of the picture in full size, or None.
    """

    order: int
    prediction: Prediction
    series: int | None
    picture: str | None
    link: str | None

    @property
    def name(self) -> str:
        """The last part of the path."""
        return self.prediction.file.replace("\\", "/").rpartition("/")[2] or self.prediction.file

    @property
    def place(self) -> str:
        """What stands before the name."""
        return self.prediction.file[: len(self.prediction.file) - len(self.name)]

    @property
    def where(self) -> str:
        """Frame and position in words; empty where the file tells neither."""
        frame, position = self.prediction.frame, self.prediction.position
        parts = [] if frame is None else [f"frame {frame}"]
        parts += [] if position is None else [f"{round(position, 1) + 0.0:.1f} mm".replace("-", "−")]
        return ", ".join(parts)

    @property
    def note(self) -> str:
        return self.prediction.reason or ", ".join(self.prediction.flags)

    @property
    def alt(self) -> str:
        """What the picture shows."""
        under = " under the activation map" if self.prediction.status is Status.OK else ""
        return f"The slice, crop and lungs outlined, beside the cropped slice{under}"


def _choose(predictions: Path, counts: Counts) -> _Choice:
    """Choose the slices with most to see, holding no more of them in memory than are shown."""
    flags: Counter[str] = Counter()
    others: list[int] = []
    left_out = counts.refused + counts.failed

    def classified() -> Iterator[tuple[float, int]]:
        for number, prediction in enumerate(read_predictions(predictions)):
            flags.update(prediction.flags)
            if prediction.status is Status.OK:
                yield prediction.probability or 0.0, -number
            elif len(others) < GALLERY:
                others.append(number)

    highest = [-number for _, number in heapq.nlargest(GALLERY - min(UNCLASSIFIED, left_out), classified())]
    if counts.total <= GALLERY:
        return _Choice(None, f"All {counts.total:,} are shown.", flags)
    shown = others[: GALLERY - len(highest)]
    words = f"Shown are the {len(highest):,} with the highest probability of COVID"
    if shown:
        words += f" and the first {len(shown):,} of {left_out:,} refused or failed ones"
    words += f"; predictions.csv beside this page holds all {counts.total:,}."
    return _Choice(frozenset(highest + shown), words, flags)


def _cards(predictions: Path, overlays: Path, choice: _Choice, totals: Totals) -> Iterator[_Card]:
    for number, prediction in enumerate(read_predictions(predictions)):
        if choice.numbers is not None and number not in choice.numbers:
            continue
        name, series = picture_name(prediction.file, prediction.frame), totals.number(prediction)
        picture = None if prediction.status is Status.FAILED else _small_data_uri(overlays / name)
        yield _Card(
            number,
            prediction,
            series if series is not None and series <= PANELS else None,
            picture,
            None if picture is None else f"{overlays.name}/{name}",
        )


def _small_data_uri(path: Path) -> str | None:
    """A saved picture made small, as a data URI; None where it is missing or damaged."""
    try:
        content = np.frombuffer(path.read_bytes(), np.uint8)
        picture = cv2.imdecode(content, cv2.IMREAD_COLOR) if len(content) else None
    except (OSError, cv2.error):
        return None
    if picture is None:
        return None
    small = fit(np.asarray(picture, np.uint8), min(_SMALL_WIDTH, max(picture.shape[:2])))
    _, encoded = cv2.imencode(".jpg", small, [cv2.IMWRITE_JPEG_QUALITY, _QUALITY])
    return "data:image/jpeg;base64," + base64.b64encode(encoded.tobytes()).decode("ascii")


def _tiles(totals: Totals) -> list[tuple[str, str, str]]:
    """Numbers in large print: title, value, note."""
    counts = totals.counts
    labels = {"COVID": counts.covid, "Uncertain": counts.uncertain, "NonCOVID": counts.non_covid}
    others = {
        ("Outside the lungs", "another part of the body"): totals.outside_lungs,
        ("Refused", "not axial lung CT slices"): counts.refused - totals.outside_lungs,
        ("Failed", "could not be read"): counts.failed,
    }
    return [
        ("Slices", f"{counts.total:,}", ""),
        *(
            (title, f"{count:,}", f"{count / counts.ok:.0%} of those classified" if counts.ok else "")
            for title, count in labels.items()
        ),
        *((title, f"{count:,}", note) for (title, note), count in others.items() if count),
    ]


def _label_note(bundle: Bundle) -> str:
    low, high = bundle.calibration.uncertain
    return (
        f"A slice is labelled COVID above a probability of {high:.3f}, NonCOVID below {low:.3f}, and uncertain "
        f"between, so that for {bundle.calibration.coverage:.0%} of slices, of either label, the true one is not "
        "ruled out."
    )


def _warnings(counts: Counts, flags: Counter[str]) -> list[str]:
    warnings = []
    if counts.ok == 0:
        warnings.append("No slice could be classified.")
    if counts.failed:
        warnings.append(
            f"{counted(counts.failed, 'file')} could not be read; the slices in them are missing here."
        )
    for flag, count in sorted(flags.items()):
        slices = "1 slice is" if count == 1 else f"{count:,} slices are"
        meaning = f": {FLAGS[flag]}" if flag in FLAGS else ""
        warnings.append(f"{slices} flagged {flag}{meaning}.")
    return warnings


def _series_note(count: int) -> str:
    more = (
        f" The first {PANELS} of {count:,} series are shown; series.json holds all." if count > PANELS else ""
    )
    return f"Series score: {SERIES_SCORE[0].lower()}{SERIES_SCORE[1:]}{more}"


def _facts(bundle: Bundle) -> list[tuple[str, str]]:
    info = bundle.info
    facts = [
        ("Model", info.name),
        ("Bundle", f"{bundle.id}, made {info.created}"),
        ("Network", str(info.network.get("name", ""))),
        ("Measured", _measured(info.metrics)),
        ("Licence of the weights", info.licence),
        ("Predictions", "predictions.jsonl and predictions.csv beside this page; series in series.json"),
        ("Written", f"{datetime.now(timezone.utc):%Y-%m-%d %H:%M} UTC by groundglass {__version__}"),
    ]
    return [(name, value) for name, value in facts if value]


def _measured(metrics: Mapping[str, Any]) -> str:
    """What the bundle says was measured on its test part; empty where it does not."""
    try:
        test = metrics["test"]
        words = []
        for name, title in (("accuracy", "accuracy"), ("auc", "AUC"), ("recall", "recall")):
            measure = test["metrics"][name]
            words.append(f"{title} {measure['value']:.3f} ({measure['low']:.3f}–{measure['high']:.3f})")
        return f"{', '.join(words)} on {test['slices']:,} slices the model had not seen"
    except (KeyError, TypeError, ValueError):
        return ""


def _number(value: float, unit: str = "") -> str:
    """With a true minus sign, and without one before zero."""
    return f"{value + 0.0:g} {unit}".strip().replace("-", "−")


def _draw(curve: Curve) -> Iterator[str]:
    """The curve as an ``<svg>`` element."""
    xs, ys = [_x(value, curve) for value in curve.at], [_y(value) for value in curve.probability]
    yield f'<svg viewBox="0 0 {_CURVE_WIDTH} {_CURVE_HEIGHT}" aria-hidden="true" focusable="false" class="curve">'
    yield from _grid(curve)
    points = " ".join(f"{x:.1f},{y:.1f}" for x, y in zip(xs, ys, strict=True))
    yield f'<polyline points="{points}" fill="none" stroke="var(--muted)" stroke-width="1.2"/>'
    if len(xs) <= _MARKED:
        yield from (_marker(x, y, label) for x, y, label in zip(xs, ys, curve.label, strict=True))
    yield "</svg>"


def _x(value: float, curve: Curve) -> float:
    first, span = curve.at[0], curve.at[-1] - curve.at[0]
    inner = _CURVE_WIDTH - _LEFT - _RIGHT - 2 * _INSET
    return _LEFT + _INSET + inner * ((value - first) / span if span > 0 else 0.5)


def _y(probability: float) -> float:
    return _TOP + (_CURVE_HEIGHT - _TOP - _BOTTOM) * (1 - probability)


def _grid(curve: Curve) -> Iterator[str]:
    right, foot = _CURVE_WIDTH - _RIGHT, _CURVE_HEIGHT - _BOTTOM
    for value in (0.0, 0.5, 1.0):
        y = _y(value)
        yield f'<line x1="{_LEFT}" y1="{y:.1f}" x2="{right}" y2="{y:.1f}" class="rule"/>'
        yield f'<text x="{_LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{value:g}</text>'
    for value in _ticks(curve.at[0], curve.at[-1]):
        x = _x(value, curve)
        yield f'<line x1="{x:.1f}" y1="{foot}" x2="{x:.1f}" y2="{foot + 5}" class="rule"/>'
        yield f'<text x="{x:.1f}" y="{foot + 18}" text-anchor="middle">{_number(value)}</text>'
    title = _AXES[curve.axis][1]
    yield f'<text x="{(_LEFT + right) / 2:.1f}" y="{_CURVE_HEIGHT - 8}" text-anchor="middle">{title}</text>'


def _ticks(first: float, last: float) -> Sequence[float]:
    """Round numbers between two ends, about six; the one number where both are the same."""
    span = last - first
    if span <= 0:
        return [first]
    magnitude = 10.0 ** math.floor(math.log10(span / 6))
    step = next(factor * magnitude for factor in (1, 2, 5, 10) if factor * magnitude >= span / 6)
    start, end = math.ceil(first / step - 1e-9), math.floor(last / step + 1e-9)
    return [round(index * step, 6) for index in range(start, end + 1)]


def _marker(x: float, y: float, label: str) -> str:
    """Labels differ in shape as well as in colour."""
    if label == COVID:
        return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" fill="var(--covid)"/>'
    if label == NON_COVID:
        return f'<rect x="{x - 3:.1f}" y="{y - 3:.1f}" width="6" height="6" fill="var(--other)"/>'
    points = f"{x:.1f},{y - 4.5:.1f} {x + 4.5:.1f},{y:.1f} {x:.1f},{y + 4.5:.1f} {x - 4.5:.1f},{y:.1f}"
    return f'<polygon points="{points}" fill="var(--card)" stroke="var(--ink)" stroke-width="1.4"/>'
