"""The template of an evaluation's report: its texts are escaped, and it says its numbers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from groundglass.reporting.html import CITATION
from groundglass.reporting.overlay import Layers
from groundglass.reporting.report import FigurePanel, GalleryGroup, GalleryItem, MeasureRow, Report, render


def rendered(text: str, warnings: Sequence[str] = ()) -> str:
    """The page of a report in which every text is the same."""
    row, error = MeasureRow(text, 0.83211, 0.7, 0.9, text, headline=True), MeasureRow(text, 1.2, 1, 1.7)
    gallery = GalleryGroup(text, text, [GalleryItem(text, [text], layers=Layers(1, 1, "", "", ""))])
    figure = FigurePanel("name", text, "<svg></svg>", text, {"csv": text})
    report = Report(
        text,
        text,
        warnings,
        text,
        [row],
        text,
        [error],
        text,
        [row],
        [figure],
        [gallery],
        [(text, text)],
        text,
    )
    return render(report)


def test_every_text_is_escaped() -> None:
    html = rendered("<b onclick='x'>&</b>", ["<b onclick='x'>&</b>"])
    assert "<b " not in html
    assert html.count("&lt;b onclick=&#39;x&#39;&gt;&amp;&lt;/b&gt;") >= 17


def test_a_page_says_its_numbers_makes_no_requests_and_fits_phones() -> None:
    html = rendered("plain")
    for shown in ("0.832", "0.700–0.900", "1.0–1.7", "width=device-width", "scheme: dark", CITATION):
        assert shown in html
    readme = Path(__file__).parents[2].joinpath("README.md").read_text(encoding="utf-8")
    assert "Cite [CITATION.cff]" in readme
    assert "default-src 'none'; img-src data:; style-src 'unsafe-inline'" in html
    assert "Read these figures with care" not in html
    html = rendered("plain", ["mind the gap"])
    assert html.index("Read these figures with care") < html.index("mind the gap") < html.index("0.832")
