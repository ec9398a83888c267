"""The model card of a bundle: what it is, what it learned from, how good it is, where it ends."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined


def render_card(fields: Mapping[str, Any], contents: Mapping[str, bytes]) -> str:
    """The card as Markdown, every figure taken from what was measured at export.

    Args:
        fields: of ``bundle.json``.
        contents: the bundle's other files by name.
    """
    environment = Environment(
        loader=PackageLoader("groundglass.reporting"),
        autoescape=False,  # noqa: S701 - Markdown, of figures and names that export wrote
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["figure"] = _figure
    environment.filters["interval"] = _interval
    environment.filters["percent"] = lambda value: "–" if value is None else f"{value:.0%}"
    sizes = {name: len(content) for name, content in contents.items()}
    return environment.get_template("model_card.md.j2").render(**fields, sizes=sizes)


def _figure(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def _interval(measure: Mapping[str, float | None]) -> str:
    """``0.832 (0.781–0.880)``."""
    if measure["low"] is None or measure["high"] is None:
        return _figure(measure["value"])
    return f"{_figure(measure['value'])} ({_figure(measure['low'])}–{_figure(measure['high'])})"
