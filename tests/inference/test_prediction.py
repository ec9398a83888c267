"""The page of a prediction: escaped, self-contained, its one script named by hash, written in pieces."""

from __future__ import annotations

import base64
import hashlib
import io
import re
import tracemalloc
from collections.abc import Iterator
from dataclasses import replace
from importlib.resources import files

from groundglass.inference.report import PredictionReport, SeriesCurve, SeriesPanel, SliceCard, Tile, render

HOSTILE = "<script>alert('x')</script>\"&\n"
CURVE = SeriesCurve([0, 1], [0.2, 0.8], ["NonCOVID", "COVID"], "mm", "position, mm")
CARD = SliceCard(
    0, "d/a.png", "ok", "COVID", 0.91234, -12.5, 3, 1, "lungs-not-found", "data:image/png;base64,AAAA", "a slice",
    "overlays/a.png",
)  # fmt: skip
REPORT = PredictionReport(
    title="title",
    subtitle="subtitle",
    warnings=(),
    tiles=[Tile("Slices", "1,234", "a note")],
    label_note="about labels",
    series=[SeriesPanel("series", "25 slices", "1.2.3", 0.41666, "mean of 5", CURVE)],
    series_note="about the score",
    slices=[CARD],
    slices_note="about the slices",
    facts=[("Model", "tiny")],
    command="groundglass predict",
)


def page(report: PredictionReport) -> str:
    stream = io.StringIO()
    render(report, stream)
    return stream.getvalue()


def test_every_text_is_escaped() -> None:
    html = page(
        PredictionReport(
            title=HOSTILE,
            subtitle=HOSTILE,
            warnings=[HOSTILE],
            tiles=[Tile(HOSTILE, HOSTILE, HOSTILE)],
            label_note=HOSTILE,
            series=[SeriesPanel(HOSTILE, HOSTILE, HOSTILE, None, HOSTILE, replace(CURVE, at=[0], label=["x"]))] * 2,
            series_note=HOSTILE,
            slices=[replace(CARD, file=HOSTILE, label=HOSTILE, note=HOSTILE, alt=HOSTILE, link=HOSTILE, status=HOSTILE)],
            slices_note=HOSTILE,
            facts=[(HOSTILE, HOSTILE)],
            command=HOSTILE,
        )
    )  # fmt: skip
    assert html.count("<script") == 1
    assert "alert('x')" not in html
    assert html.count("&lt;script&gt;alert(&#39;x&#39;)&lt;/script&gt;") >= 20
    assert '"&\n' not in html.replace("&#34;", "")


def test_the_policy_allows_this_script_and_no_other() -> None:
    html = page(REPORT)
    script = re.findall(r"<script>(.*?)</script>", html, re.DOTALL)
    assert len(script) == 1
    digest = base64.b64encode(hashlib.sha256(script[0].encode()).digest()).decode()
    policy = re.findall(r'Content-Security-Policy" content="([^"]*)"', html)
    assert policy == [
        f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
    ]


def test_nothing_is_fetched_from_anywhere() -> None:
    html = page(REPORT)
    targets = re.findall(r"""(?:src|href)=["']?([^"' >]*)""", html)
    assert targets
    assert all(target.startswith(("data:", "overlays/")) for target in targets)
    assert not re.search(r"https?://|@import|url\(", html)


def test_numbers_and_facts_are_shown() -> None:
    html = page(REPORT)
    for text in (
        "0.912",
        "0.417",
        "1,234",
        "lungs-not-found",
        "−12.5 mm",
        "frame 3",
        'data-probability="0.91234"',
    ):
        assert text in html, text
    assert "0.800 at 1 mm" in html


def test_a_slice_that_was_not_classified_says_why() -> None:
    failed = replace(
        CARD, status="failed", label=None, probability=None, picture=None, link=None, note="truncated"
    )
    html = page(replace(REPORT, slices=[failed]))
    assert "truncated" in html
    assert "<img" not in html
    assert 'data-probability=""' in html
    assert "probability of COVID <strong>" not in html


def test_a_probability_of_nothing_is_a_probability() -> None:
    html = page(replace(REPORT, slices=[replace(CARD, probability=0.0, position=0.0, frame=0)]))
    assert 'data-probability="0.0"' in html
    assert "frame 0, 0.0 mm" in html


def test_name_and_folder_are_told_apart() -> None:
    for file, place, name in (
        ("a/b.png", "a/", "b.png"),
        ("b.png", "", "b.png"),
        ("x\\y.png", "x\\", "y.png"),
    ):
        card = replace(CARD, file=file)
        assert (card.place, card.name) == (place, name)


def test_slices_are_asked_for_as_they_are_written() -> None:
    written = io.StringIO()
    seen = []

    def slices() -> Iterator[SliceCard]:
        for order in range(2000):
            seen.append(written.tell())
            yield replace(CARD, order=order, picture="data:," + "A" * 20_000)

    tracemalloc.start()
    render(replace(REPORT, slices=slices()), _Nowhere())
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(seen) == 2000
    assert peak < 12_000_000, "40 MB of pictures pass through"


class _Nowhere(io.StringIO):
    def write(self, text: str) -> int:
        return len(text)


def test_the_script_is_ascii_free_of_what_could_end_it() -> None:
    script = (files("groundglass.reporting") / "templates" / "gallery.js").read_text(encoding="utf-8")
    assert "</" not in script
    assert "\r" not in script
    assert "innerHTML" not in script
