"""The page in a real browser before a real service: one Chromium for all tests of a process."""

from __future__ import annotations

import io
import json
import shutil
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import cv2
import numpy as np
import pytest
from PIL import Image
from selenium.webdriver import ActionChains, Chrome, ChromeOptions
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.ui import Select, WebDriverWait
from tests.serving.service.conftest import Running, Start, running

from groundglass.imaging.phantom import make_series, write_dicom, write_png
from groundglass.inference.bundle import DEFAULT

PATIENCE = 30
SCREENSHOTS = Path(__file__).parents[3] / "build" / "screenshots"
HOSTILE = "<img src=x onerror=window.hacked=1> & photo.png"
DESKTOP, PHONE = (1440, 900), (390, 844)
DONE = (
    "const work = document.getElementById('workspace');"
    "return !work.hidden && !work.classList.contains('coming')"
    " && !document.getElementById('stage').classList.contains('loading');"
)


@dataclass
class Page:
    """The page as its user handles it."""

    driver: Chrome
    downloads: Path
    url: str = ""

    def open(self, url: str) -> None:
        self.url = url
        self.driver.get(f"{url}/")
        self.wait(lambda: self["host"].text)

    def __getitem__(self, name: str) -> WebElement:
        return self.driver.find_element(By.ID, name)

    def run(self, script: str, *arguments: Any) -> Any:
        return self.driver.execute_script(script, *arguments)

    def wait(self, condition: Callable[[], Any]) -> Any:
        return WebDriverWait(self.driver, PATIENCE, 0.03).until(lambda _: condition())

    def choose(self, *paths: Path, into: str = "choose-files") -> None:
        self[into].send_keys("\n".join(map(str, paths)))

    def send(self, *paths: Path, into: str = "choose-files") -> None:
        """Upload, and wait for the last prediction and the first slice."""
        self.choose(*paths, into=into)
        self.wait(lambda: self.run(DONE))

    def drop(self, *paths: Path) -> None:
        """Drop files or folders as a file manager does."""
        data = {"items": [], "files": [str(path) for path in paths], "dragOperationsMask": 1}
        for kind in ("dragEnter", "dragOver", "drop"):
            event = {"type": kind, "x": 300, "y": 300, "data": data}
            self.driver.execute_cdp_cmd("Input.dispatchDragEvent", event)

    def select(self, name: str, value: str) -> None:
        Select(self[name]).select_by_value(value)

    def press(self, *keys: str) -> None:
        ActionChains(self.driver).send_keys(*keys).perform()

    def cards(self) -> list[dict[str, Any]]:
        """What the gallery shows, in its order."""
        return list(
            self.run(
                "return [...document.querySelectorAll('#gallery [role=option]')].map(card => ({"
                "number: Number(card.dataset.number), label: card.querySelector('.label').textContent,"
                "probability: card.querySelector('.number')?.textContent ?? null,"
                "name: card.querySelector('.name').textContent,"
                "reason: card.querySelector('.reason')?.textContent ?? null,"
                "chosen: card.getAttribute('aria-selected') === 'true'}))"
            )
        )

    def chosen(self) -> int:
        """The number of the slice that is shown, once it is."""
        self.wait(lambda: self.run(DONE))
        return next(card["number"] for card in self.cards() if card["chosen"])

    def show(self, number: int) -> None:
        self.run(f"document.querySelector('#gallery [data-number=\"{number}\"]').click()")
        assert self.chosen() == number

    def pixels(self) -> list[int]:
        """The stage, made small: what is drawn, in few numbers."""
        script = (
            "const done = arguments[0]; requestAnimationFrame(() => requestAnimationFrame(() => {"
            "const canvas = document.getElementById('canvas');"
            "const small = new OffscreenCanvas(96, 64); const context = small.getContext('2d');"
            "context.imageSmoothingQuality = 'high'; context.drawImage(canvas, 0, 0, 96, 64);"
            "done([...context.getImageData(0, 0, 96, 64).data]); }));"
        )
        return list(self.driver.execute_async_script(script))

    def message(self) -> str:
        """The line that says what went wrong, once it is there."""
        self.wait(lambda: not self.run("return document.getElementById('message').hidden"))
        return str(self["message"].find_element(By.TAG_NAME, "p").text)

    def answer(self, name: str) -> None:
        """Press a button of the message."""
        self.wait(lambda: name in self["message"].text)
        self["message"].find_element(By.XPATH, f".//button[text()='{name}']").click()

    def address(self) -> str:
        """Where the service keeps the result."""
        entries = self.run("return performance.getEntriesByType('resource').map(entry => entry.name)")
        paths = [urlsplit(entry).path for entry in entries]
        return next("/".join(path.split("/")[:4]) for path in reversed(paths) if "/v2/results/" in path)

    def resize(self, size: tuple[int, int]) -> None:
        width, height = size
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)

    def colours(self, scheme: str) -> None:
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})

    def complaints(self) -> list[str]:
        """What the browser's console says since the last time; failed requests are the tests' own."""
        entries = self.driver.get_log("browser")
        return [entry["message"] for entry in entries if entry["source"] != "network"]

    def hosts(self) -> set[str]:
        """Hosts that were asked since the last time."""
        events = [json.loads(entry["message"])["message"] for entry in self.driver.get_log("performance")]
        sent = [event["params"] for event in events if event["method"] == "Network.requestWillBeSent"]
        urls = [urlsplit(each["request"]["url"]) for each in sent]
        return {url.netloc for url in urls if url.scheme not in {"blob", "data", "about"}}

    def save(self, name: str) -> None:
        """Keep a picture of the page, in few colours so that it is small."""
        SCREENSHOTS.mkdir(parents=True, exist_ok=True)
        picture = Image.open(io.BytesIO(self.driver.get_screenshot_as_png())).convert("RGB")
        few = picture.quantize(255, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)
        few.save(SCREENSHOTS / f"{name}.png", optimize=True)


