"""Build the report of a prediction from its predictions and pictures.

Pictures of predictions: the slice with lungs and frame outlined, beside what the network made of it.

The curve of probability along a series as SVG that takes its colours from the page.

The curve of probability along a series as one line of text.

The HTML report of a prediction: one file, its only script named by its hash, written as it is made.
"""

from __future__ import annotations

import base64
import hashlib
import heapq
import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from importlib.resources import files
from pathlib import Path
from typing import Any, TextIO

import cv2
import numpy as np
from markupsafe import Markup

from groundglass import __version__
from groundglass.files import atomic_path, printable
from groundglass.inference.bundle import Bundle
from groundglass.inference.input_check import FLAGS
from groundglass.inference.prediction import Evidence, Prediction, Status
from groundglass.inference.series import SERIES_SCORE, Axis, Counts, SeriesSummary, Studies, slices_in_score
from groundglass.inference.writers import file_errors, read_predictions
from groundglass.reporting.html import NOTICE, environment
from groundglass.reporting.overlay import Picture, fit, grey_picture, outlined_slice, overlay, side_by_side

_HEIGHT = 320
_SMALL_WIDTH = 420
_LONGEST_STEM = 60
_QUALITY = 80


def evidence_picture(evidence: Evidence) -> Picture:
    """A slice and, where it was classified, its cropped slice under the activation map; 320 pixels high.

    Returns:
        Shape (320, W, 3).
    """
    pixels, cropped = evidence.slice.pixels, evidence.cropped
    side = min(round(_HEIGHT * max(pixels.shape) / pixels.shape[0]), 2 * _HEIGHT)
    pictures = [_upright(outlined_slice(pixels, cropped.lungs, cropped.box, side))]
    if evidence.activation_map is not None:
        pictures.append(overlay(fit(cropped.pixels, _HEIGHT), evidence.activation_map))
    else:
        pictures.append(grey_picture(fit(cropped.pixels, _HEIGHT)))
    return side_by_side(pictures, _HEIGHT)


