"""The page with a series of a thousand slices: time to its answers, and each frame's cost in Chromium's own trace."""

from __future__ import annotations

import json
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import httpx
import numpy as np
import typer
import websocket
from selenium.webdriver import Chrome, ChromeOptions
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By

from groundglass.imaging.phantom import make_series, write_dicom
from record import RESULTS, Goal, report

GAP = 0.6  # mm between slices
APART = 4000  # microseconds between what is done for two frames, at least
FRAME = 1000 / 60  # ms
CATEGORIES = ["devtools.timeline", "disabled-by-default-devtools.timeline"]


def main(
    slices: Annotated[int, typer.Option(min=50, help="Of the series, 512 x 512 pixels each.")] = 1000,
    quick: Annotated[bool, typer.Option(help="A smoke test: few slices, no record unless --output.")] = False,
    output: Annotated[Path | None, typer.Option(help="Folder of the record.")] = None,
) -> None:
    """Upload a synthetic series in Chromium, wait until it is loaded, and scroll through it with the wheel."""
    slices = 60 if quick else slices
    with TemporaryDirectory() as folder, _service() as url, _browser() as browser:
        series = Path(folder, "series")
        _write(series, slices)
        measured = _measured(browser, url, series, slices)
    goals = [
        Goal("first slice and answer on the page after the upload, s", 1.0, True, measured["first_seconds"]),
        Goal(
            "processor time of the page's thread for a frame while scrolling, median, ms",
            FRAME,
            True,
            measured["frame_ms"],
        ),
        Goal("the same, 95th percentile, ms", FRAME, True, measured["frame_ms_95"]),
        Goal("frames drawn a second, with the load of all other processes", 60, False, measured["frames_a_second"]),
    ]
    report("page", output or (None if quick else RESULTS), measured, goals, [])


