"""What the reports of evaluations and audits show; and the page that is made of an evaluation's."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from groundglass.reporting.html import CITATION, NOTICE, environment
from groundglass.reporting.overlay import Layers

DATA_NOTICE = (
    "Slices shown here belong to their publishers, authors and patients: check the terms of the data set before you "
    "pass this report on."
)


@dataclass(frozen=True)
class MeasureRow:
    """A measure and its interval, each None where it is undefined.

    ``note`` says what should be known of it, such as why it is undefined; ``beside`` what the baseline has; the report
    shows a ``headline`` in large print at the top.
    """

    title: str
    value: float | None
    low: float | None
    high: float | None
    note: str = ""
    headline: bool = False
    beside: str = ""


@dataclass(frozen=True)
class FigurePanel:
    """One figure: an ``<svg>`` element of this package, put into the page as it is, and what it shows in words.

    ``name``, of letters and hyphens, is unique within the report; ``files`` are data URIs by the suffix of a file.
    """

    name: str
    title: str
    svg: str
    words: str
    files: Mapping[str, str]


def data_uri(text: str, kind: str) -> str:
    """Text as ``data:KIND;base64,...``."""
    return f"data:{kind};base64,{base64.b64encode(text.encode()).decode('ascii')}"


class GalleryPicture(NamedTuple):
    """A picture of a slice: a short caption, what it shows in words, and its data URI."""

    caption: str
    alt: str
    data_uri: str


@dataclass(frozen=True)
class GalleryItem:
    """One slice of the gallery, with the facts printed below its pictures or its layers."""

    file: str
    facts: Sequence[str]
    pictures: Sequence[GalleryPicture] = ()
    layers: Layers | None = None


@dataclass(frozen=True)
class GalleryGroup:
    """Slices of one kind, such as missed COVID; ``words`` introduces them."""

    title: str
    words: str
    items: Sequence[GalleryItem]


@dataclass(frozen=True)
class Report:
    """Everything a report says, in the order in which it says it.

    ``follows`` is the one sentence that the figures come to. ``fit`` says whether a bundle can be relied on for the
    slices, ``fit_words`` the same in a sentence; both are empty for a run. ``segmentation`` compares masks, on scales
    of their own; it is empty where no slice has one.
    """

    title: str
    subtitle: str
    warnings: Sequence[str]
    follows: str
    measures: Sequence[MeasureRow]
    measures_note: str
    fit: Sequence[MeasureRow]
    fit_words: str
    segmentation: Sequence[MeasureRow]
    figures: Sequence[FigurePanel]
    gallery: Sequence[GalleryGroup]
    facts: Sequence[tuple[str, str]]
    command: str


def render(report: Report) -> str:
    """The report as a self-contained HTML page."""
    template = environment().get_template("report.html.j2")
    return template.render(report=report, notice=NOTICE, data_notice=DATA_NOTICE, citation=CITATION)
