"""The page in a real browser before a real service: viewing slices, limits, tokens, accessibility."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import product
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
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.ui import Select, WebDriverWait
from tests.serving.conftest import TOKEN, Running, Start

from groundglass.imaging.phantom import make_series, write_dicom, write_png
from groundglass.inference.bundle import DEFAULT

pytestmark = pytest.mark.slow

PATIENCE = 30
SCREENSHOTS = Path(__file__).parents[2] / "build" / "screenshots"
AXE = (Path(__file__).parent / "vendor" / "axe.min.js").read_text(encoding="utf-8")
HOSTILE = "<img src=x onerror=window.hacked=1> & photo.png"
DESKTOP, PHONE = (1440, 900), (390, 844)
DONE = (
    "const work = document.getElementById('workspace');"
    "return !work.hidden && !work.classList.contains('coming')"
    " && !document.getElementById('stage').classList.contains('loading');"
)
DRAWN = (
    "const list = document.getElementById('gallery').getBoundingClientRect();"
    "return [...document.querySelectorAll('#gallery canvas')].every((canvas) => { const box ="
    "canvas.getBoundingClientRect(); return canvas.width > 1 || box.top > list.bottom || box.left > list.right; })"
)


@dataclass
class Page:
    """The page as its user handles it."""

    driver: Chrome
    downloads: Path

    def open(self, service: Running, *paths: Path, into: str = "choose-files") -> None:
        self.driver.get(f"{service.url}/")
        self.wait(lambda: self["host"].text)
        if paths:
            self.send(*paths, into=into)

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

    def click(self, selector: str) -> None:
        self.driver.find_element(By.CSS_SELECTOR, selector).click()

    def values(self, *names: str) -> list[float]:
        return [float(str(self[name].get_attribute("value"))) for name in names]

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

    def names(self) -> list[str]:
        return [card["name"] for card in self.cards()]

    def chosen(self) -> int:
        """The number of the slice that is shown, once it is."""
        self.wait(lambda: self.run(DONE))
        return next(card["number"] for card in self.cards() if card["chosen"])

    def show(self, number: int) -> None:
        self.click(f"#gallery [data-number='{number}']")
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
        self.wait(self["message"].is_displayed)
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

    def look(self, size: tuple[int, int] = DESKTOP, scheme: str = "dark") -> None:
        """Set the window's size and the system's colours."""
        metrics = {"width": size[0], "height": size[1], "deviceScaleFactor": 1, "mobile": False}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})

    def nothing_is_cut_off(self) -> bool:
        return bool(self.run("return document.documentElement.scrollWidth <= window.innerWidth"))

    def complaints(self) -> list[str]:
        """What the browser's console says since the last time; failed requests are the tests' own."""
        entries = self.driver.get_log("browser")
        return [entry["message"] for entry in entries if entry["source"] != "network"]

    def hosts(self) -> set[str]:
        """Hosts that were asked since the last time."""
        events = [json.loads(entry["message"])["message"] for entry in self.driver.get_log("performance")]
        sent = [event["params"] for event in events if event["method"] == "Network.requestWillBeSent"]
        urls = [urlsplit(each["request"]["url"]) for each in sent]
        return {str(url.hostname) for url in urls if url.scheme not in {"blob", "data", "about"}}

    def faults(self) -> list[dict[str, Any]]:
        """What axe-core finds."""
        if not self.run("return 'axe' in window"):
            self.run(AXE)
        found = self.driver.execute_async_script(
            "const done = arguments[0]; axe.run(document, {resultTypes: ['violations']})"
            ".then(({violations}) => done(violations.map(({id, nodes}) => ({id, nodes: nodes.map(node =>"
            "[node.html.slice(0, 120), node.failureSummary])}))))"
        )
        return list(found)


@pytest.fixture(scope="session")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Chrome, Path]]:
    browser, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if browser is None or driver is None:
        pytest.skip("Chromium and its driver are not here: apt-get install chromium chromium-driver")
    downloads = tmp_path_factory.mktemp("downloads")
    options = ChromeOptions()
    options.binary_location = browser
    switches = "headless=new no-sandbox disable-gpu disable-dev-shm-usage no-proxy-server no-first-run"
    for switch in [*switches.split(), "disable-background-networking", "force-prefers-reduced-motion"]:
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
    page.look()
    page.complaints()
    page.hosts()
    yield page
    assert page.complaints() == []
    assert page.hosts() <= {"127.0.0.1"}
    page.driver.get("about:blank")


@pytest.fixture(scope="module")
def service(start: Start) -> Running:
    """A service with its defaults and the bundle that comes with the installation."""
    return start(bundle=DEFAULT)


@pytest.fixture(scope="module")
def tight(start: Start) -> Running:
    """A service that takes little."""
    return start("--upload-mib", "1", bundle=DEFAULT)


@pytest.fixture(scope="session")
def samples(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files to send: ``study`` with a healthy and an ill series of seven slices, pictures, and what is none."""
    folder = tmp_path_factory.mktemp("samples")
    for seed, (name, severity) in enumerate((("healthy", 0.0), ("ill", 0.7))):
        for phantom in make_series(np.random.default_rng(seed), 7, severity, 256):
            write_dicom(phantom, folder / "study" / name / f"{phantom.instance:02}.dcm")
            if phantom.instance == 4:
                write_png(phantom, folder / f"{name}.png")
    rows, columns = np.mgrid[0:200, 0:300]
    colours = np.stack([rows, columns // 2, 200 - rows], axis=-1).astype(np.uint8)
    (folder / HOSTILE).write_bytes(cv2.imencode(".png", colours)[1].tobytes())
    (folder / "broken.png").write_bytes((folder / "healthy.png").read_bytes()[:300])
    return folder


@pytest.fixture
def two_series(page: Page, service: Running, samples: Path) -> Page:
    """The page with the two series."""
    page.open(service, samples / "study", into="choose-folder")
    return page


def test_a_folder_that_is_dropped_shows_what_the_api_says(
    page: Page, service: Running, samples: Path
) -> None:
    page.open(service)
    assert "Research use only" in page.driver.find_element(By.TAG_NAME, "header").text
    page.drop(samples / "study")
    page.wait(lambda: page.run("return document.querySelectorAll('#gallery [aria-selected=true]').length"))
    paths = sorted(samples.glob("study/*/*.dcm"))
    sent = [(f"{path.parent.name}/{path.name}", path.read_bytes()) for path in paths]
    predictions = service.post(*sent).json()["predictions"]
    cards = page.cards()
    shown = [float(card["probability"]) for card in cards if card["probability"]]
    expected = sorted((row["probability"] for row in predictions if row["status"] == "ok"), reverse=True)
    assert shown == pytest.approx(expected, abs=0.006)
    labels = sorted(row["label"] or row["status"] for row in predictions)
    assert sorted(card["label"] for card in cards) == labels
    assert len(cards) == len(predictions) == 14
    assert page["summary"].text.startswith("14 slices: ")
    assert cards[0]["chosen"]
    assert page["slice-title"].is_displayed()
    assert len(page.driver.find_elements(By.CSS_SELECTOR, "#series-filter option")) == 3
    named = "the highest probability is of the ill series, named with its folder"
    assert "study/ill/" in page["prediction"].text, named


def test_keys_step_through_the_list_and_the_focus_can_be_seen(two_series: Page) -> None:
    order = [card["number"] for card in two_series.cards()]
    steps = [
        ((Keys.ARROW_RIGHT,), 1),
        ((Keys.ARROW_DOWN, Keys.ARROW_DOWN, Keys.ARROW_UP), 2),
        ((Keys.END,), -1),
        ((Keys.PAGE_UP,), -11),
        ((Keys.HOME, Keys.ARROW_LEFT), 0),  # no further than the first
    ]
    assert two_series.chosen() == order[0]
    for keys, place in steps:
        two_series.press(*keys)
        assert two_series.chosen() == order[place]
        focused = two_series.driver.switch_to.active_element
        assert focused.get_attribute("data-number") == str(order[place]), "focus goes along"
    assert two_series.run("return getComputedStyle(document.activeElement).outlineStyle") == "solid"
    assert two_series["corner-number"].text == "1 of 14"


def test_every_control_is_reached_with_the_tabulator(two_series: Page) -> None:
    two_series.run("document.activeElement.blur()")
    reached = []
    for _ in range(45):
        two_series.press(Keys.TAB)
        script = (
            "const at = document.activeElement; return at.id || at.dataset.export || at.role || at.tagName"
        )
        reached.append(two_series.run(script))
    wanted = (
        "open-upload open-card open-keys sort filter series-filter option csv json jsonl report canvas previous next "
        "tool-window preset level width lesions opacity outline zoom-in zoom-out fit curve SUMMARY"
    )
    assert set(wanted.split()) <= set(reached)
    assert reached.count("option") <= 2, "the gallery is one stop, not fourteen"


def test_dragging_changes_window_and_level_of_hounsfield_units(two_series: Page) -> None:
    before = two_series.pixels()
    assert two_series.values("level", "width") == [-600, 1500]
    ActionChains(two_series.driver).drag_and_drop_by_offset(two_series["canvas"], 100, -50).perform()
    assert two_series.values("level", "width") == pytest.approx([-750, 1800], abs=10), "up is brighter"
    assert two_series.pixels() != before
    assert two_series["preset"].get_attribute("value") == "Own window"
    two_series.press("2")
    assert two_series.values("level", "width") == [40, 400]
    soft = two_series.pixels()
    two_series["level"].clear()
    two_series["level"].send_keys("-600", Keys.TAB)
    assert two_series.pixels() != soft, "by typing as well"
    two_series.run("document.activeElement.blur()")
    two_series.press("1")
    assert two_series.pixels() == before


def test_the_curve_leads_to_the_slice_that_is_pressed(two_series: Page) -> None:
    dots = two_series.driver.find_elements(By.CSS_SELECTOR, "#curve .dot:not(.chosen)")
    numbers = [int(dot.get_attribute("data-number")) for dot in dots]
    for number in (numbers[0], numbers[-1]):
        dot = two_series["curve"].find_element(By.CSS_SELECTOR, f'[data-number="{number}"]')
        ActionChains(two_series.driver).move_to_element(dot).click().perform()
        assert two_series.chosen() == number
    assert f"slice {len(dots)} of {len(dots)}" in str(two_series["curve"].get_attribute("aria-valuetext"))
    two_series["curve"].send_keys(Keys.ARROW_LEFT)
    assert two_series.chosen() == numbers[-2], "along the body, whatever the gallery is sorted by"
    two_series.press(",")
    assert two_series.chosen() == numbers[-3]
    assert "Series score" in two_series["series"].text
    assert "Not a diagnosis" in two_series["series"].text


def test_sorting_and_filtering(two_series: Page) -> None:
    two_series.select("sort", "file")
    assert two_series.names() == [f"0{number}.dcm" for number in range(1, 8)] * 2
    two_series.select("sort", "body")
    from_the_feet = [f"0{number}.dcm" for number in range(7, 0, -1)]
    assert two_series.names() == from_the_feet * 2, "series by series"
    two_series.select("series-filter", "1")
    assert {card["number"] for card in two_series.cards()} == set(range(7, 14))
    assert two_series.chosen() in range(7, 14)


def test_refused_and_failed_slices_say_why(page: Page, service: Running, samples: Path) -> None:
    page.open(
        service, *(samples / name for name in ("healthy.png", "study/ill/04.dcm", HOSTILE, "broken.png"))
    )
    refused, failed = page.cards()[-2:]
    assert [(card["name"], card["label"]) for card in (refused, failed)] == [
        (HOSTILE, "refused"), ("broken.png", "failed"),
    ], "they come last"  # fmt: skip
    for card in (refused, failed):
        assert card["reason"]
        page.show(card["number"])
        assert card["reason"] in page["prediction"].text
        assert card["label"] in page["prediction"].text
    assert page["stage-text"].is_displayed(), "a file that cannot be read has no picture"
    assert not page["lesions"].is_enabled()
    page.show(refused["number"])
    assert page["corner-name"].text == HOSTILE, "a hostile name is shown as text"
    assert page.run("return [window.hacked, document.querySelectorAll('img').length]") == [None, 0]
    page.select("filter", "refused")
    assert page.names() == [HOSTILE]


def test_the_model_card_is_one_press_away(two_series: Page, service: Running) -> None:
    two_series["open-card"].click()
    two_series.wait(lambda: two_series["card"].text)
    card = service.get("/v2/model").json()["card"]
    assert card.splitlines()[0].removeprefix("# ") == two_series["card"].find_element(By.TAG_NAME, "h3").text
    assert "Positive class" in two_series["card"].find_element(By.TAG_NAME, "table").text
    assert not set("*`") & set(two_series["card"].text)
    two_series.press(Keys.ARROW_RIGHT)
    two_series.press(Keys.ESCAPE)
    assert not two_series["card-dialog"].is_displayed()
    first = two_series.cards()[0]["number"]
    assert two_series.chosen() == first, "keys belong to the dialog while it is open"
    two_series.press("?")
    assert "next slice" in two_series["keys"].text
    two_series["letters"].click()
    two_series.press(Keys.ESCAPE)
    two_series.press("h")
    assert two_series["lesions"].is_selected(), "single keys are off"


def test_another_upload_makes_the_service_forget_the_last(
    two_series: Page, service: Running, samples: Path
) -> None:
    address = two_series.address()
    assert service.get(address).status_code == 200
    two_series["open-upload"].click()
    assert two_series["drop"].is_displayed()
    two_series["back"].click()
    assert len(two_series.cards()) == 14
    two_series["open-upload"].click()
    two_series.choose(samples / "healthy.png")
    two_series.wait(lambda: service.get(address).status_code == 404)
    two_series.wait(lambda: two_series.run(DONE))
    assert two_series.names() == ["healthy.png"]
    address = two_series.address()
    two_series.driver.get("about:blank")
    two_series.wait(lambda: service.get(address).status_code == 404)


def test_screenshots(page: Page, service: Running, tmp_path: Path) -> None:
    """Kept under build/screenshots; `make picture` takes the documentation's from there."""
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    for seed, (name, severity) in enumerate((("healthy", 0.0), ("mild", 0.25), ("severe", 0.8))):
        for phantom in make_series(np.random.default_rng(seed + 20), 9, severity):
            write_dicom(phantom, tmp_path / "phantoms" / name / f"{phantom.instance:02}.dcm")
    page.open(service, tmp_path / "phantoms", into="choose-folder")
    for scheme, (device, size) in product(("dark", "light"), (("desktop", DESKTOP), ("phone", PHONE))):
        page.look(size, scheme)
        page.wait(lambda: page.run(DRAWN))
        page.pixels()
        picture = Image.open(io.BytesIO(page.driver.get_screenshot_as_png())).convert("RGB")
        few = picture.quantize(
            255, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE
        )  # so that it is small
        few.save(SCREENSHOTS / f"{device}-{scheme}.png", optimize=True)
        assert page.nothing_is_cut_off()
    assert (SCREENSHOTS / "desktop-dark.png").stat().st_size < 300_000


def test_a_token_is_asked_for_and_kept_in_memory_only(page: Page, start: Start, samples: Path) -> None:
    guarded = start(token=TOKEN, bundle=DEFAULT)
    page.open(guarded)
    page.wait(page["token-dialog"].is_displayed)
    assert page.faults() == []
    page.press(Keys.ESCAPE)
    assert "answers only with its token" in page.message()
    assert page.faults() == []
    page.answer("Enter the token")
    page["token"].send_keys("wrong-token-wrong-token", Keys.ENTER)
    page.wait(lambda: "did not accept" in page["token-error"].text)
    page["token"].send_keys(TOKEN, Keys.ENTER)
    page.wait(lambda: not page["token-dialog"].is_displayed())
    page.send(samples / "study", into="choose-folder")
    page.wait(lambda: page.run("return document.querySelector('#gallery canvas').width > 1"))
    assert len(set(page.pixels())) > 20, "pictures come with the token"
    page.click("[data-export=csv]")
    landed = page.downloads / "predictions.csv"
    page.wait(lambda: landed.exists() and b"ill/01.dcm" in landed.read_bytes())
    stores = "[document.cookie, JSON.stringify(localStorage), JSON.stringify(sessionStorage), location.href]"
    assert page.run(f"return {stores}") == ["", "{}", "{}", f"{guarded.url}/"]
    assert TOKEN not in page.run(
        "return document.documentElement.outerHTML + document.getElementById('token').value"
    )
    page.driver.refresh()
    page.wait(page["token-dialog"].is_displayed)
    assert TOKEN not in guarded.logged()


def test_too_large_an_upload(page: Page, tight: Running, samples: Path, tmp_path: Path) -> None:
    large = tmp_path / "large.dcm"
    large.write_bytes((samples / "study/ill/01.dcm").read_bytes() + bytes(3 * 2**20))
    page.open(tight)
    page.choose(large)
    told = page.message()
    assert told.startswith("Too large.")
    assert "1,048,576 bytes" in told
    assert page["drop"].is_displayed()
    assert "Choose files" in page["message"].text
    page.send(samples / "healthy.png")
    assert not page["message"].is_displayed(), "what went wrong is over"


def test_a_result_that_is_forgotten_can_be_had_again(two_series: Page, service: Running) -> None:
    assert service.ask("DELETE", two_series.address()).status_code == 204
    two_series.press(Keys.END)
    assert "has forgotten this upload" in two_series.message()
    assert len(two_series.cards()) == 14, "what was predicted stays"
    two_series.answer("Send the files again")
    two_series.wait(lambda: not two_series["message"].is_displayed() and two_series.run(DONE))
    assert len(two_series.cards()) == 14
    two_series.click("[data-export=jsonl]")
    two_series.wait((two_series.downloads / "predictions.jsonl").exists)


def test_a_connection_that_is_lost(page: Page, service: Running, samples: Path) -> None:
    page.open(service)
    page.driver.execute_cdp_cmd("Network.enable", {})
    offline = {"offline": True, "latency": 0, "downloadThroughput": -1, "uploadThroughput": -1}
    try:
        page.driver.execute_cdp_cmd("Network.emulateNetworkConditions", offline)
        page.choose(samples / "healthy.png")
        assert "connection was lost" in page.message()
        page["open-card"].click()
        page.wait(lambda: "cannot be reached" in page.message())
    finally:
        page.driver.execute_cdp_cmd("Network.emulateNetworkConditions", {**offline, "offline": False})
    page.answer("Try again")
    page.wait(lambda: page["card"].text)
    page.press(Keys.ESCAPE)
    page.send(samples / "healthy.png")
    assert page.names() == ["healthy.png"]


def test_the_policy_keeps_out_what_does_not_belong(page: Page, service: Running, tight: Running) -> None:
    page.open(service)
    page.run(
        "window.blocked = []; document.addEventListener('securitypolicyviolation',"
        "(event) => blocked.push(event.effectiveDirective));"
        "fetch(arguments[0] + '/healthz').then(() => { window.hacked = 1; }, () => {});"
        "const script = document.createElement('script'); script.append('window.hacked = 1');"
        "try { document.body.append(script); } catch {}"
        "const picture = new Image(); picture.src = arguments[0] + '/page/icon.svg'; document.body.append(picture);",
        tight.url,
    )
    markup = "try { document.body.innerHTML = '<b>x</b>'; return 'made'; } catch { return 'refused'; }"
    assert page.run(markup) == "refused"
    page.wait(lambda: {"connect-src", "img-src"} <= set(page.run("return blocked")))
    assert page.run("return [window.hacked, document.cookie]") == [None, ""]
    assert page.complaints() != []


@pytest.mark.parametrize("size", [DESKTOP, PHONE], ids=["desktop", "phone"])
@pytest.mark.parametrize("scheme", ["dark", "light"])
def test_accessibility(
    page: Page, service: Running, samples: Path, scheme: str, size: tuple[int, int]
) -> None:
    page.look(size, scheme)
    page.open(service)
    assert page.faults() == [], "at the start"
    page.send(*samples.glob("*.png"), *samples.glob("study/ill/*.dcm"))
    assert page.faults() == [], "with a slice"
    page.press(Keys.END, Keys.ARROW_LEFT)
    page.chosen()
    assert page.faults() == [], "with a refused slice"
    page["open-card"].click()
    page.wait(lambda: page["card"].text)
    assert page.faults() == [], "with the model card"
    page.press(Keys.ESCAPE)
    page["open-keys"].click()
    assert page.faults() == [], "with the keys"
    assert page.nothing_is_cut_off()
