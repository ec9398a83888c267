"""The HTML report of a prediction: one file, its only script named by its hash, written as it is made."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import TextIO

from markupsafe import Markup

from groundglass.reporting.curve import SeriesCurve
from groundglass.reporting.page import NOTICE, environment

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
        score: study score, None where no slice was classified.
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
        order: its number in the order of the findings.
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
