"""The report of predictions: what it says and shows, escaped and self-contained; in a real browser too."""

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.conftest import Page, page_faults

from groundglass.imaging.crop import Preprocessing
from groundglass.imaging.phantom import make_phantom
from groundglass.imaging.slice import CTSlice, Origin
from groundglass.inference.bundle import Bundle
from groundglass.inference.calibration import Conformal
from groundglass.inference.prediction import COPY, Evidence, Prediction, Status
from groundglass.inference.report import evidence_picture, picture_stem, save_picture, write_report
from groundglass.inference.series import Totals
from groundglass.inference.writers import json_line
from groundglass.reporting.overlay import LESION, OUTLINE

HOSTILE = "<script>alert('x')</script>\"&\n"
Write = Callable[..., Page]


def evidence(pixels: np.ndarray, lesion_map: np.ndarray) -> Evidence:
    return Evidence(CTSlice(pixels, Origin("x", "PNG")), Preprocessing(size=64).apply(pixels, pixels < 120), lesion_map)


PHANTOM = make_phantom(np.random.default_rng(0), 0.5, 0.5, size=128).slice.pixels
SEEN = evidence(PHANTOM, np.tile(np.float32([9, -9]), (4, 2)))
OK = Prediction(Status.OK, "p.png", "b", None, 0.91234, "COVID", ("COVID",), ("low-resolution",))
SERIES = [
    replace(OK, file=f"d/{at}.dcm", position=10.0 * at, series="1.1", probability=value, label=label)
    for at, value, label in (
        (0, 0.1, "NonCOVID"), (1, 0.7, "COVID"), (2, 0.5, "uncertain"), (4, 0.9, "COVID"), (3, 0.2, "NonCOVID"),
    )
]  # fmt: skip
NECK = Prediction(Status.REFUSED, "d/n.dcm", "b", "outside the lungs: hardly any", series="1.1", position=90)
COLOUR = Prediction(Status.REFUSED, "c.png", "b", "a picture in colour, not a CT slice")
REFUSED = [Prediction(Status.REFUSED, f"r/{n}.png", "b", f"blank: one grey ({n}.5 %)") for n in range(5)]


@pytest.fixture
def write(tmp_path: Path, tiny_bundle: Path) -> Write:
    """Writes the page of predictions, each with the picture of a phantom unless it failed, has one or is in colour."""
    (tmp_path / "overlays").mkdir()

    def write(*predictions: Prediction, command: str = "groundglass") -> Page:
        totals = Totals(Conformal(coverage=0.9, quantiles={"COVID": 0.4, "NonCOVID": 0.4}))
        save_picture(SEEN, tmp_path / "picture.svg")
        with (tmp_path / "predictions.jsonl").open("wb") as stream:
            for prediction in predictions:
                totals.add(prediction)
                picture = tmp_path / "overlays" / f"{picture_stem(prediction.file, prediction.frame)}.svg"
                shown = prediction.status is not Status.FAILED and prediction != COLOUR
                stream.write(json_line(replace(prediction, overlay=f"overlays/{picture.name}" if shown else None)))
                if shown and not picture.exists():
                    picture.hardlink_to(tmp_path / "picture.svg")
        places = (tmp_path / "report.html", tmp_path / "predictions.jsonl", tmp_path / "overlays")
        write_report(*places, Bundle.open(tiny_bundle), totals, command)
        return Page(places[0].read_text(encoding="utf-8"))

    return write


def slices(page: Page) -> list[int]:
    return [int(each[1:]) for each in page.parts if re.fullmatch(r"s\d+", each)]


def test_a_series_has_its_answer_three_slices_and_the_rest_in_order(write: Write, tmp_path: Path) -> None:
    page = write(*SERIES, NECK, COLOUR, Prediction(Status.FAILED, "c/x.png", "b", "truncated"))
    order = "with care", 'id="series"', "0 0 512 220", 'id="s3"', 'id="refused"', 'id="made"'
    assert sorted(order, key=page.html.index) == list(order)
    assert slices(page) == [3, 1, 2, 0, 4, 5, 6], "by probability, then 0, 30 and 90 mm, and what is no series"
    for part, said in (
        ("series-1", "Label COVID of the series"),
        ("series-1", "Series score 0.700 mean of the 3 highest probabilities; 0.316–"),
        ("series-1", "6 slices: 5 classified (2 COVID, 2 NonCOVID, 1 uncertain), 1 outside the lungs"),
        ("series-1", "highest 0.900 at 40 mm, lowest 0.100. Grey band: uncertain. A slice on the curve leads to its"),
        ("lungs-3", "COVID 0.900 at 40.0 mm"),  # below the toggles
        ("s5", "90.0 mm outside the lungs"),
        ("", "1 file could not be read"),
        ("refused", "failed: truncated 1 x.png"),
    ):
        assert said in page.parts[part]
    links = {attributes.get("href") for tag, attributes in page.tags if tag == "a"}
    assert {f"#s{number}" for number in range(5)} <= links, "from the curve"
    pictures = [tmp_path / str(link) for link in links if not str(link).startswith("#")]
    assert (len(pictures), all(path.is_file() for path in pictures)) == (6, True)


