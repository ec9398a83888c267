"""Build the report of a prediction from its findings and pictures."""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from groundglass import __version__
from groundglass.atomic import atomic_path
from groundglass.inference.bundle import Bundle
from groundglass.inference.finding import Finding, Status
from groundglass.inference.findings_file import read_findings, readable
from groundglass.inference.flags import (
    LOW_RESOLUTION,
    LUNGS_NOT_FOUND,
    ONE_LUNG_FOUND,
    SOFT_TISSUE_WINDOW,
    UPSIDE_DOWN,
)
from groundglass.inference.pictures import picture_name, small_data_uri
from groundglass.inference.study import STUDY_SCORE, Axis, Counts, SeriesSummary, Studies, slices_in_score
from groundglass.reporting.curve import SeriesCurve
from groundglass.reporting.prediction import PredictionReport, SeriesPanel, SliceCard, Tile, render

GALLERY, UNCLASSIFIED = 1000, 100
"""Most slices shown, and how many of these may be refused and failed ones where there are more in all."""

PANELS = 200
"""Most series shown."""

_FLAGS = {
    LUNGS_NOT_FOUND: ": no lungs were found, and the whole picture was judged instead",
    ONE_LUNG_FOUND: ": one lung was found, and the other was not judged",
    SOFT_TISSUE_WINDOW: ": most of the lung is black in the picture's window, which hides what is looked for",
    LOW_RESOLUTION: ": the lungs take so few pixels that they were enlarged",
    UPSIDE_DOWN: ": by the file's geometry the patient's back is up",
}

_AXES: dict[Axis, tuple[str, str]] = {
    "mm": ("mm", "position towards the head, mm"),
    "frame": ("", "frame"),
    "order": ("", "slice, in the order of reading"),
}


@dataclass(frozen=True)
class _Choice:
    """Which findings the gallery shows, by their number; None for all."""

    numbers: frozenset[int] | None
    words: str
    flags: Counter[str]


def write_report(
    path: Path, findings: Path, overlays: Path, bundle: Bundle, studies: Studies, command: str
) -> None:
    """Write ``report.html``.

    Args:
        path: of the page.
        findings: JSON lines.
        overlays: folder of the findings' pictures.
        bundle: that was asked.
        studies: what all findings say together.
        command: as it was given.
    """
    choice = _choose(findings, studies.counts)
    summaries = studies.summaries()
    counts = studies.counts
    report = PredictionReport(
        title=f"Findings in {counts.total:,} slice{'s' * (counts.total != 1)}",
        subtitle=f"{counts.in_words()}. Model: {bundle.info.name}.",
        warnings=_warnings(counts, choice.flags),
        tiles=_tiles(counts),
        label_note=_label_note(bundle),
        series=[_panel(summary) for summary in summaries[:PANELS]],
        series_note=_series_note(len(summaries)),
        slices=_cards(findings, overlays, choice, studies),
        slices_note=f"{choice.words} Pictures open in full size from the folder {overlays.name} beside this "
        "page. Colours are scaled to the strongest place of each slice; they do not compare between slices.",
        facts=_facts(bundle),
        command=readable(command),
    )
    with atomic_path(path) as temporary, temporary.open("w", encoding="utf-8") as stream:
        render(report, stream)


def _choose(findings: Path, counts: Counts) -> _Choice:
    """Choose the slices with most to see, holding no more of them in memory than are shown."""
    flags: Counter[str] = Counter()
    others: list[int] = []
    room = GALLERY - min(UNCLASSIFIED, counts.refused + counts.failed)

    def classified() -> Iterator[tuple[float, int]]:
        for number, finding in enumerate(read_findings(findings)):
            flags.update(finding.flags)
            if finding.status is Status.OK:
                yield finding.probability or 0.0, -number
            elif len(others) < GALLERY:
                others.append(number)

    highest = [-number for _, number in heapq.nlargest(room, classified())]
    if counts.total <= GALLERY:
        return _Choice(None, f"All {counts.total:,} are shown.", flags)
    shown = others[: GALLERY - len(highest)]
    words = f"Shown are the {len(highest):,} with the highest probability of COVID"
    if shown:
        words += f" and the first {len(shown):,} of {counts.refused + counts.failed:,} refused or failed ones"
    words += f"; findings.csv beside this page holds all {counts.total:,}."
    return _Choice(frozenset(highest + shown), words, flags)


def _cards(findings: Path, overlays: Path, choice: _Choice, studies: Studies) -> Iterator[SliceCard]:
    for number, finding in enumerate(read_findings(findings)):
        if choice.numbers is None or number in choice.numbers:
            yield _card(number, finding, overlays, studies.number(finding))


def _card(number: int, finding: Finding, overlays: Path, series: int | None) -> SliceCard:
    name = picture_name(finding.file, finding.frame)
    picture = None if finding.status is Status.FAILED else small_data_uri(overlays / name)
    framed = "the framed slice"
    if finding.status is Status.OK:
        framed += " under the activation map"
    return SliceCard(
        order=number,
        file=finding.file,
        status=finding.status.value,
        label=finding.label,
        probability=finding.probability,
        position=finding.position,
        frame=finding.frame,
        series=series if series is not None and series <= PANELS else None,
        note=finding.reason or ", ".join(finding.flags),
        picture=picture,
        alt=f"The slice, frame and lungs outlined, beside {framed}",
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
        warnings.append(f"{slices} flagged {flag}{_FLAGS.get(flag, '')}.")
    return warnings


def _panel(summary: SeriesSummary) -> SeriesPanel:
    unit, title = _AXES[summary.curve.axis]
    return SeriesPanel(
        title=summary.name,
        words=f"{summary.counts.in_words()}.",
        identity=summary.place if summary.series is None else f"{summary.place}, series {summary.series}",
        score=summary.study_score,
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
    return f"Study score: {STUDY_SCORE[0].lower()}{STUDY_SCORE[1:]}{more}"


def _facts(bundle: Bundle) -> list[tuple[str, str]]:
    info = bundle.info
    facts = [
        ("Model", info.name),
        ("Bundle", f"{bundle.id}, made {info.created}"),
        ("Network", str(info.network.get("name", ""))),
        ("Measured", _measured(info.metrics.get(bundle.precision))),
        ("Licence of the weights", info.licence),
        ("Findings", "findings.jsonl and findings.csv beside this page; series in series.json"),
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
