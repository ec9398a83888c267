"""HTML pages: one file, no request to anywhere, every text escaped."""

from __future__ import annotations

import base64

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


def data_uri(text: str, kind: str) -> str:
    """Text as ``data:KIND;base64,...``."""
    return f"data:{kind};base64,{base64.b64encode(text.encode()).decode('ascii')}"


def environment(*, html: bool = True) -> Environment:
    """Templates of this package: every text that comes into ``html`` is escaped, and a missing one is an error."""
    return Environment(
        loader=PackageLoader("groundglass.reporting"),
        autoescape=html,  # noqa: S701 - off for Markdown alone, of what the package itself wrote
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
