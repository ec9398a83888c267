"""HTML pages: one file, no request to anywhere, every text escaped."""

from __future__ import annotations

from jinja2 import Environment, PackageLoader, StrictUndefined

from groundglass import __version__

NOTICE = (
    "Research use only. Not a medical device: no prediction in this report may guide the care of a patient."
)

CITATION = (
    f"groundglass {__version__}; X. Xu, W. Wang, Q. Xu: Image Classification of Covid-19 Pneumonia Based on "
    "Mask-EfficientNet, 2022."
)
"""How to cite what made a report."""


def environment() -> Environment:
    """Templates of this package: every text that comes in is escaped, and a missing one is an error."""
    return Environment(
        loader=PackageLoader("groundglass.reporting"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
