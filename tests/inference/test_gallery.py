"""The gallery of a prediction's page in a real browser: sorting, filtering, and nothing the policy forbids."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from groundglass.inference.report import PredictionReport, SeriesCurve, SeriesPanel, SliceCard, Tile, render
from groundglass.reporting.overlay import png_data_uri

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None or os.name != "posix", reason="no Chromium here"),
]

GREY = png_data_uri(np.full((4, 8, 3), 90, np.uint8))
BASE = SliceCard(
    0, "", "ok", "NonCOVID", 0.1, None, None, None, "", GREY, "a slice", None
)  # fmt: skip
CARDS = [
    replace(BASE, file="d/slice10.dcm", position=20.0, series=1, probability=0.3),
    replace(BASE, file="d/slice9.dcm", position=-10.0, series=1, probability=0.9, label="COVID"),
    replace(BASE, file="e/a.nii", position=5.0, frame=0, series=2, probability=0.5, label="uncertain"),
    replace(BASE, file="e/a.nii", position=-3.5, frame=1, series=2, probability=0.05),
    replace(BASE, file="<b>x</b>.png", status="refused", label=None, probability=None, note="a photograph"),
    replace(BASE, file="c.png", status="failed", label=None, probability=None, note="empty", picture=None),
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
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    curve = SeriesCurve([0, 1], [0.2, 0.8], ["NonCOVID", "COVID"], "mm", "position, mm")
    panels = [SeriesPanel(name, "2 slices", "1.2", 0.5, "mean of 2", curve) for name in ("d", "e")]
    report = PredictionReport(
        "title", "subtitle", ["a warning"], [Tile("Slices", "6")], "labels", panels, "score",
        [replace(card, order=order) for order, card in enumerate(CARDS)], "slices", [("Model", "tiny")], "predict",
    )  # fmt: skip
    path = tmp_path_factory.mktemp("page") / "report.html"
    with path.open("w", encoding="utf-8") as stream:
        render(report, stream)
    return path


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


def test_what_is_sorted_by_is_said(opened: Browser) -> None:
    press(opened, "probability")
    pressed = opened.run(
        "[...document.querySelectorAll('button[aria-pressed=true]')].map(button => button.textContent)"
    )
    assert pressed == ["probability ↓"]
    assert "by probability, descending" in opened.run("document.getElementById('shown').textContent")
    assert opened.run("document.getElementById('shown').getAttribute('aria-live')") == "polite"


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


def test_without_a_script_the_slices_stand_in_file_order(browser: Browser, page: Path) -> None:
    browser.ask("Emulation.setScriptExecutionDisabled", value=True)
    try:
        browser.open(page)
        assert order(browser) == [0, 1, 2, 3, 4, 5]
        assert not browser.run("document.getElementById('toolbar').offsetParent !== null")
    finally:
        browser.ask("Emulation.setScriptExecutionDisabled", value=False)


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
def test_nothing_reaches_beyond_the_screen(opened: Browser, width: int) -> None:
    opened.ask(
        "Emulation.setDeviceMetricsOverride", width=width, height=800, deviceScaleFactor=1, mobile=width < 500
    )
    assert opened.run("document.documentElement.scrollWidth") <= width


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