def test_series_are_listed_and_those_without_a_slice_summed_up(write: Write) -> None:
    alone, abdomen = replace(SERIES[1], series="1.7", opacity=12.0), replace(NECK, series="1.8")
    said = write(alone, *SERIES, abdomen).parts
    assert " ".join(said["series"].partition("Slices")[2].split()) == "1. d COVID 0.700 12.0 % 1 2. d COVID 0.700 – 5"
    assert "1 of 3 series are not shown: those without a classified slice" in said["series"]
    assert "outside the lungs: hardly any 1 n.dcm" in said["refused"]


def test_loose_slices_stand_by_probability_and_refusals_are_summed_up(write: Write) -> None:
    loose = [replace(OK, file=f"p/{n}.png", probability=n / 9) for n in range(6)]
    copies = [Prediction(Status.REFUSED, f"k/{n}.png", "b", f"{COPY} of {n}.png") for n in range(60)]
    broken = Prediction(Status.FAILED, "c/x.png", "b", "truncated")
    page = write(*loose, *REFUSED, *copies, broken, command="groundglass predict p")
    assert slices(page) == [5, 4, 3, 2, 1, 0, 6, 7, 8, 9, 10]
    for said in ("blank: one grey 5 0.png , 1.png , 2.png", "a copy 60 0.png , 1.png , 2.png", "failed: truncated 1"):
        assert said in page.parts["refused"]
    assert "series" not in page.parts
    told = "Version groundglass |Bundle |Written 20|Command groundglass predict p|Mask-EfficientNet, 2022"
    for said in told.split("|"):
        assert said in page.parts["made"]


def test_every_text_is_escaped_and_nothing_is_run_or_fetched(write: Write) -> None:
    hostile = replace(OK, file=HOSTILE, label=HOSTILE, flags=(HOSTILE,), series=HOSTILE)
    refused = Prediction(Status.REFUSED, HOSTILE, "b", HOSTILE)
    html = write(hostile, replace(hostile, frame=4), refused, command=HOSTILE).html
    assert "<script" not in html
    assert html.count("&lt;script&gt;alert(") >= 8
    policy = re.findall(r'Content-Security-Policy" content="([^"]*)"', html)
    assert policy == ["default-src 'none'; img-src data:; style-src 'unsafe-inline'"]
    targets = re.findall(r"""(?:src|href)=["']?([^"' >]*)""", html)
    assert all(target.startswith(("data:", "overlays/", "#")) for target in targets)
    assert not re.search(r"https?://|@import|url\(", html)


def test_one_slice_is_no_curve_and_long_series_stay_small(write: Write) -> None:
    one = SERIES[0]
    assert 'class="curve"' not in write(one).html
    page = write(*(replace(one, frame=number, position=float(number)) for number in range(2400)))
    assert not [each for each in ("<circle", "leads to its") if each in page.html], "markers would cover each other"
    assert len(slices(page)) == 3 + 799
    assert "1,598 more slices lie between these" in page.text


def test_a_slice_stands_beside_the_same_with_its_outlines() -> None:
    odd = [evidence(np.full(shape, 90, np.uint8), np.ones((2, 2))) for shape in ((1, 1), (1, 3000), (2000, 40))]
    for each in (*odd, SEEN):
        picture = evidence_picture(each).astype(int)
        assert max(picture.shape[0], (picture.shape[1] - 6) / 2) == 320
        plain, drawn = np.split(picture, [picture.shape[1] // 2 - 3], axis=1)
        assert (plain.max(axis=-1) == plain.min(axis=-1)).all()
    for colour in (LESION, OUTLINE):
        assert (np.abs(drawn - colour).max(axis=-1) < 40).sum() > 100


@pytest.mark.parametrize("content", ["", "no picture", '<svg onload="x()"></svg>'])
def test_a_damaged_picture_is_left_out(write: Write, tmp_path: Path, content: str) -> None:
    (tmp_path / "overlays" / f"{picture_stem(OK.file, OK.frame)}.svg").write_text(content)
    assert "<image" not in write(OK).html


@pytest.mark.slow
@pytest.mark.parametrize("series", [1, None, 4], ids=["a series", "loose slices", "four series"])
def test_in_a_browser(chromium: tuple[Any, Path], write: Write, tmp_path: Path, series: int | None) -> None:
    """Forty slices are ten screens on a phone, and outlines are toggled in place."""
    browser, _ = chromium
    browser.get_log("browser")
    places = [{"position": n * 5.0, "series": series and f"1.{n % series}"} for n in range(40)]
    write(*(replace(OK, file=f"{n}.dcm", **place) for n, place in enumerate(places)), *REFUSED)

    def ask(script: str) -> object:
        return browser.execute_script(f"return {script}")

    for width, height in ((390, 844), (1440, 900)):
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500}
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        browser.get((tmp_path / "report.html").as_uri())
        assert ask("document.documentElement.scrollHeight") <= 10 * height
        assert ask("document.documentElement.scrollWidth") <= width
        assert page_faults(browser) == []
    box = "document.querySelector('.viewer .slice-picture').getBoundingClientRect()"
    assert ask(f"[{box}.width, {box}.height]") == [512, 512]
    for layer in ("lesions", "lungs"):
        shown = f"getComputedStyle(document.querySelector('.viewer .{layer}')).display"
        assert ask(shown) == "inline"
        browser.find_element("css selector", f"label[for^={layer}-]").click()
        assert ask(shown) == "none"
        assert ask(f"document.querySelectorAll('.viewer .{layer}').length") == 3 * (series or 1)
    assert browser.get_log("browser") == []
