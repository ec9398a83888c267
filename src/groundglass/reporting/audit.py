"""The page of an audit: what is wrong with a data set, with the slices side by side."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from groundglass.reporting.html import DATA_NOTICE, GalleryItem
from groundglass.reporting.page import NOTICE, environment

_JPEG_QUALITY = 85


@dataclass(frozen=True)
class Tile:
    """A figure in large print: what it counts, the figure, what it means, and whether it is bad news."""

    title: str
    value: str
    note: str
    alarming: bool = False


@dataclass(frozen=True)
class PairGroup:
    """Pairs of one kind; ``words`` introduces them or says that there are none."""

    title: str
    words: str
    pairs: Sequence[GalleryItem]


@dataclass(frozen=True)
class ShortcutRow:
    """One row of the table of shortcuts.

    Attributes:
        title: what is seen.
        note: what parts the labels best, or what the bounds mean.
        cross_validated: AUC, low and high; None where there is none.
        tested: the same on the test part.
        tested_accuracy: the same for the accuracy on the test part.
        network: whether this is the network that the shortcuts are to be compared with.
    """

    title: str
    note: str
    cross_validated: tuple[float, float | None, float | None] | None
    tested: tuple[float, float | None, float | None] | None
    tested_accuracy: tuple[float, float | None, float | None] | None
    network: bool = False


@dataclass(frozen=True)
class TableSection:
    """A plain table: heading, words above it, names of the columns, rows."""

    title: str
    words: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True)
class AuditReport:
    """Everything the page says, in its order."""

    title: str
    subtitle: str
    warnings: Sequence[str]
    tiles: Sequence[Tile]
    groups: Sequence[PairGroup]
    shortcuts: Sequence[ShortcutRow]
    shortcuts_words: str
    tables: Sequence[TableSection]
    facts: Sequence[tuple[str, str]]
    command: str


def render_audit(report: AuditReport) -> str:
    """The report as a self-contained HTML page."""
    template = environment().get_template("audit.html.j2")
    return template.render(report=report, notice=NOTICE, data_notice=DATA_NOTICE)


def jpeg_data_uri(pixels: NDArray[np.uint8]) -> str:
    """Grey pixels (H, W) as ``data:image/jpeg;base64,...``: a fifth of a PNG, and fine enough to compare."""
    encoded = cv2.imencode(".jpg", pixels, [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY])[1]
    return "data:image/jpeg;base64," + base64.b64encode(encoded.tobytes()).decode("ascii")