def _upright(picture: Picture) -> Picture:
    """A picture with black above and below, 320 pixels high: what is very wide is not blown up."""
    missing = max(_HEIGHT - picture.shape[0], 0)
    return np.pad(picture, ((missing // 2, missing - missing // 2), (0, 0), (0, 0)))


def picture_name(file: str, frame: int | None) -> str:
    """Name of a prediction's picture: follows from file and frame alone, and no two share one."""
    key = f"{printable(file)}\0{frame}".encode()
    stem = re.sub(r"[^A-Za-z0-9._-]+", "_", Path(file.replace("!", "/")).stem)[:_LONGEST_STEM].lstrip("._-")
    parts = [stem or "slice", *([] if frame is None else [str(frame)]), hashlib.sha256(key).hexdigest()[:12]]
    return "-".join(parts) + ".png"


def save_picture(picture: Picture, path: Path) -> None:
    """Write a picture as PNG without any metadata."""
    # Level 1 is 4 times as fast as the default, and the files are a tenth larger.
    _, content = cv2.imencode(
        ".png", cv2.cvtColor(picture, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_PNG_COMPRESSION, 1]
    )
    with file_errors(path):
        path.write_bytes(content.tobytes())


def small_data_uri(path: Path) -> str | None:
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


COVID, NON_COVID = "COVID", "NonCOVID"

_WIDTH, _HEIGHT_CURVE = 640, 200
_LEFT, _RIGHT, _TOP, _BOTTOM, _INSET = 40, 14, 12, 46, 8
_MARKED = 300
"""More slices than this are drawn as a band between the lowest and the highest of neighbours."""


@dataclass(frozen=True)
class SeriesCurve:
    """Probabilities of a series' slices.

    Attributes:
        at: where each slice lies, not falling.
        probability: of COVID, 0 to 1.
        label: of each slice.
        unit: of ``at``: ``mm``, or empty where it counts frames or slices.
        title: of the axis.
    """

    at: Sequence[float]
    probability: Sequence[float]
    label: Sequence[str]
    unit: str
    title: str

    @property
    def words(self) -> str:
        """What the curve shows, for everybody, screen readers included; empty where one slice is all."""
        if len(self.at) < 2:
            return ""
        peak = max(range(len(self.at)), key=self.probability.__getitem__)
        where = f"{round(self.at[peak], 1) + 0.0:g} {self.unit}".strip().replace("-", "−")
        return (
            f"Probability of COVID in {len(self.at)} slices: highest {self.probability[peak]:.3f} "
            f"at {where}, lowest {min(self.probability):.3f}."
        )

    @property
    def svg(self) -> Markup | None:
        """The curve as an ``<svg>`` element, None where one slice is all."""
        return Markup("".join(_drawn(self))) if len(self.at) > 1 else None  # noqa: S704 - numbers, constants


def _drawn(curve: SeriesCurve) -> list[str]:
    xs = [_x(value, curve) for value in curve.at]
    ys = [_y(value) for value in curve.probability]
    parts = [
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT_CURVE}" aria-hidden="true" focusable="false" class="curve">',
        *_grid(curve),
    ]
    if len(xs) > _MARKED:
        parts.append(_band(xs, ys))
    else:
        points = " ".join(f"{x:.1f},{y:.1f}" for x, y in zip(xs, ys, strict=True))
        parts.append(f'<polyline points="{points}" fill="none" stroke="var(--muted)" stroke-width="1.2"/>')
        parts += [_marker(x, y, label) for x, y, label in zip(xs, ys, curve.label, strict=True)]
    return [*parts, "</svg>"]


def _x(value: float, curve: SeriesCurve) -> float:
    first, span = curve.at[0], curve.at[-1] - curve.at[0]
    inner = _WIDTH - _LEFT - _RIGHT - 2 * _INSET
    return _LEFT + _INSET + inner * ((value - first) / span if span > 0 else 0.5)


def _y(probability: float) -> float:
    return _TOP + (_HEIGHT_CURVE - _TOP - _BOTTOM) * (1 - probability)


def _grid(curve: SeriesCurve) -> list[str]:
    parts = []
    for value in (0.0, 0.5, 1.0):
        y = _y(value)
        parts.append(f'<line x1="{_LEFT}" y1="{y:.1f}" x2="{_WIDTH - _RIGHT}" y2="{y:.1f}" class="rule"/>')
        parts.append(f'<text x="{_LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{value:g}</text>')
    for value in _ticks(curve.at[0], curve.at[-1]):
        x, foot = _x(value, curve), _HEIGHT_CURVE - _BOTTOM
        parts.append(f'<line x1="{x:.1f}" y1="{foot}" x2="{x:.1f}" y2="{foot + 5}" class="rule"/>')
        text = f"{value:g}".replace("-", "−")
        parts.append(f'<text x="{x:.1f}" y="{foot + 18}" text-anchor="middle">{text}</text>')
    middle = (_LEFT + _WIDTH - _RIGHT) / 2
    parts.append(f'<text x="{middle:.1f}" y="{_HEIGHT_CURVE - 8}" text-anchor="middle">{curve.title}</text>')
    return parts


def _ticks(first: float, last: float) -> list[float]:
    """Round numbers between two ends, about six; the one number where both are the same."""
    span = last - first
    if span <= 0:
        return [first]
    raw = span / 6
    magnitude = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * magnitude for factor in (1, 2, 5, 10) if factor * magnitude >= raw)
    start = math.ceil(first / step - 1e-9)
    count = math.floor(last / step + 1e-9) - start
    return [round((start + index) * step, 6) + 0.0 for index in range(count + 1)]


def _marker(x: float, y: float, label: str) -> str:
    """Labels differ in shape as well as in colour."""
    if label == COVID:
        return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" fill="var(--covid)"/>'
    if label == NON_COVID:
        return f'<rect x="{x - 3:.1f}" y="{y - 3:.1f}" width="6" height="6" fill="var(--other)"/>'
    points = f"{x:.1f},{y - 4.5:.1f} {x + 4.5:.1f},{y:.1f} {x:.1f},{y + 4.5:.1f} {x - 4.5:.1f},{y:.1f}"
    return f'<polygon points="{points}" fill="var(--card)" stroke="var(--ink)" stroke-width="1.4"/>'


def _band(xs: Sequence[float], ys: Sequence[float]) -> str:
    size = math.ceil(len(xs) / _MARKED)
    groups = [slice(start, start + size) for start in range(0, len(xs), size)]
    middles = [sum(xs[group]) / len(xs[group]) for group in groups]
    upper = [f"{x:.1f},{min(ys[group]):.1f}" for x, group in zip(middles, groups, strict=True)]
    lower = [f"{x:.1f},{max(ys[group]):.1f}" for x, group in zip(middles, groups, strict=True)]
    points = " ".join(upper + lower[::-1])
    return f'<polygon points="{points}" fill="var(--other)" stroke="var(--other)" stroke-width="1"/>'


_BLOCKS, _ASCII_BLOCKS = "▁▂▃▄▅▆▇█", "_.:-=+*#"


def sparkline(
    at: Sequence[float], probability: Sequence[float], width: int = 40, *, unicode: bool = True
) -> str:
    """A curve as one line of text: one character per slice, or per stretch where there are more of them.

    Args:
        at: where each slice lies, not falling.
        probability: 0 to 1; of a stretch the mean is shown, and nothing where no slice lies in it.
        width: most characters.
        unicode: block characters; otherwise ASCII.
    """
    values: list[float | None] = list(probability)
    if len(values) > width:
        values = _stretches(at, probability, width)
    blocks = _BLOCKS if unicode else _ASCII_BLOCKS
    return "".join(
        " " if value is None else blocks[min(int(max(value, 0.0) * len(blocks)), len(blocks) - 1)]
        for value in values
    )


def _stretches(at: Sequence[float], probability: Sequence[float], width: int) -> list[float | None]:
    first, span = at[0], at[-1] - at[0]
    sums, counts = [0.0] * width, [0] * width
    for index, value in enumerate(probability):
        share = (at[index] - first) / span if span > 0 else index / len(probability)
        place = min(int(share * width), width - 1)
        sums[place] += value
        counts[place] += 1
    return [total / count if count else None for total, count in zip(sums, counts, strict=True)]


DATA_NOTICE = (
    "The slices belong to their patients and publishers; the paths of files may name them. Look through this "
    "page before you pass it on."
)


@dataclass(frozen=True)
class Tile:
    """A number in large print."""

    title: str
    value: str
    note: str = ""


@dataclass(frozen=True)
class SeriesPanel:
    """One series.

    Attributes:
        title: heading.
        words: how many slices came out how.
        identity: what tells the series from others of the same title.
        score: series score, None where no slice was classified.
        score_note: how many slices it is the mean of.
        curve: along the body axis.
    """

    title: str
    words: str
    identity: str
    score: float | None
    score_note: str
    curve: SeriesCurve


@dataclass(frozen=True)
class SliceCard:
    """One slice of the gallery.

    Attributes:
        order: its number in the order of the predictions.
        file: path.
        status: ``ok``, ``refused`` or ``failed``.
        label: ``COVID``, ``NonCOVID``, ``uncertain``, or None unless classified.
        probability: of COVID, None unless classified.
        position: in mm towards the head, or None.
        frame: index in the file, or None.
        series: number of its series in the report, or None.
        note: flags, or why it was not classified.
        picture: data URI, or None.
        alt: what the picture shows.
        link: relative address of the picture in full size, or None.
    """

    order: int
    file: str
    status: str
    label: str | None
    probability: float | None
    position: float | None
    frame: int | None
    series: int | None
    note: str
    picture: str | None
    alt: str
    link: str | None

    @property
    def name(self) -> str:
        """The last part of the path."""
        return self.file.replace("\\", "/").rpartition("/")[2] or self.file

    @property
    def where(self) -> str:
        """Frame and position in words; empty where the file tells neither."""
        parts = [] if self.frame is None else [f"frame {self.frame}"]
        if self.position is not None:
            parts.append(f"{round(self.position, 1) + 0.0:.1f} mm".replace("-", "−"))
        return ", ".join(parts)

    @property
    def place(self) -> str:
        """What stands before the name."""
        return self.file[: len(self.file) - len(self.name)]


@dataclass(frozen=True)
class PredictionReport:
    """Everything a report says, in the order in which it says it.

    The slices may be made as they are asked for.
    """

    title: str
    subtitle: str
    warnings: Sequence[str]
    tiles: Sequence[Tile]
    label_note: str
    series: Sequence[SeriesPanel]
    series_note: str
    slices: Iterable[SliceCard]
    slices_note: str
    facts: Sequence[tuple[str, str]]
    command: str


def render(report: PredictionReport, stream: TextIO) -> None:
    """Write the report as a self-contained HTML page, holding a few slices of it at a time."""
    script = (files("groundglass.reporting") / "templates" / "gallery.js").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode("ascii")
    template = environment().get_template("prediction.html.j2")
    parts = template.stream(
        report=report,
        notice=NOTICE,
        data_notice=DATA_NOTICE,
        script=Markup(script),  # noqa: S704 - own script
        digest=Markup(digest),  # noqa: S704 - own hash
    )
    parts.enable_buffering(64)
    stream.writelines(parts)


GALLERY, UNCLASSIFIED = 1000, 100
"""Most slices shown, and how many of these may be refused and failed ones where there are more in all."""

PANELS = 200
"""Most series shown."""

_AXES: dict[Axis, tuple[str, str]] = {
    "mm": ("mm", "position towards the head, mm"),
    "frame": ("", "frame"),
    "order": ("", "slice, in the order of reading"),
}


@dataclass(frozen=True)
class _Choice:
    """Which predictions the gallery shows, by their number; None for all."""

    numbers: frozenset[int] | None
    words: str
    flags: Counter[str]


def write_report(
    path: Path, predictions: Path, overlays: Path, bundle: Bundle, studies: Studies, command: str
) -> None:
    """Write ``report.html``.

    Args:
        path: of the page.
        predictions: JSON lines.
        overlays: folder of the predictions' pictures.
        bundle: that was asked.
        studies: what all predictions say together.
        command: as it was given.
    """
    choice = _choose(predictions, studies.counts)
    summaries = studies.summaries()
    counts = studies.counts
    report = PredictionReport(
        title=f"Predictions in {counts.total:,} slice{'s' * (counts.total != 1)}",
        subtitle=f"{counts.in_words()}. Model: {bundle.info.name}.",
        warnings=_warnings(counts, choice.flags),
        tiles=_tiles(counts),
        label_note=_label_note(bundle),
        series=[_panel(summary) for summary in summaries[:PANELS]],
        series_note=_series_note(len(summaries)),
        slices=_cards(predictions, overlays, choice, studies),
        slices_note=f"{choice.words} Pictures open in full size from the folder {overlays.name} beside this "
        "page. Colours are scaled to the strongest place of each slice; they do not compare between slices.",
        facts=_facts(bundle),
        command=printable(command),
    )
    with atomic_path(path) as temporary, temporary.open("w", encoding="utf-8") as stream:
        render(report, stream)


def _choose(predictions: Path, counts: Counts) -> _Choice:
    """Choose the slices with most to see, holding no more of them in memory than are shown."""
    flags: Counter[str] = Counter()
    others: list[int] = []
    room = GALLERY - min(UNCLASSIFIED, counts.refused + counts.failed)

    def classified() -> Iterator[tuple[float, int]]:
        for number, prediction in enumerate(read_predictions(predictions)):
            flags.update(prediction.flags)
            if prediction.status is Status.OK:
                yield prediction.probability or 0.0, -number
            elif len(others) < GALLERY:
                others.append(number)

    highest = [-number for _, number in heapq.nlargest(room, classified())]
    if counts.total <= GALLERY:
        return _Choice(None, f"All {counts.total:,} are shown.", flags)
    shown = others[: GALLERY - len(highest)]
    words = f"Shown are the {len(highest):,} with the highest probability of COVID"
    if shown:
        words += f" and the first {len(shown):,} of {counts.refused + counts.failed:,} refused or failed ones"
    words += f"; predictions.csv beside this page holds all {counts.total:,}."
    return _Choice(frozenset(highest + shown), words, flags)


def _cards(predictions: Path, overlays: Path, choice: _Choice, studies: Studies) -> Iterator[SliceCard]:
    for number, prediction in enumerate(read_predictions(predictions)):
        if choice.numbers is None or number in choice.numbers:
            yield _card(number, prediction, overlays, studies.number(prediction))


def _card(number: int, prediction: Prediction, overlays: Path, series: int | None) -> SliceCard:
    name = picture_name(prediction.file, prediction.frame)
    picture = None if prediction.status is Status.FAILED else small_data_uri(overlays / name)
    cropped = "the cropped slice"
    if prediction.status is Status.OK:
        cropped += " under the activation map"
    return SliceCard(
        order=number,
        file=prediction.file,
        status=prediction.status.value,
        label=prediction.label,
        probability=prediction.probability,
        position=prediction.position,
        frame=prediction.frame,
        series=series if series is not None and series <= PANELS else None,
        note=prediction.reason or ", ".join(prediction.flags),
        picture=picture,
        alt=f"The slice, frame and lungs outlined, beside {cropped}",
        link=None if picture is None else f"{overlays.name}/{name}",
    )


def _tiles(counts: Counts) -> list[Tile]:
    tiles = [
        Tile("Slices", f"{counts.total:,}"),
        Tile("COVID", f"{counts.covid:,}", _share(counts.covid, counts.ok)),
        Tile("Uncertain", f"{counts.uncertain:,}", _share(counts.uncertain, counts.ok)),
        Tile("NonCOVID", f"{counts.non_covid:,}", _share(counts.non_covid, counts.ok)),
        Tile("Refused", f"{counts.refused:,}", "no axial lung CT slice"),
        Tile("Failed", f"{counts.failed:,}", "could not be read"),
    ]
    return [tile for tile in tiles if tile.value != "0" or tile.title not in {"Refused", "Failed"}]


def _share(count: int, total: int) -> str:
    return f"{count / total:.0%} of those classified" if total else ""


def _label_note(bundle: Bundle) -> str:
    coverage = bundle.calibration.coverage
    return (
        "A slice is labelled where the model can rule out the other label, and uncertain otherwise. "
        f"Calibrated so that for {coverage:.0%} of slices, of either label, the true one is not ruled out."
    )


def _warnings(counts: Counts, flags: Counter[str]) -> list[str]:
    warnings = []
    if counts.ok == 0:
        warnings.append("No slice could be classified.")
    if counts.failed:
        files = "1 file" if counts.failed == 1 else f"{counts.failed:,} files"
        warnings.append(f"{files} could not be read; the slices in them are missing here.")
    for flag, count in sorted(flags.items()):
        slices = "1 slice is" if count == 1 else f"{count:,} slices are"
        meaning = f": {FLAGS[flag]}" if flag in FLAGS else ""
        warnings.append(f"{slices} flagged {flag}{meaning}.")
    return warnings


def _panel(summary: SeriesSummary) -> SeriesPanel:
    unit, title = _AXES[summary.curve.axis]
    return SeriesPanel(
        title=summary.name,
        words=f"{summary.counts.in_words()}.",
        identity=summary.place if summary.series is None else f"{summary.place}, series {summary.series}",
        score=summary.series_score,
        score_note=_score_note(slices_in_score(summary.counts.ok)),
        curve=SeriesCurve(summary.curve.at, summary.curve.probability, summary.curve.label, unit, title),
    )


def _score_note(used: int) -> str:
    if used < 2:
        return "that slice's probability" if used else "no slice was classified"
    return f"mean of the {used} highest probabilities"


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


def _measured(metrics: Any) -> str:
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
