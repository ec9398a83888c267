"""HTML pages: one file, no request to anywhere, every text escaped."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import NamedTuple

from jinja2 import Environment, PackageLoader, StrictUndefined

from groundglass import __version__

NOTICE = "Research use only. Not a medical device: no prediction in this report may guide the care of a patient."

DATA_NOTICE = (
    "Slices shown here belong to their publishers, authors and patients: check the terms of the data set before you "
    "pass this report on."
)

CITATION = (
    f"groundglass {__version__}; X. Xu, W. Wang, Q. Xu: Image Classification of Covid-19 Pneumonia Based on "
    "Mask-EfficientNet, 2022."
)
"""How to cite what made a report."""


class GalleryPicture(NamedTuple):
    """A picture of a slice: a short caption, what it shows in words, and its data URI."""

    caption: str
    alt: str
    data_uri: str


class GalleryItem(NamedTuple):
    """A slice or pair of a gallery, with the facts printed below its pictures."""

    file: str
    facts: Sequence[str]
    pictures: Sequence[GalleryPicture]


def data_uri(text: str, kind: str) -> str:
    """Text as ``data:KIND;base64,...``."""
    return f"data:{kind};base64,{base64.b64encode(text.encode()).decode('ascii')}"


def environment() -> Environment:
    """Templates of this package: every text that comes in is escaped, and a missing one is an error."""
    return Environment(
        loader=PackageLoader("groundglass.reporting"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
