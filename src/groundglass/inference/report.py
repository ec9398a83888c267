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
from groundglass.inference.prediction import Evidence, Prediction, Status
from groundglass.inference.series import SERIES_SCORE, Axis, Counts, Curve, Totals, slices_in_score
from groundglass.inference.writers import file_errors, read_predictions
from groundglass.reporting.html import NOTICE, environment
from groundglass.reporting.overlay import Picture, fit, grey_picture, outlined_slice, overlay, side_by_side

GALLERY, UNCLASSIFIED = 1000, 100
"""Most slices shown, and how many of these may be refused and failed ones where there are more in all."""

PANELS = 200
"""Most series shown."""

_HEIGHT = 320
_SMALL_WIDTH, _QUALITY = 420, 80
_LONGEST_STEM = 60
_AXES: Mapping[Axis, tuple[str, str]] = {
    "mm": ("mm", "position towards the head, mm"),
    "frame": ("", "frame"),
    "order": ("", "slice, in the order of reading"),
}


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
    shown, drawn = fit(cropped.pixels, _HEIGHT), evidence.activation_map
    return side_by_side([whole, grey_picture(shown) if drawn is None else overlay(shown, drawn)], _HEIGHT)


def picture_name(file: str, frame: int | None) -> str:
    """Name of a prediction's picture: follows from file and frame alone, and no two share one."""
    file = printable(file)
    key = f"{file}\0{frame}".encode()
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
    choice, summaries = _choose(predictions, totals.counts), totals.summaries()
    script = (files("groundglass.reporting") / "templates" / "gallery.js").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode("ascii")
    page = environment()
    page.filters["minus"] = lambda text: text.replace("-", "−")
    parts = page.get_template("prediction.html.j2").stream(
        totals=totals,
        counts=totals.counts,
        bundle=bundle,
        report={
            "title": f"Predictions in {counted(totals.counts.total, 'slice')}",
            "subtitle": f"{totals.in_words}. Model: {bundle.info.name}.",
            "warnings": _warnings(totals.counts, choice.flags),
        },
        measured=_measured(bundle.info.metrics),
        choice=choice,
        series=[(each, slices_in_score(each.counts.ok), _draw(each.curve)) for each in summaries[:PANELS]],
        series_count=len(summaries),
        series_score=SERIES_SCORE,
        slices=_slices(predictions, overlays, choice, totals),
        overlays=overlays.name,
        written=f"{datetime.now(timezone.utc):%Y-%m-%d %H:%M} UTC by groundglass {__version__}",
        command=printable(command),
        notice=NOTICE,
        script=Markup(script),  # noqa: S704 - own script
        digest=Markup(digest),  # noqa: S704 - own hash
    )
    parts.enable_buffering(64)
    with atomic_path(path) as temporary, temporary.open("w", encoding="utf-8") as stream:
        stream.writelines(parts)


@dataclass(frozen=True)
class _Choice:
    """Which predictions the gallery shows, by their number; None for all."""

    numbers: frozenset[int] | None
    flags: Counter[str]
    highest: int = 0  # how many are classified ones
    others: int = 0  # and how many refused or failed


def _choose(predictions: Path, counts: Counts) -> _Choice:
    """Choose the slices with most to see, holding no more of them in memory than are shown."""
    flags: Counter[str] = Counter()
    others: list[int] = []

    def classified() -> Iterator[tuple[float, int]]:
        for number, prediction in enumerate(read_predictions(predictions)):
            flags.update(prediction.flags)
            if prediction.status is Status.OK:
                yield prediction.probability or 0.0, -number
            elif len(others) < GALLERY:
                others.append(number)

    room = GALLERY - min(UNCLASSIFIED, counts.refused + counts.failed)
    highest = [-number for _, number in heapq.nlargest(room, classified())]
    if counts.total <= GALLERY:
        return _Choice(None, flags)
    shown = others[: GALLERY - len(highest)]
    return _Choice(frozenset(highest + shown), flags, len(highest), len(shown))


def _slices(
    predictions: Path, overlays: Path, choice: _Choice, totals: Totals
) -> Iterator[tuple[int, Prediction, int | None, str | None, str]]:
    """Number, prediction, its series' number if that is shown, and data URI and name of its picture."""
    for number, prediction in enumerate(read_predictions(predictions)):
        if choice.numbers is None or number in choice.numbers:
            name, series = picture_name(prediction.file, prediction.frame), totals.number(prediction)
            failed = prediction.status is Status.FAILED
            picture = None if failed else _small_data_uri(overlays / name)
            yield number, prediction, series if series and series <= PANELS else None, picture, name


def _warnings(counts: Counts, flags: Counter[str]) -> list[str]:
    warnings = ["No slice could be classified."] if counts.ok == 0 else []
    if counts.failed:
        failed = counted(counts.failed, "file")
        warnings.append(f"{failed} could not be read; the slices in them are missing here.")
    for flag, count in sorted(flags.items()):
        meaning = f": {FLAGS[flag]}" if flag in FLAGS else ""
        warnings.append(f"{counted(count, 'slice')} {'is' if count == 1 else 'are'} flagged {flag}{meaning}.")
    return warnings


def _measured(metrics: Mapping[str, Any]) -> str:
    """What the bundle says was measured on its test part; empty where it does not."""
    try:
        test, words = metrics["test"], []
        for name in ("accuracy", "auc", "recall"):
            measure, title = test["metrics"][name], "AUC" if name == "auc" else name
            words.append(f"{title} {measure['value']:.3f} ({measure['low']:.3f}–{measure['high']:.3f})")
        return f"{', '.join(words)} on {test['slices']:,} slices the model had not seen"
    except (KeyError, TypeError, ValueError):
        return ""


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


@dataclass(frozen=True)
class _Drawing:
    """A curve on a drawing of 640 x 200: places of its slices with their labels, ticks, axis, its highest place."""

    points: Sequence[tuple[float, float, str]]
    ticks: Sequence[tuple[float, str]]
    axis: str
    peak: str


def _draw(curve: Curve) -> _Drawing | None:
    """None where one slice is all."""
    if len(curve.at) < 2:
        return None
    first, span = curve.at[0], curve.at[-1] - curve.at[0]
    unit, axis = _AXES[curve.axis]

    def x(value: float) -> float:
        return 48 + 570 * ((value - first) / span if span > 0 else 0.5)

    points = [
        (x(at), 12 + 142 * (1 - probability), label)
        for at, probability, label in zip(curve.at, curve.probability, curve.label, strict=True)
    ]
    peak = curve.at[max(range(len(points)), key=curve.probability.__getitem__)]
    ticks = [(x(value), f"{value + 0.0:g}") for value in _ticks(first, span)]
    return _Drawing(points, ticks, axis, f"{round(peak, 1) + 0.0:g} {unit}".strip())


def _ticks(first: float, span: float) -> Sequence[float]:
    """Round numbers within the span, about six; the first alone where there is none."""
    if span <= 0:
        return [first]
    magnitude = 10.0 ** math.floor(math.log10(span / 6))
    step = next(factor * magnitude for factor in (1, 2, 5, 10) if factor * magnitude >= span / 6)
    start, end = math.ceil(first / step - 1e-9), math.floor((first + span) / step + 1e-9)
    return [round(index * step, 6) for index in range(start, end + 1)]
