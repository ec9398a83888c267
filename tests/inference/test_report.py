"""The report of predictions: escaped, self-contained, its one script named by hash; in a real browser too."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tracemalloc
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import numpy as np
import pytest

from groundglass.imaging.crop import Preprocessing
from groundglass.imaging.phantom import make_phantom
from groundglass.imaging.slice import CTSlice, Origin
from groundglass.inference.bundle import Bundle
from groundglass.inference.prediction import Evidence, Prediction, Status
from groundglass.inference.report import evidence_picture, picture_name, save_picture, write_report
from groundglass.inference.series import Totals
from groundglass.inference.writers import json_line

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
HOSTILE = "<script>alert('x')</script>\"&\n"
OK = Prediction(
    Status.OK, "d/a.png", "b", None, 0.91234, "COVID", ("COVID",), ("lungs-not-found",), 3, "1.2", -12.5
)
GREY = np.full((4, 8, 3), 90, np.uint8)


def write(
    folder: Path, bundle: Path, predictions: Sequence[Prediction], command: str = "groundglass predict"
) -> Path:
    """The page of predictions, each with a grey picture unless it failed."""
    totals = Totals()
    (folder / "overlays").mkdir(parents=True)
    with (folder / "predictions.jsonl").open("wb") as stream:
        for prediction in predictions:
            totals.add(prediction)
            stream.write(json_line(prediction))
            if prediction.status is not Status.FAILED:
                save_picture(GREY, folder / "overlays" / picture_name(prediction.file, prediction.frame))
    path = folder / "report.html"
    opened = Bundle.open(bundle)
    write_report(path, folder / "predictions.jsonl", folder / "overlays", opened, totals, command)
    return path


def page_of(
    folder: Path, bundle: Path, *predictions: Prediction, command: str = "groundglass predict"
) -> str:
    return write(folder / "out", bundle, predictions, command).read_text(encoding="utf-8")


def test_every_text_is_escaped(tmp_path: Path, tiny_bundle: Path) -> None:
    hostile = replace(OK, file=HOSTILE, label=HOSTILE, flags=(HOSTILE,), series=HOSTILE)
    refused = Prediction(Status.REFUSED, HOSTILE, "b", HOSTILE)
    html = page_of(tmp_path, tiny_bundle, hostile, replace(hostile, frame=4), refused, command=HOSTILE)
    assert html.count("<script") == 1
    assert "alert('x')" not in html
    assert html.count("&lt;script&gt;alert(&#39;x&#39;)&lt;/script&gt;") >= 10


def test_the_policy_allows_this_script_and_no_other(tmp_path: Path, tiny_bundle: Path) -> None:
    html = page_of(tmp_path, tiny_bundle, OK)
    (script,) = re.findall(r"<script>(.*?)</script>", html, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = re.findall(r'Content-Security-Policy" content="([^"]*)"', html)
    assert policy == [
        f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
    ]
    assert "innerHTML" not in script


def test_nothing_is_fetched_from_anywhere(tmp_path: Path, tiny_bundle: Path) -> None:
    html = page_of(tmp_path, tiny_bundle, OK)
    targets = re.findall(r"""(?:src|href)=["']?([^"' >]*)""", html)
    assert targets
    assert all(target.startswith(("data:", "overlays/")) for target in targets)
    assert not re.search(r"https?://|@import|url\(", html)


def test_numbers_and_reasons_are_shown(tmp_path: Path, tiny_bundle: Path) -> None:
    none = replace(OK, file="d/0.png", probability=0.0, label="NonCOVID", position=0.0, frame=0, flags=())
    failed = Prediction(Status.FAILED, "x\\y.png", "b", "truncated")
    outside = Prediction(Status.REFUSED, "d/n.dcm", "b", "outside the lungs: this slice shows hardly any lung", series="1.2")  # fmt: skip
    html = page_of(tmp_path, tiny_bundle, OK, none, failed, outside)
    for text in (
        "0.912", "lungs-not-found", "frame 3, −12.5 mm", 'data-probability="0.91234"',
        'data-probability="0.0"', "frame 0, 0.0 mm", 'data-probability=""', "truncated", "1 file could not be read",
        '<span class="place">d/</span>a.png', '<span class="place">x\\</span>y.png', "Outside the lungs",
        "4 slices: 2 classified (1 COVID, 1 NonCOVID, 0 uncertain), 1 outside the lungs, 1 failed",
        "highest 0.912 at −12.5 mm, lowest 0.000", "A slice is labelled COVID above a probability of 0.600",
        "1 slice is flagged lungs-not-found: no lungs were found",
    ):  # fmt: skip
        assert text in html, text
    assert html.count("<img") == 3, "what failed has no picture"


def test_memory_does_not_grow_with_the_pictures(tmp_path: Path, tiny_bundle: Path) -> None:
    folder = tmp_path / "out"
    path = write(folder, tiny_bundle, [replace(OK, frame=frame) for frame in range(400)])
    noise = np.random.default_rng(0).integers(0, 256, (210, 420, 3), np.uint8)
    save_picture(noise, folder / "noise.png")
    for picture in (folder / "overlays").iterdir():
        picture.unlink()
        picture.hardlink_to(folder / "noise.png")
    totals = Totals()
    tracemalloc.start()
    write_report(
        path, folder / "predictions.jsonl", folder / "overlays", Bundle.open(tiny_bundle), totals, ""
    )
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert path.stat().st_size > 30e6
    assert peak < 15e6


def curve_of(html: str) -> ET.Element:
    (svg,) = re.findall(r'<svg [^>]*class="curve">.*?</svg>', html, re.DOTALL)
    return ET.fromstring(svg)  # noqa: S314 - drawn a moment ago


def test_slices_are_marked_on_the_curve_by_shape_and_colour(tmp_path: Path, tiny_bundle: Path) -> None:
    points = ((-10.0, 0.0, "NonCOVID"), (0.0, 1.0, "COVID"), (30.0, 0.5, "uncertain"))
    predictions = [
        replace(OK, frame=int(at), position=at, probability=p, label=label) for at, p, label in points
    ]
    svg = curve_of(page_of(tmp_path, tiny_bundle, *predictions))
    for shape, colour in (("rect", "var(--other)"), ("circle", "var(--covid)"), ("polygon", "var(--card)")):
        marker = svg.find(shape)
        assert marker is not None
        assert marker.get("fill") == colour
    line = svg.find("polyline")
    assert line is not None
    drawn = [tuple(map(float, point.split(","))) for point in str(line.get("points")).split()]
    assert drawn[1][0] - drawn[0][0] == pytest.approx((drawn[2][0] - drawn[0][0]) / 4, abs=0.2)
    assert drawn[1][1] < drawn[2][1] < drawn[0][1], "higher probabilities stand higher"
    assert {"0.5", "−10", "position towards the head, mm"} <= {text.text for text in svg.iter("text")}


@pytest.mark.parametrize("span", [0, 1e-6, 0.7, 3, 99.5, 1234, 1e7])
def test_every_span_gets_a_few_round_ticks(tmp_path: Path, tiny_bundle: Path, span: float) -> None:
    ends = [replace(OK, frame=number, position=at) for number, at in enumerate((-span / 3, 2 * span / 3))]
    html = page_of(tmp_path, tiny_bundle, *ends)
    assert "nan" not in str(re.findall(r'class="curve">.*?</svg>', html, re.DOTALL))
    assert 3 + (2 if span else 1) + 1 <= len(list(curve_of(html).iter("text"))) <= 3 + 9 + 1


def test_one_slice_is_no_curve_and_long_series_stay_small(tmp_path: Path, tiny_bundle: Path) -> None:
    assert 'class="curve"' not in page_of(tmp_path / "one", tiny_bundle, OK)
    many = [replace(OK, frame=number, position=float(number)) for number in range(400)]
    svg = curve_of(page_of(tmp_path / "many", tiny_bundle, *many))
    assert svg.find("circle") is None, "markers would cover each other"


def evidence(pixels: np.ndarray, activation_map: np.ndarray | None) -> Evidence:
    return Evidence(
        CTSlice(pixels, Origin("x", "PNG")), Preprocessing(size=64).apply(pixels), activation_map, None
    )


@pytest.fixture(scope="module")
def pixels() -> np.ndarray:
    return make_phantom(np.random.default_rng(0), 0.5, 0.5, size=128).slice.pixels


def test_slice_and_map_stand_side_by_side(pixels: np.ndarray) -> None:
    picture = evidence_picture(evidence(pixels, np.ones((4, 4), np.float32)))
    assert picture.shape == (320, 646, 3)
    orange = picture[160, 500].astype(int)
    assert orange[0] > orange[2] + 30
    plain = evidence_picture(evidence(pixels, None))
    assert plain.shape == (320, 646, 3)
    cropped = plain[:, 330:].astype(int)
    assert (cropped.max(axis=-1) == cropped.min(axis=-1)).all(), "a refused slice has no map"


@pytest.mark.parametrize("shape", [(1, 1), (1, 3000), (3000, 1), (40, 2000), (2000, 40)])
def test_slices_of_any_shape_can_be_shown(shape: tuple[int, int]) -> None:
    picture = evidence_picture(evidence(np.full(shape, 90, np.uint8), np.ones((2, 2), np.float32)))
    assert picture.shape[0] == 320
    assert picture.shape[1] <= 2 * 320 + 6 + 320


def test_names_follow_from_file_and_frame_and_are_never_shared() -> None:
    names = [
        picture_name(file, frame)
        for file in (
            "a/1.png",
            "b/1.png",
            "a/1.dcm",
            "s.zip!a/1.png",
            "<é>\n\udcff.png",
            "...",
            "",
            "x" * 5000,
        )
        for frame in (None, 0, 1)
    ]
    assert len(set(names)) == len(names)
    assert picture_name("a/1.png", None) == picture_name("a/1.png", None)
    assert picture_name("\udcff.png", 1) == picture_name(r"\udcff.png", 1), (
        "as predictions that are read again say"
    )
    for name in names:
        assert name.isascii()
        assert name.endswith(".png")
        assert len(name) < 120
        assert not set(name) - set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-")
        assert not name.startswith((".", "-", "_"))


def test_a_saved_picture_carries_no_metadata(tmp_path: Path, pixels: np.ndarray) -> None:
    path = tmp_path / "x.png"
    save_picture(evidence_picture(evidence(pixels, None)), path)
    content = path.read_bytes()
    kinds, position = [], 8
    while position < len(content):
        length = int.from_bytes(content[position : position + 4], "big")
        kinds.append(content[position + 4 : position + 8])
        position += 12 + length
    assert set(kinds) == {b"IHDR", b"IDAT", b"IEND"}


@pytest.mark.parametrize("content", [b"", b"no picture", b"\x89PNG\r\n\x1a\n"])
def test_a_damaged_picture_is_left_out(tmp_path: Path, tiny_bundle: Path, content: bytes) -> None:
    folder = tmp_path / "out"
    path = write(folder, tiny_bundle, [OK])
    (folder / "overlays" / picture_name(OK.file, OK.frame)).write_bytes(content)
    write_report(
        path, folder / "predictions.jsonl", folder / "overlays", Bundle.open(tiny_bundle), Totals(), ""
    )
    assert "<img" not in path.read_text(encoding="utf-8")


in_a_browser = pytest.mark.skipif(CHROMIUM is None or os.name != "posix", reason="no Chromium here")

SLICES = [
    replace(
        OK, file="d/slice10.dcm", frame=None, position=20.0, series="1.1", probability=0.3, label="NonCOVID"
    ),
    replace(OK, file="d/slice9.dcm", frame=None, position=-10.0, series="1.1", probability=0.9),
    replace(OK, file="e/a.nii", position=5.0, frame=0, series=None, probability=0.5, label="uncertain"),
    replace(OK, file="e/a.nii", position=-3.5, frame=1, series=None, probability=0.05, label="NonCOVID"),
    Prediction(Status.REFUSED, "<b>x</b>.png", "b", "a photograph"),
    Prediction(Status.FAILED, "c.png", "b", "empty"),
]


LAUNCH = """
import fcntl, os, sys
# The protocol's descriptors are 3 and 4. Out of the way first, so that neither is overwritten.
pipes = [fcntl.fcntl(int(number), fcntl.F_DUPFD, 100) for number in sys.argv[1:3]]
for number, pipe in zip((3, 4), pipes):
    os.dup2(pipe, number)
os.execv(sys.argv[3], sys.argv[3:])
"""


class Browser:
    """Chromium without a window, asked through a pair of pipes (the DevTools protocol, no further package)."""

    def __init__(self, profile: Path) -> None:
        assert CHROMIUM is not None
        read_theirs, self._write = os.pipe()
        self._read, write_theirs = os.pipe()
        options = [
            "--headless=new",
            "--no-sandbox",
            "--disable-gpu",
            "--remote-debugging-pipe",
            "--no-first-run",
        ]
        self._process = subprocess.Popen(
            [
                *(sys.executable, "-c", LAUNCH, str(read_theirs), str(write_theirs)),
                *(CHROMIUM, *options, f"--user-data-dir={profile}", "about:blank"),
            ],
            pass_fds=(read_theirs, write_theirs),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(read_theirs)
        os.close(write_theirs)
        self._buffer, self._number = b"", 0
        self.events: list[dict[str, Any]] = []
        target = next(
            each for each in self.ask("Target.getTargets")["targetInfos"] if each["type"] == "page"
        )["targetId"]
        self._session: str | None = self.ask("Target.attachToTarget", targetId=target, flatten=True)[
            "sessionId"
        ]
        for domain in ("Page", "Runtime", "Log"):
            self.ask(f"{domain}.enable")

    def ask(self, method: str, **parameters: Any) -> dict[str, Any]:
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        if getattr(self, "_session", None):
            message["sessionId"] = self._session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._next()
            if answer.get("id") == self._number:
                assert "error" not in answer, answer
                return dict(answer["result"])
            self.events.append(answer)

    def _next(self) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            chunk = os.read(self._read, 2**16)
            assert chunk, "the browser went away"
            self._buffer += chunk
        message, self._buffer = self._buffer.split(b"\0", 1)
        return dict(json.loads(message))

    def open(self, path: Path) -> None:
        self.ask("Page.navigate", url=path.as_uri())
        while self.run("document.readyState") != "complete":
            pass

    def run(self, expression: str) -> Any:
        result = self.ask("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    def close(self) -> None:
        self._process.terminate()
        self._process.wait(timeout=30)
        os.close(self._read)
        os.close(self._write)


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory, tiny_bundle: Path) -> Path:
    return write(tmp_path_factory.mktemp("page") / "out", tiny_bundle, SLICES)


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    browser = Browser(tmp_path_factory.mktemp("profile"))
    yield browser
    browser.close()


@pytest.fixture
def opened(browser: Browser, page: Path) -> Browser:
    browser.events.clear()
    browser.open(page)
    return browser


def order(browser: Browser) -> list[int]:
    """Numbers of the slices as they stand on the page, those hidden left out."""
    cards = "[...document.querySelectorAll('#gallery > li')].filter(card => card.offsetParent !== null)"
    return list(browser.run(f"{cards}.map(card => Number(card.dataset.order))"))


def press(browser: Browser, key: str) -> list[int]:
    browser.run(f"document.querySelector('button[data-sort={key}]').click()")
    return order(browser)


def choose(browser: Browser, name: str, value: str) -> list[int]:
    browser.run(
        f"(() => {{ const select = document.querySelector('select[name={name}]'); select.value = '{value}';"
        "select.dispatchEvent(new Event('change')); })()"
    )
    return order(browser)


def complaints(browser: Browser) -> list[dict[str, Any]]:
    browser.run("1")
    kinds = {"Runtime.exceptionThrown", "Log.entryAdded"}
    return [event for event in browser.events if event.get("method") in kinds]


@pytest.mark.slow
@in_a_browser
def test_the_page_opens_in_file_order_without_a_complaint(opened: Browser) -> None:
    assert order(opened) == [0, 1, 2, 3, 4, 5]
    assert opened.run("document.getElementById('toolbar').offsetParent !== null"), "the script ran"
    assert "6 of 6 slices" in opened.run("document.getElementById('shown').textContent")
    assert (
        opened.run(
            "Promise.all([...document.images].map(image => { image.loading = 'eager'; return image.decode(); }))"
            ".then(decoded => decoded.length)"
        )
        == 5
    )
    assert complaints(opened) == []


@pytest.mark.slow
@in_a_browser
def test_sorting_both_ways(opened: Browser) -> None:
    assert press(opened, "probability") == [1, 2, 0, 3, 4, 5], "highest first"
    assert press(opened, "probability") == [3, 0, 2, 1, 4, 5], "what has none stays last"
    assert press(opened, "file") == [4, 5, 1, 0, 2, 3], "9 before 10"
    assert press(opened, "file") == [2, 3, 0, 1, 5, 4]
    assert press(opened, "position") == [1, 0, 3, 2, 4, 5], "within each series"
    assert press(opened, "label") == [1, 2, 0, 3, 4, 5]
    assert press(opened, "status") == [5, 4, 0, 1, 2, 3]
    assert press(opened, "order") == [0, 1, 2, 3, 4, 5]
    assert complaints(opened) == []


@pytest.mark.slow
@in_a_browser
def test_what_is_sorted_by_is_said(opened: Browser) -> None:
    press(opened, "probability")
    pressed = opened.run(
        "[...document.querySelectorAll('button[aria-pressed=true]')].map(button => button.textContent)"
    )
    assert pressed == ["probability ↓"]
    assert "by probability, descending" in opened.run("document.getElementById('shown').textContent")
    assert opened.run("document.getElementById('shown').getAttribute('aria-live')") == "polite"


@pytest.mark.slow
@in_a_browser
def test_filters_work_together(opened: Browser) -> None:
    assert choose(opened, "status", "ok") == [0, 1, 2, 3]
    assert choose(opened, "label", "NonCOVID") == [0, 3]
    assert choose(opened, "series", "2") == [3]
    assert "1 of 6 slices" in opened.run("document.getElementById('shown').textContent")
    assert choose(opened, "label", "COVID") == []
    choose(opened, "status", "")
    choose(opened, "series", "")
    assert choose(opened, "label", "") == [0, 1, 2, 3, 4, 5]
    assert choose(opened, "status", "failed") == [5]


@pytest.mark.slow
@in_a_browser
def test_without_a_script_the_slices_stand_in_file_order(browser: Browser, page: Path) -> None:
    browser.ask("Emulation.setScriptExecutionDisabled", value=True)
    try:
        browser.open(page)
        assert order(browser) == [0, 1, 2, 3, 4, 5]
        assert not browser.run("document.getElementById('toolbar').offsetParent !== null")
    finally:
        browser.ask("Emulation.setScriptExecutionDisabled", value=False)


@pytest.mark.slow
@in_a_browser
def test_another_script_does_not_run(browser: Browser, page: Path, tmp_path: Path) -> None:
    """Someone who smuggles a script past the escaping meets the policy."""
    text = page.read_text(encoding="utf-8")
    smuggled = tmp_path / "smuggled.html"
    smuggled.write_text(
        text.replace("<main>", "<main><script>window.smuggled = 1</script>"), encoding="utf-8"
    )
    browser.events.clear()
    browser.open(smuggled)
    assert browser.run("window.smuggled") is None
    assert complaints(browser), "the browser says that it refused"


@pytest.mark.parametrize("width", [320, 768, 1280])
@pytest.mark.slow
@in_a_browser
def test_nothing_reaches_beyond_the_screen(opened: Browser, width: int) -> None:
    opened.ask(
        "Emulation.setDeviceMetricsOverride", width=width, height=800, deviceScaleFactor=1, mobile=width < 500
    )
    assert opened.run("document.documentElement.scrollWidth") <= width


@pytest.mark.slow
@in_a_browser
def test_every_control_has_a_name(opened: Browser) -> None:
    opened.ask("Accessibility.enable")
    nodes = opened.ask("Accessibility.getFullAXTree")["nodes"]
    named = {
        node["role"]["value"]: []
        for node in nodes
        if node.get("role", {}).get("value") in {"button", "combobox", "image"}
    }
    for node in nodes:
        role = node.get("role", {}).get("value")
        if role in named and not node.get("ignored"):
            named[role].append(node.get("name", {}).get("value", ""))
    assert len(named["button"]) == 6
    assert len(named["combobox"]) == 3
    assert len(named["image"]) >= 5 + 2
    assert all(name for names in named.values() for name in names)