@pytest.fixture(scope="session")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Chrome, Path]]:
    browser, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if browser is None or driver is None:
        pytest.skip("Chromium and its driver are not here: apt-get install chromium chromium-driver")
    downloads = tmp_path_factory.mktemp("downloads")
    options = ChromeOptions()
    options.binary_location = browser
    for switch in (
        "headless=new",
        "no-sandbox",
        "disable-gpu",
        "disable-dev-shm-usage",
        "no-proxy-server",
        "no-first-run",
        "disable-background-networking",
        "force-prefers-reduced-motion",
    ):
        options.add_argument(f"--{switch}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    options.add_experimental_option("prefs", {"download.default_directory": str(downloads)})
    chrome = Chrome(options=options, service=Service(driver))
    chrome.set_script_timeout(PATIENCE)
    yield chrome, downloads
    chrome.quit()


@pytest.fixture
def page(chromium: tuple[Chrome, Path]) -> Iterator[Page]:
    """The browser, wide and dark; afterwards nobody but services was asked and nothing was complained of."""
    page = Page(*chromium)
    for left in page.downloads.iterdir():
        left.unlink()
    page.resize(DESKTOP)
    page.colours("dark")
    page.complaints()
    page.hosts()
    yield page
    assert page.complaints() == []
    assert {host.partition(":")[0] for host in page.hosts()} <= {"127.0.0.1"}
    page.driver.get("about:blank")


@pytest.fixture(scope="session")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A service with its defaults and the bundle that comes with the installation."""
    with running(tmp_path_factory.mktemp("service"), DEFAULT) as service:
        yield service


@pytest.fixture(scope="module")
def start_real(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Start]:
    """Starts services of that bundle with other options."""
    with ExitStack() as stack:
        yield lambda *options, token=None, code="": stack.enter_context(
            running(tmp_path_factory.mktemp("other"), DEFAULT, *options, token=token, code=code)
        )


@dataclass(frozen=True)
class Samples:
    """Files to send; nobody is on them.

    Attributes:
        study: a folder with two DICOM series, one healthy and one ill.
        slices: PNG.
        packed: the ill series as a zip.
        photograph: no lung, under a hostile name.
        broken: no image any more.
    """

    study: Path
    slices: Sequence[Path]
    packed: Path
    photograph: Path
    broken: Path

    @property
    def series(self) -> list[Path]:
        """Files of the ill series."""
        return sorted((self.study / "ill").iterdir())


@pytest.fixture(scope="session")
def samples(tmp_path_factory: pytest.TempPathFactory) -> Samples:
    """Two phantom series of seven slices, and things that are none."""
    folder = tmp_path_factory.mktemp("samples")
    slices = []
    for seed, (name, severity) in enumerate((("healthy", 0.0), ("ill", 0.7))):
        for phantom in make_series(np.random.default_rng(seed), 7, severity, 256):
            write_dicom(phantom, folder / "study" / name / f"{phantom.instance:02}.dcm")
            if phantom.instance == 4:
                slices.append(folder / f"{name}.png")
                write_png(phantom, slices[-1])
    with zipfile.ZipFile(folder / "ill.zip", "w") as archive:
        for path in sorted((folder / "study" / "ill").iterdir()):
            archive.write(path, f"inner/{path.name}")
    photograph, broken = folder / HOSTILE, folder / "broken.png"
    rows, columns = np.mgrid[0:200, 0:300]
    colours = np.stack([rows, columns // 2, 200 - rows], axis=-1).astype(np.uint8)
    photograph.write_bytes(cv2.imencode(".png", colours)[1].tobytes())
    broken.write_bytes(slices[0].read_bytes()[:300])
    return Samples(folder / "study", slices, folder / "ill.zip", photograph, broken)
