"""Takes the pictures of the page and both reports in docs/images: of synthetic slices, in Chromium without a window."""

from __future__ import annotations

import io
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from PIL import Image
from selenium.webdriver import ActionChains, Chrome, ChromeOptions
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait

IMAGES = Path(__file__).parent / "images"
GROUNDGLASS = [sys.executable, "-m", "groundglass.cli.main"]
PHONE = 390
# Width, height, colours; the page fills a window, of a report the beginning is shown.
PAGE = {"serve": (1440, 900, "dark"), "serve-light": (1440, 900, "light"), "serve-phone": (PHONE, 844, "dark")}
REPORT = {"": (1180, "light"), "-dark": (1180, "dark"), "-phone": (PHONE, "light")}
HEIGHT = {"predict": 1930, "evaluate": 2450}
SERIES = ["data", "phantoms", "--series", "0.4", "--count", "27"]
SLICES = ["data", "phantoms", "--count", "160", "--severity", "0.02:0.4", "--size", "256"]


def main() -> None:
    """Takes all of them anew."""
    with TemporaryDirectory() as name, _browser() as browser:
        _take_page(browser)
        folder = Path(name)
        _run(*SERIES, "--output", folder / "series")
        _run("predict", folder / "series" / "severity-0.40", "--output", folder / "predict", "--quiet")
        _run(*SLICES, "--output", folder / "slices")
        data = folder / "slices" / "manifest.csv"
        _run("evaluate", "default", "--data", data, "--output", folder / "evaluate", "--json")
        for report, height in HEIGHT.items():
            for suffix, (width, colours) in REPORT.items():
                _look(browser, width, min(height, 5 * width), colours)
                browser.get((folder / report / "report.html").as_uri())
                _take(browser, report + suffix)


def _run(*words: object) -> None:
    subprocess.run([*GROUNDGLASS, *map(str, words)], stdout=subprocess.DEVNULL, check=True)


def _take_page(browser: Chrome) -> None:
    """The synthetic series, with the crosshair of its planes in a lung; on a telephone its slice alone."""
    with _service() as url:
        _look(browser, *PAGE["serve"])
        browser.get(url)
        browser.find_element(By.ID, "try").click()
        _until(
            browser,
            "!document.getElementById('workspace').hidden && document.getElementById('progress').hidden"
            " && !document.querySelector('.pane.loading')",
        )
        ActionChains(browser).send_keys("mx").perform()
        axial = browser.find_element(By.CSS_SELECTOR, "[data-plane=axial] canvas")
        ActionChains(browser).move_to_element_with_offset(axial, -105, 40).click().perform()
        for name, look in PAGE.items():
            _look(browser, *look)
            if look[0] == PHONE:
                ActionChains(browser).send_keys("m").perform()
            _until(
                browser,
                "[...document.querySelectorAll('.pane:not([hidden]) canvas, .thumbnail')].every((each) => new Set("
                "each.getContext('2d').getImageData(0, 0, each.width, each.height).data).size > 20)",
            )
            _take(browser, name)


def _look(browser: Chrome, width: int, height: int, colours: str) -> None:
    metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width == PHONE}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    features = [{"name": "prefers-color-scheme", "value": colours}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})


def _take(browser: Chrome, name: str) -> None:
    # What was asked for is drawn in the frame after the next.
    browser.execute_async_script("requestAnimationFrame(() => requestAnimationFrame(arguments[0]))")
    picture = Image.open(io.BytesIO(browser.get_screenshot_as_png())).convert("RGB")
    picture.save(IMAGES / f"{name}.webp", quality=84, method=6)


def _until(browser: Chrome, condition: str) -> None:
    WebDriverWait(browser, 120).until(lambda _: browser.execute_script(f"return {condition}"))


@contextmanager
def _service() -> Iterator[str]:
    command = [*GROUNDGLASS, "serve", "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
        try:
            # Its one line ends with its address.
            yield process.stderr.readline().split()[-1] if process.stderr else ""
        finally:
            process.terminate()


@contextmanager
def _browser() -> Iterator[Chrome]:
    options = ChromeOptions()
    options.binary_location = shutil.which("chromium") or "chromium"
    for switch in ("headless=new", "no-sandbox", "disable-dev-shm-usage", "no-proxy-server", "hide-scrollbars"):
        options.add_argument(f"--{switch}")
    with Chrome(options=options, service=Service(shutil.which("chromedriver"))) as browser:
        yield browser


if __name__ == "__main__":
    main()
