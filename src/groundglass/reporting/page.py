"""What every page has in common: the notice at its top and the way its templates are filled."""

from __future__ import annotations

from jinja2 import Environment, PackageLoader, StrictUndefined

NOTICE = "Research use only. Not a medical device: no finding in this report may guide the care of a patient."


def environment() -> Environment:
    """Templates of this package: every text that comes in is escaped, and a missing one is an error."""
    return Environment(
        loader=PackageLoader("groundglass.reporting"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
