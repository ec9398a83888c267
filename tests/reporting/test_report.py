"""The template of an evaluation's report: escaping, order, and what is left out."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from groundglass.reporting.html import CITATION
from groundglass.reporting.overlay import Layers
from groundglass.reporting.report import FigurePanel, GalleryGroup, GalleryItem, MeasureRow, Report, render

REPORT = Report(
    title="title",
    subtitle="subtitle",
    warnings=(),
    measures=[
        MeasureRow("Accuracy", 0.83211, 0.7, 0.9, "a note", headline=True),
        MeasureRow("Error", 1.2, 1, 1.7),
    ],
    measures_note="about the measures",
    follows="what follows",
    fit=[],
    fit_words="",
    segmentation=[],
    figures=[],
    gallery=[],
    facts=[("Recipe", "name")],
    command="groundglass evaluate",
)
HOSTILE = "<b onclick='x'>&</b>"


def test_every_text_is_escaped() -> None:
    row = MeasureRow(HOSTILE, None, None, None, HOSTILE, headline=True)
    gallery = [
        GalleryGroup(HOSTILE, HOSTILE, [GalleryItem(HOSTILE, [HOSTILE], layers=Layers(1, 1, "", "", ""))])
    ]
    figures = [FigurePanel("name", HOSTILE, "<svg></svg>", HOSTILE, {"csv": HOSTILE})]
    html = render(
        Report(
            HOSTILE, HOSTILE, [HOSTILE], HOSTILE, [row], HOSTILE, [row], HOSTILE, [row], figures, gallery,
            [(HOSTILE, HOSTILE)], HOSTILE,
        )
    )  # fmt: skip
    assert "<b " not in html
    assert html.count("&lt;b onclick=&#39;x&#39;&gt;&amp;&lt;/b&gt;") >= 17


def test_a_page_says_its_numbers_makes_no_requests_and_fits_phones() -> None:
    html = render(REPORT)
    shown = "0.832", "0.700–0.900", "1.0–1.7", "a note", "what follows", "width=device-width", "scheme: dark"
    assert all(each in html for each in (*shown, CITATION))
    readme = Path(__file__).parents[2].joinpath("README.md").read_text(encoding="utf-8")
    assert "Cite [CITATION.cff]" in readme
    assert "default-src 'none'; img-src data:; style-src 'unsafe-inline'" in html
    assert "Read these figures with care" not in html
    html = render(replace(REPORT, warnings=["mind the gap"]))
    assert html.index("Read these figures with care") < html.index("mind the gap") < html.index("0.832")