def _write(folder: Path, slices: int) -> None:
    """A series of that many slices, of which every 25th is drawn and the others repeat it at other positions."""
    drawn = list(make_series(np.random.default_rng(3), max(2, slices // 25), 0.3))
    for number in range(slices):
        phantom = drawn[number * len(drawn) // slices]
        x, y, _ = phantom.slice.origin.position or (0.0, 0.0, 0.0)
        origin = replace(phantom.slice.origin, position=(x, y, -GAP * number))
        moved = replace(phantom, slice=replace(phantom.slice, origin=origin), instance=number + 1)
        write_dicom(moved, folder / f"{number:04}.dcm")


def _measured(browser: Chrome, url: str, series: Path, slices: int) -> dict[str, Any]:
    browser.get(url)
    browser.execute_script(
        "performance.setResourceTimingBufferSize(100000); window.marks = {};"
        "const seen = () => { const done = document.querySelector('#workspace:not([hidden]) .card');"
        "if (done && !window.marks.first) window.marks.first = performance.now();"
        "if (document.getElementById('progress-text').textContent.startsWith('Sent'))"
        " window.marks.sent ??= performance.now();"
        "if (!window.marks.first) requestAnimationFrame(seen); }; seen();"
    )
    browser.find_element(By.ID, "choose-folder").send_keys(str(series))
    _until(browser, "document.getElementById('progress').hidden && !document.getElementById('workspace').hidden")
    marks = browser.execute_script("return {...window.marks, done: performance.now()}")
    requests = "performance.getEntriesByType('resource').filter(each => each.name.endsWith('/hounsfield.raw')).length"
    _until(browser, f"{requests} > 0")
    count = -1
    while count != (count := browser.execute_script(f"return {requests}")):
        time.sleep(3)
    trace = _Trace(browser)
    passed = browser.execute_async_script(
        "const [steps, done] = arguments; const canvas = document.querySelector('[data-plane=axial] canvas');"
        "canvas.dispatchEvent(new KeyboardEvent('keydown', {key: 'Home', bubbles: true})); let step = 0;"
        "const turn = () => { if (step === steps) {"
        "done(Number(document.querySelector('[data-plane=axial] .top-right').textContent.split(' ')[1])); return; }"
        "step += 1; canvas.dispatchEvent(new WheelEvent('wheel', {deltaY: 100, cancelable: true}));"
        "requestAnimationFrame(turn); }; requestAnimationFrame(turn);",
        min(slices - 1, 600),
    )
    busy, seconds = _frames(trace.end())
    pictures = "performance.getEntriesByType('resource').filter(each => each.name.endsWith('/picture.png')).length"
    return {
        "slices": slices,
        "first_seconds": (marks["first"] - marks["sent"]) / 1000,
        "all_seconds": (marks["done"] - marks["sent"]) / 1000,
        "loaded": count,
        "passed": passed,
        "frames": len(busy),
        "frames_a_second": len(busy) / seconds,
        "frame_ms": statistics.median(busy),
        "frame_ms_95": float(np.percentile(busy, 95)),
        "thumbnails": browser.execute_script(f"return {pictures}"),
    }  # fmt: skip


class _Trace:
    """Chromium's own trace, from now on."""

    def __init__(self, browser: Chrome) -> None:
        address = browser.capabilities["goog:chromeOptions"]["debuggerAddress"]
        url = httpx.get(f"http://{address}/json/version").json()["webSocketDebuggerUrl"]
        self._socket = websocket.create_connection(url, suppress_origin=True)
        self._send(1, "Tracing.start", traceConfig={"includedCategories": CATEGORIES}, transferMode="ReportEvents")
        while json.loads(self._socket.recv()).get("id") != 1:
            pass

    def _send(self, number: int, method: str, **parameters: Any) -> None:
        self._socket.send(json.dumps({"id": number, "method": method, "params": parameters}))

    def end(self) -> list[dict[str, Any]]:
        """All events."""
        self._send(2, "Tracing.end")
        events: list[dict[str, Any]] = []
        while (message := json.loads(self._socket.recv())).get("method") != "Tracing.tracingComplete":
            events += message["params"]["value"] if message.get("method") == "Tracing.dataCollected" else []
        return events


def _frames(traced: list[dict[str, Any]]) -> tuple[list[float], float]:
    """Processor time in ms of the page's thread from one drawn frame to the next, and the seconds of all."""
    fired = [each for each in traced if each.get("name") == "FireAnimationFrame"]
    thread = statistics.mode((each["pid"], each["tid"]) for each in fired)
    tasks = [
        each
        for each in traced
        if (each.get("pid"), each.get("tid")) == thread and each.get("name") == "RunTask" and "tdur" in each
    ]
    times = sorted(each["ts"] for each in fired if (each["pid"], each["tid"]) == thread)
    starts = [time for before, time in zip([0.0, *times], times, strict=False) if time - before > APART]
    spent = dict.fromkeys(starts, 0.0)
    edges = np.array(starts)
    for task in tasks:
        # A task that draws begins before its animation frame fires, and belongs to it.
        at = int(np.searchsorted(edges, task["ts"] + task["dur"], side="right")) - 1
        if at >= 0:
            spent[starts[at]] += task["tdur"] / 1000
    return list(spent.values()), (starts[-1] - starts[0]) / 1e6


@contextmanager
def _service() -> Iterator[str]:
    options = ["serve", "--port", "0", "--upload-mib", "1024", "--seconds", "3000"]
    command = [sys.executable, "-m", "groundglass.cli.main", *options]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None  # noqa: S101 - for the type checker
        try:
            yield process.stderr.readline().split()[-1]
        finally:
            process.terminate()


@contextmanager
def _browser() -> Iterator[Chrome]:
    options = ChromeOptions()
    options.binary_location = shutil.which("chromium") or "chromium"
    for switch in ("headless=new", "no-sandbox", "disable-dev-shm-usage", "no-proxy-server", "window-size=1440,900"):
        options.add_argument(f"--{switch}")
    browser = Chrome(options=options, service=Service(shutil.which("chromedriver")))
    browser.set_script_timeout(300)
    try:
        yield browser
    finally:
        browser.quit()


def _until(browser: Chrome, condition: str) -> None:
    while not browser.execute_script(f"return {condition}"):
        if problem := browser.execute_script("return document.getElementById('message').textContent"):
            raise RuntimeError(problem)
        time.sleep(0.2)


if __name__ == "__main__":
    typer.run(main)
