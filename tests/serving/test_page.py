"""The page in a real browser before a real service: series, slices, planes, measurements, limits, tokens, accessibility."""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import cv2
import nibabel as nib
import numpy as np
import pytest
from selenium.webdriver import ActionChains, Chrome
from selenium.webdriver.common.actions.action_builder import ActionBuilder
from selenium.webdriver.common.actions.mouse_button import MouseButton
from selenium.webdriver.common.actions.wheel_input import ScrollOrigin
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.ui import WebDriverWait
from tests.conftest import change_dicom, cut_off, page_faults
from tests.serving.conftest import TOKEN, Running, Start

from groundglass.imaging.phantom import make_series, write_dicom, write_png
from groundglass.inference.bundle import DEFAULT

pytestmark = pytest.mark.slow

PATIENCE = 60
HOSTILE = "<img src=x onerror=window.hacked=1> & photo.png"
SIZES = {"small": (1024, 768), "desktop": (1440, 900), "large": (1920, 1080), "phone": (390, 844)}
SLICES, MIDDLE = 10, 5
DONE = (
    "return !document.getElementById('workspace').hidden && document.getElementById('progress').hidden"
    " && !document.querySelector('.pane.loading')"
)
Study = dict[str, Any]


@dataclass
class Page:
    """The page as its user handles it."""

    driver: Chrome
    downloads: Path
    service: Running
    samples: Path

    def open(self, *paths: Path, at: Running | None = None, address: str = "") -> None:
        """Open it as the service has it, or at the address of a result, and upload."""
        self.driver.get("about:blank")
        self.driver.get(f"{(at or self.service).url}/{address}")
        self.wait(lambda: self.run(DONE) if address else self["host"].text)
        if paths:
            self.send(*paths)

    def __getitem__(self, name: str) -> WebElement:
        return self.driver.find_element(By.ID, name)

    def run(self, script: str, *arguments: Any) -> Any:
        return self.driver.execute_script(script, *arguments)

    def wait(self, condition: Callable[[], Any]) -> Any:
        return WebDriverWait(self.driver, PATIENCE, 0.03).until(lambda _: condition())

    def find(self, selector: str) -> WebElement:
        return self.driver.find_element(By.CSS_SELECTOR, selector)

    def canvas(self, plane: str = "axial") -> WebElement:
        return self.find(f"[data-plane={plane}] canvas")

    def texts(self, selector: str) -> list[str]:
        script = "return [...document.querySelectorAll(arguments[0])].map(each => each.textContent)"
        return list(self.run(script, selector))

    def send(self, *paths: Path) -> None:
        """Upload files or a folder, and wait for the last prediction and the first slice."""
        self["choose-folder" if paths[0].is_dir() else "choose-files"].send_keys("\n".join(map(str, paths)))
        self.wait(lambda: self.run(DONE))

    def drop(self, *paths: Path) -> None:
        """Drop files or folders as a file manager does."""
        data = {"items": [], "files": [str(path) for path in paths], "dragOperationsMask": 1}
        for kind in ("dragEnter", "dragOver", "drop"):
            event = {"type": kind, "x": 300, "y": 300, "data": data}
            self.driver.execute_cdp_cmd("Input.dispatchDragEvent", event)

    def press(self, *keys: str) -> None:
        ActionChains(self.driver).send_keys(*keys).perform()

    def drag(self, right: int, down: int, button: int = 0, start: tuple[int, int] = (0, 0)) -> None:
        """Drag with a button, from a place seen from the middle of the slice."""
        actions = ActionBuilder(self.driver)
        mouse = actions.pointer_action.move_to(self.canvas(), *start).pointer_down(button)
        mouse.move_by(right // 2, down // 2).move_by(right - right // 2, down - down // 2).pointer_up(button)
        actions.perform()

    def wheel(self, notches: int, plane: str = "axial") -> None:
        origin = ScrollOrigin.from_element(self.canvas(plane))
        ActionChains(self.driver).scroll_from_origin(origin, 0, 100 * notches).perform()

    def touch(self, *moments: list[tuple[int, int]]) -> None:
        """Fingers on the slice: where each is at each moment, seen from the middle."""
        box = self.canvas().rect
        left, top = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
        kinds = ("touchStart", *["touchMove"] * len(moments), "touchEnd")
        for kind, places in zip(kinds, (moments[0], *moments, []), strict=True):
            points = [{"x": left + x, "y": top + y, "id": number} for number, (x, y) in enumerate(places)]
            self.driver.execute_cdp_cmd("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})

    def corner(self, place: str, plane: str = "axial") -> str:
        return self.texts(f"[data-plane={plane}] .{place}")[0]

    def place(self) -> int:
        """Which slice of its stack is shown, from 1, once it is."""
        self.wait(lambda: self.run(DONE))
        return int(self.corner("top-right").split()[1])

    def state(self, name: str, attribute: str = "aria-pressed") -> str:
        return str(self[name].get_attribute(attribute))

    def window(self) -> list[float]:
        return [float(self.state(name, "value")) for name in ("level", "width")]

    def length(self) -> float:
        """What the ruler measures, as it is read to those who do not see it."""
        return float(self.state("announce", "textContent").split()[1])

    def drawn(self, plane: str = "axial") -> str:
        """The picture that a plane shows."""
        script = (
            "const shown = () => document.querySelector(`[data-plane=${arguments[0]}] canvas`).toDataURL();"
            "requestAnimationFrame(() => requestAnimationFrame(() => arguments[1](shown())))"
        )
        return str(self.driver.execute_async_script(script, plane))

    def is_drawn(self, *planes: str) -> bool:
        """Whether there is more than one colour on each."""
        return all(len(self.drawn(plane)) > 20_000 for plane in planes)

    def message(self, press: str = "") -> str:
        """The line that says what went wrong, once it is there; presses one of its buttons."""
        self.wait(lambda: self["message"].is_displayed() and press in self["message"].text)
        told = str(self["message"].find_element(By.TAG_NAME, "p").text)
        if press:
            self["message"].find_element(By.XPATH, f".//button[text()='{press}']").click()
        return told

    def address(self) -> str:
        """Of the result at the service, once the page's address names it and the slice."""
        self.wait(lambda: "/" in urlsplit(self.driver.current_url).fragment)
        return f"/v2/results/{urlsplit(self.driver.current_url).fragment.split('/')[0]}"

    def look(self, size: tuple[int, int] = SIZES["desktop"], scheme: str = "dark") -> None:
        """Set the window's size and the system's colours."""
        metrics = {"width": size[0], "height": size[1], "deviceScaleFactor": 1, "mobile": False}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})

    def complaints(self) -> list[str]:
        """What the browser's console says since the last time; failed requests are the tests' own."""
        return [entry["message"] for entry in self.driver.get_log("browser") if entry["source"] != "network"]

    def hosts(self) -> set[str]:
        """Hosts that were asked since the last time."""
        events = [json.loads(entry["message"])["message"] for entry in self.driver.get_log("performance")]
        sent = [event["params"] for event in events if event["method"] == "Network.requestWillBeSent"]
        urls = [urlsplit(each["request"]["url"]) for each in sent]
        return {str(url.hostname) for url in urls if url.scheme not in {"blob", "data", "about"}}


@pytest.fixture(scope="module")
def service(start: Start) -> Running:
    """A service with its defaults and the bundle that comes with the installation."""
    return start(bundle=DEFAULT)


@pytest.fixture(scope="session")
def samples(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files to send: ``study`` with a healthy and an ill series of ten slices, a volume, pictures, and what is none."""
    folder = tmp_path_factory.mktemp("samples")
    for seed, (name, severity) in enumerate({"healthy": 0.0, "ill": 0.7}.items()):
        phantoms = list(make_series(np.random.default_rng(seed), SLICES, severity, 256))
        for phantom in phantoms:
            write_dicom(phantom, folder / "study" / name / f"{phantom.instance:02}.dcm")
        write_png(phantoms[MIDDLE - 1], folder / f"{name}.png")
    voxels = np.stack([phantom.hounsfield.T for phantom in phantoms], axis=-1).astype(np.int16)
    volume = nib.Nifti1Image(voxels, np.diag([-1.5, -1.5, -20.266, 1]))
    volume.to_filename(folder / "volume.nii.gz")
    cv2.imwrite(str(folder / HOSTILE), np.random.default_rng(0).integers(0, 255, (200, 300, 3), np.uint8))
    (folder / "broken.png").write_bytes((folder / "healthy.png").read_bytes()[:300])
    return folder


@pytest.fixture
def page(chromium: tuple[Chrome, Path], service: Running, samples: Path) -> Iterator[Page]:
    """The browser, wide and dark; afterwards nobody but services was asked and nothing was complained of."""
    page = Page(*chromium, service, samples)
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
def study(service: Running, samples: Path) -> Study:
    """The two series, classified and kept."""
    sent = [(path.relative_to(samples).as_posix(), path.read_bytes()) for path in sorted(samples.glob("study/*/*.dcm"))]
    return dict(service.post(*sent, keep="true").json())


@pytest.fixture
def opened(page: Page, study: Study) -> Page:
    """The page at the middle slice of the ill series."""
    page.open(address=f"#{study['kept']['id']}/{SLICES + MIDDLE}")
    return page


def test_the_empty_page_says_what_it_is_for_and_has_a_series_to_try(page: Page) -> None:
    page.open()
    assert "Research use only" in page.find("header").text
    tested = page.service.get("/v2/model").json()["metrics"]["test"]
    told = f"Tested on {tested['slices']} slices of {tested['patients']} patients"
    page.wait(lambda: told in page["purpose"].text)
    assert "not a medical device" in page.find(".limits").text
    page["try"].click()
    page.wait(lambda: page.run(DONE))
    (card,) = page.texts(".card")
    assert "40 slices" in card
    page.wait(lambda: page.run("return document.querySelector('.card .thumbnail').width > 1"))
    colours = (  # of the strip's upper half, at both ends
        "const {buffer} = document.querySelector('.strip').getContext('2d').getImageData(0, 0, 240, 12).data;"
        "const ends = [0, 220].map(end => [...new Uint32Array(buffer)].filter((_, at) => at % 240 - end >>> 0 < 20));"
        "return ends.map(end => new Set(end).size)"
    )
    assert max(page.run(colours)) < 5, "a colour for each slice, hatched only where they were refused"
    assert "2.25." not in page.find("body").text, "no UID is shown"
    page.run("for (const each of document.querySelectorAll('#series details')) each.open = true")
    assert "2.25." in page["series"].text, "unless asked for"


def test_a_folder_that_is_dropped_shows_what_the_api_says(page: Page) -> None:
    page.open()
    page.drop(page.samples / "study")
    page.wait(lambda: page.run(DONE) and len(page.texts(".card")) == 2)
    assert page.texts(".card .label") == [each["label"] for each in page.service.get(page.address()).json()["series"]]
    assert [text.split(", ")[-1] for text in page.texts(".card .name")] == ["healthy", "ill"]
    strips = page.driver.find_elements(By.CLASS_NAME, "strip")
    assert all("From head to feet: highest probability" in each.accessible_name for each in strips)
    assert "healthy" not in page.texts(".card[aria-current]")[0], "the highest score is opened"
    assert page.place() in [int(text.split("0.")[0].strip("<>")) for text in page.texts("#carriers button")]
    # A result that is forgotten can be had again.
    assert page.service.ask("DELETE", page.address()).status_code == 204
    page.find("[data-export=csv]").click()
    assert "has forgotten this result" in page.message()
    assert len(page.texts(".card")) == 2, "what was predicted stays"
    page.message(press="Send the files again")
    page.wait(lambda: page.run(DONE) and not page["message"].is_displayed())
    page.find("[data-export=jsonl]").click()
    page.wait((page.downloads / "predictions.jsonl").exists)


def test_loose_pictures_stand_by_probability_and_say_why_they_were_refused(page: Page) -> None:
    page.open(*(page.samples / name for name in ("healthy.png", "ill.png", HOSTILE, "broken.png")))
    assert page.texts("#pictures .name") == ["ill.png", "healthy.png", HOSTILE, "broken.png"]
    probability = [float(text.strip("<>")) for text in page.texts("#pictures .number")]
    assert probability == sorted(probability, reverse=True)
    assert page.corner("top-left") == "Single pictures\nill.png"
    assert page.window() == [127.5, 255], "grey has windows of its own"
    assert page.find(".bar").is_displayed() is False, "a picture has no scale"
    for place, label in ((3, "refused"), (4, "failed")):
        page.press(Keys.END, *[Keys.ARROW_UP] * (4 - place))
        assert page.place() == place
        assert page.find("#slice .label").text == label
        assert page.find("#slice .reason").text.strip()
        page.wait(lambda: not page["lesions"].is_enabled() and not page["lungs"].is_enabled())
    assert page.find(".pane-text").is_displayed(), "a file that cannot be read has no picture"
    assert page.run("return [window.hacked, document.querySelectorAll('img').length]") == [None, 0]


def test_slices_run_from_head_to_feet_with_keys_wheel_cine_and_a_coloured_bar(opened: Page, study: Study) -> None:
    position = [study["predictions"][number]["position"] for number in study["series"][1]["volume"]["predictions"]]
    assert position == sorted(position, reverse=True)
    steps = [
        ((Keys.HOME,), 1), ((Keys.ARROW_RIGHT, Keys.ARROW_DOWN), 3), ((Keys.ARROW_LEFT,), 2), ((Keys.END,), SLICES),
        ((Keys.PAGE_UP,), 1), ((Keys.ARROW_UP,), 1),
    ]  # fmt: skip
    for keys, place in steps:
        opened.press(*keys)
        assert opened.place() == place
        told = opened.corner("top-right").replace("−", "-")
        assert f"Slice {place} of {SLICES}\n{position[place - 1] + 0:.1f} mm" in told
        assert "mm thick" in told
    opened.wheel(3)
    assert opened.place() == 4
    opened.press("b")
    assert "healthy" in opened.texts(".card[aria-current]")[0]
    assert opened.place() == 1
    opened.press(Keys.HOME, " ")
    opened.wait(lambda: opened.place() > 4)
    assert opened.state("cine") == "true"
    opened.wheel(1)
    assert opened.state("cine") == "false", "whoever scrolls takes over"
    bar = opened["scrollbar"]
    top = -bar.size["height"] // 2 + 3
    ActionChains(opened.driver).move_to_element_with_offset(bar, 0, top).click().perform()
    assert opened.place() == 1
    bar.send_keys(Keys.END)
    assert opened.place() == SLICES
    assert f"slice {SLICES} of {SLICES}" in opened.state("scrollbar", "aria-valuetext")
    colours = "return document.querySelector('#scrollbar canvas').toDataURL()"
    healthy = opened.run(colours)
    opened.find(".card:not([aria-current])").click()
    opened.wait(lambda: opened.run(colours) != healthy)


def test_where_a_slice_has_no_place_all_stand_as_they_were_read(page: Page, tmp_path: Path) -> None:
    (bare := tmp_path / "b.dcm").write_bytes((page.samples / "study/ill/05.dcm").read_bytes())
    change_dicom(bare, ImagePositionPatient=None)
    sent = ("b.dcm", bare.read_bytes()), ("a.dcm", (page.samples / "study/ill/04.dcm").read_bytes())
    page.open(address=f"#{page.service.kept(*sent)['kept']['id']}/0")
    assert page.place() == 1


def test_mouse_presets_and_numbers_set_the_window_and_the_mouse_zooms_and_pans(opened: Page) -> None:
    before = opened.drawn()
    assert opened.window() == [-600, 1500]
    opened.drag(100, -50)
    assert opened.window() == pytest.approx([-750, 1800], abs=10), "up is brighter"
    assert opened.drawn() != before
    opened.press("1")
    assert opened.drawn() == before
    height = opened.find("[data-plane=axial] .bar").size["height"]
    opened.drag(0, -100, MouseButton.RIGHT)
    assert "100 %" not in opened.corner("bottom-right")
    assert opened.find("[data-plane=axial] .bar").size["height"] != height
    zoomed = opened.drawn()
    opened.drag(60, 30, MouseButton.MIDDLE)
    assert opened.drawn() != zoomed
    ActionChains(opened.driver).double_click(opened.canvas()).perform()
    assert "100 %" in opened.corner("bottom-right")
    assert opened.drawn() == before
    ActionChains(opened.driver).move_to_element(opened.canvas()).perform()
    assert "HU" in opened.corner("bottom-left"), "the value under the pointer"
    opened.press(Keys.ARROW_DOWN)
    assert (opened.place(), opened.corner("bottom-left")) == (MIDDLE + 1, ""), "of another slice it was not asked"
    windows = {"2": ("Mediastinum", [40, 400]), "3": ("Bone", [400, 1800]), "1": ("Lung", [-600, 1500])}
    for key, (name, window) in windows.items():
        opened.press(key)
        assert opened.window() == window
        assert opened.texts("#presets [aria-pressed=true]") == [name]
        assert f"L {window[0]}  W {window[1]}" in opened.corner("bottom-right")
    opened["level"].send_keys(Keys.CONTROL + "a")
    opened["level"].send_keys("-500", Keys.TAB)
    assert opened.window() == [-500, 1500]
    assert opened.texts("#presets [aria-pressed=true]") == []
    # Fingers scroll, zoom and move.
    start = opened.place()
    opened.touch([(0, 0)], [(0, 20)], [(0, 40)])
    assert opened.place() == start + 3
    opened.touch([(-40, 0), (40, 0)], [(-60, 0), (60, 0)], [(-80, 0), (80, 0)])
    zoom, zoomed = opened.corner("bottom-right"), opened.drawn()
    assert "100 %" not in zoom
    opened.touch([(-40, 0), (40, 0)], [(-40, 20), (40, 20)], [(-40, 40), (40, 40)])
    assert (opened.corner("bottom-right"), opened.drawn() != zoomed) == (zoom, True)
    assert opened.place() == start + 3


def test_marks_say_where_the_patient_lies(opened: Page, tmp_path: Path) -> None:
    assert opened.texts("[data-plane=axial] .side") == ["R", "L", "A", "P"]
    bar = opened.find("[data-plane=axial] .bar")
    opened.press("r")
    opened.drag(0, bar.size["height"], start=(30, -100))
    assert opened.length() == pytest.approx(int(bar.text.split()[0]), rel=0.02), "as long as the bar says"
    prone = tmp_path / "1.2.840.113619.2.55" / "prone.dcm"
    prone.parent.mkdir()
    prone.write_bytes((opened.samples / "study/ill/05.dcm").read_bytes())
    change_dicom(prone, ImageOrientationPatient=[-1, 0, 0, 0, -1, 0], SeriesDescription="")
    opened.open(prone.parent)
    opened.wait(lambda: opened.texts("[data-plane=axial] .side") == ["L", "R", "P", "A"])
    assert opened.texts(".card .name") == ["Series"], "a folder that is named by a UID names nothing"


def test_a_ruler_and_a_region_measure(opened: Page, study: Study) -> None:
    image = study["predictions"][SLICES + MIDDLE]["image"]
    units = np.frombuffer(opened.service.get(image["hounsfield"]).content, "<i2").reshape(image["rows"], -1)
    before = opened.drawn()
    opened.press("e")
    opened.drag(120, 80, start=(-60, -40))
    scale = min(opened.canvas().size.values()) / image["columns"]
    rows, columns = np.mgrid[0 : image["rows"], 0 : image["columns"]] + 0.5 - image["columns"] / 2
    inside = units[(columns * scale / 60) ** 2 + (rows * scale / 40) ** 2 <= 1]
    told = opened.state("announce", "textContent")
    mean, spread = float(told.split()[2]), float(told.split("SD ")[1].split()[0])
    assert mean == pytest.approx(inside.mean(), abs=0.1 * spread)
    assert spread == pytest.approx(inside.std(), rel=0.05)
    assert opened.drawn() != before
    opened.press(Keys.DELETE)
    assert opened.drawn() == before
    opened.press("r", "a")
    length = opened.length()
    ActionChains(opened.driver).key_down(Keys.ALT).send_keys(Keys.ARROW_RIGHT * 3).key_up(Keys.ALT).perform()
    assert opened.length() > length, "with keys as well"
    opened["drop-measures"].click()
    assert opened.drawn() == before


def test_planes_are_linked_by_a_crosshair(opened: Page) -> None:
    opened.press("m")
    opened.wait(lambda: opened.is_drawn("coronal", "sagittal"))
    assert opened.texts("[data-plane=coronal] .side") == ["R", "L", "H", "F"]
    assert opened.texts("[data-plane=sagittal] .side") == ["A", "P", "H", "F"]
    row, column = (opened.corner("top-right", plane) for plane in ("coronal", "sagittal"))
    before, place = opened.drawn("coronal"), opened.place()
    opened.drag(2, 2, start=(40, -50))
    assert opened.corner("top-right", "coronal") != row
    assert opened.corner("top-right", "sagittal") != column
    opened.wait(lambda: opened.drawn("coronal") != before)
    coronal = opened.canvas("coronal")
    ActionChains(opened.driver).move_to_element_with_offset(coronal, 0, -60).click().perform()
    assert opened.place() < place, "towards the head"
    before = opened.drawn("coronal")
    opened.wheel(1)
    opened.wait(lambda: opened.drawn("coronal") != before)  # its line lies at another slice
    row = opened.corner("top-right", "coronal")
    coronal.send_keys(Keys.ARROW_DOWN)
    assert opened.corner("top-right", "coronal") != row, "arrows move the plane that has the focus"
    opened.wheel(2, "sagittal")
    opened.press("m")
    assert not coronal.is_displayed()
    opened.open(opened.samples / "volume.nii.gz")
    assert "every 20.27 mm" in opened.corner("top-right")
    opened.press("m")
    opened.wait(lambda: opened.is_drawn("coronal"))
    assert opened.texts("[data-plane=coronal] .side") == ["R", "L", "H", "F"], "of a volume too"


def test_lesions_and_lungs_can_be_faded_and_switched_off(opened: Page, study: Study) -> None:
    shown = {opened.drawn()}
    for keys in ("[[", "]]]", "l", "o"):
        opened.press(keys)
        shown.add(opened.drawn())
    assert len(shown) == 5
    assert [opened.state(name) for name in ("lesions", "lungs")] == ["false", "false"]
    without = [number for number, row in enumerate(study["predictions"]) if row["opacity"] == 0]
    assert without, "a healthy slice has no lesion"
    opened.open(address=f"#{study['kept']['id']}/{without[0]}")
    opened.wait(lambda: not opened["lesions"].is_enabled())
    assert [opened.state(name) for name in ("lesions", "lungs")] == ["false", "true"]


def test_the_answer_of_the_series_stands_first(opened: Page, study: Study) -> None:
    assert opened.texts(".right h2")[:3] == ["This series", "This slice", "Slices that carry the answer"]
    series, told = study["series"][1], opened["series"].text
    opacity = series["opacity"]
    for words in (f"{opacity['percent']:.1f} %", f"{opacity['lesion_ml']:,.0f} of", series["label"]):
        assert words in told
    facts = dict(zip(opened.texts("#series dt"), opened.texts("#series dd"), strict=True))
    assert facts["Read"] == f"{SLICES} slices"
    assert int(facts["Refused"]) + int(facts.get("Outside the lungs", 0)) == series["refused"]
    carriers = opened.driver.find_elements(By.CSS_SELECTOR, "#carriers button")
    assert len(carriers) == len(series.get("carriers") or range(series["slices_in_score"]))
    for carrier in carriers[:2]:
        carrier.click()
        assert opened.place() == int(carrier.text.split()[0])
        assert carrier.get_attribute("aria-pressed") == "true"


def test_warnings_stand_above_numbers(page: Page) -> None:
    paths = sorted((page.samples / "study/ill").glob("*.dcm"))
    page.open(*paths[:4], *paths[5:])
    warning, *_, verdict = page.driver.find_elements(By.CSS_SELECTOR, "#series .warning, #series .verdict")
    assert "unevenly spaced" in warning.text
    assert "verdict" in str(verdict.get_attribute("class"))
    assert not page["planes"].is_enabled(), "planes across a gap would mislead"


def test_a_result_has_an_address_until_it_is_forgotten(opened: Page, study: Study) -> None:
    opened.press(Keys.END)
    assert opened.place() == SLICES
    # Stacks run from head to feet: the last is the lowest.
    highest, *_, lowest = study["series"][1]["volume"]["predictions"]
    opened.wait(lambda: opened.driver.current_url.endswith(f"/{lowest}"))
    opened.driver.refresh()
    assert opened.place() == SLICES
    opened.run("location.hash = location.hash.replace(/\\d+$/, arguments[0])", highest)
    opened.wait(lambda: opened.place() == 1)
    opened["open-upload"].click()
    opened.send(opened.samples / "healthy.png")
    opened.wait(lambda: "healthy.png" in opened.corner("top-left"))
    second = opened.address()
    opened.driver.back()
    opened.wait(lambda: opened.run(DONE) and "of 10" in opened.corner("top-right"))
    assert opened.service.get(second).status_code == 200
    opened.driver.forward()
    opened.wait(lambda: "healthy.png" in opened.corner("top-left"))
    opened["forget"].click()
    opened.wait(opened["drop"].is_displayed)
    assert opened.service.get(second).status_code == 404
    opened.driver.get(f"{opened.service.url}/#{second.split('/')[-1]}")
    opened.driver.refresh()
    assert "has forgotten this result" in opened.message()


def test_many_slices(page: Page, tmp_path: Path) -> None:
    content = cv2.imread(str(page.samples / "ill.png"), cv2.IMREAD_GRAYSCALE)
    for number in range(60):
        cv2.imwrite(str(tmp_path / f"{number:03}.png"), np.roll(content, number % 7, axis=1))
    page.open(*sorted(tmp_path.glob("*.png")))
    assert len(page.texts("#pictures [role=option]")) == 60
    drawn = "return [...document.querySelectorAll('#pictures canvas')].filter(each => each.width > 1).length"
    assert 0 < page.wait(lambda: page.run(drawn)) < 60, "nothing is fetched for cards out of sight"
    page.press(Keys.PAGE_DOWN, Keys.PAGE_DOWN)
    assert page.place() == 21


def test_keys_do_what_the_mouse_does_and_the_tabulator_reaches_every_control(opened: Page) -> None:
    opened.run("document.activeElement.blur()")
    reached = set()
    for _ in range(60):
        opened.press(Keys.TAB)
        script = "const at = document.activeElement; return at.id || at.dataset.export || at.parentElement.dataset.plane || at.className || at.tagName"
        reached.add(opened.run(script))
    wanted = (
        "open-upload open-card open-keys card tool-window drop-measures fit level width lesions lungs fill planes cine "
        "rate axial scrollbar SUMMARY report csv json jsonl copy forget"
    )
    assert set(wanted.split()) <= reached
    opened.canvas().send_keys(Keys.ARROW_DOWN)
    assert opened.run("return getComputedStyle(document.activeElement).outlineStyle") == "solid"
    opened.run("document.activeElement.blur()")

    tools = {"s": "scroll", "z": "zoom", "p": "pan", "r": "ruler", "e": "roi", "w": "window"}
    for key, tool in tools.items():
        opened.press(key)
        assert opened[f"tool-{tool}"].is_selected()
    opened.press("4", "+", "+", "-")
    assert "L 0  W 4000\n125 %" in opened.corner("bottom-right")
    before = opened.drawn()
    opened.press(Keys.SHIFT, Keys.ARROW_LEFT, Keys.SHIFT)
    assert opened.drawn() != before
    opened.press("0", "b", "n", "c")
    assert "100 %" in opened.corner("bottom-right")
    assert opened.find("#carriers [aria-pressed=true]").text.split()[0] == str(opened.place())
    opened.press("m", "w", "x")
    assert opened["tool-cross"].is_selected()
    opened.press("m")
    # The model card is one press away.
    opened.press("i")
    opened.wait(lambda: opened["card"].text)
    card = opened.service.get("/v2/model", Accept="text/markdown")
    assert card.headers["content-type"].startswith("text/markdown")
    assert card.text.splitlines()[0].removeprefix("# ") == opened.find("#card h3").text
    assert "Positive class" in opened.find("#card table").text
    assert not set("*`") & set(opened["card"].text)
    place = opened.place()
    opened.press(Keys.ARROW_RIGHT, Keys.ESCAPE)
    assert not opened["card-dialog"].is_displayed()
    assert opened.place() == place, "keys belong to the dialog while it is open"
    opened.press("?")
    assert "slice by slice" in opened["keys"].text
    opened["letters"].click()
    opened.press(Keys.ESCAPE, "l")
    assert opened.state("lesions") == "true", "single keys are off"


def test_a_token_is_asked_for_and_kept_in_memory_only(page: Page, start: Start) -> None:
    guarded = start("--keep-seconds", "9999999", token=TOKEN)  # longer than a browser's timer can be
    page.open(at=guarded)
    page.wait(page["token-dialog"].is_displayed)
    assert page_faults(page.driver) == []
    page.press(Keys.ESCAPE)
    assert "answers only with its token" in page.message()
    assert page_faults(page.driver) == []
    page.message(press="Enter the token")
    page["token"].send_keys("wrong-token-wrong-token", Keys.ENTER)
    page.wait(lambda: "did not accept" in page["token-error"].text)
    page["token"].send_keys(TOKEN, Keys.ENTER)
    page.wait(lambda: not page["token-dialog"].is_displayed())
    page.send(page.samples / "study")
    assert page.is_drawn("axial"), "pictures come with the token"
    assert page.texts("#kept")[0].startswith("The service keeps it")
    assert "No label: no rule for series has been fitted" in page["series"].text, "in the bundle of tests"
    page.find("[data-export=csv]").click()
    landed = page.downloads / "predictions.csv"
    page.wait(lambda: landed.exists() and b"ill/01.dcm" in landed.read_bytes())
    stores = "[document.cookie, JSON.stringify(localStorage), JSON.stringify(sessionStorage)]"
    assert page.run(f"return {stores}") == ["", "{}", "{}"]
    text = "document.documentElement.outerHTML + document.getElementById('token').value + location.href"
    assert TOKEN not in page.run(f"return {text}")
    page.driver.refresh()
    page.wait(page["token-dialog"].is_displayed)
    page["token"].send_keys(TOKEN, Keys.ENTER)
    page.wait(lambda: page.run(DONE))  # though the bundle's AUC has no interval
    assert TOKEN not in guarded.out + guarded.err


def test_a_connection_that_is_lost(page: Page) -> None:
    page.open()
    page.driver.execute_cdp_cmd("Network.enable", {})
    offline = {"offline": True, "latency": 0, "downloadThroughput": -1, "uploadThroughput": -1}
    try:
        page.driver.execute_cdp_cmd("Network.emulateNetworkConditions", offline)
        page["choose-files"].send_keys(str(page.samples / "healthy.png"))
        assert "connection was lost" in page.message()
        page["open-card"].click()
        page.wait(lambda: "cannot be reached" in page.message())
    finally:
        page.driver.execute_cdp_cmd("Network.emulateNetworkConditions", {**offline, "offline": False})
    page.message(press="Try again")
    page.wait(lambda: page["card"].text)
    page.press(Keys.ESCAPE)
    page.send(page.samples / "healthy.png")
    assert page.texts("#pictures .name") == ["healthy.png"]


def test_the_policy_keeps_out_what_does_not_belong(page: Page) -> None:
    page.open()
    page.run(
        "window.blocked = []; document.addEventListener('securitypolicyviolation',"
        "(event) => blocked.push(event.effectiveDirective));"
        "fetch(arguments[0] + '/healthz').then(() => { window.hacked = 1; }, () => {});"
        "const script = document.createElement('script'); script.append('window.hacked = 1');"
        "try { document.body.append(script); } catch {}"
        "const picture = new Image(); picture.src = arguments[0] + '/page/icon.svg'; document.body.append(picture);",
        "http://127.0.0.1:5999",
    )
    markup = "try { document.body.innerHTML = '<b>x</b>'; return 'made'; } catch { return 'refused'; }"
    assert page.run(markup) == "refused"
    page.wait(lambda: {"connect-src", "img-src"} <= set(page.run("return blocked")))
    assert page.run("return [window.hacked, document.cookie]") == [None, ""]
    assert page.complaints() != []


@pytest.mark.parametrize(("scheme", "size"), [("dark", "desktop"), ("light", "phone")])
def test_accessibility(page: Page, study: Study, scheme: str, size: str) -> None:
    def faults() -> list[Any]:
        """Contrast hangs on the scheme; what is cut off, on the size alone."""
        found = page_faults(page.driver)
        for other in (*SIZES.values(), SIZES[size]):
            page.look(other, scheme)
            found += cut_off(page.driver)
        return found

    page.look(SIZES[size], scheme)
    page.open()
    assert faults() == [], "at the start"
    page.open(address=f"#{study['kept']['id']}")
    page.press("m")
    assert faults() == [], "with a series and its planes"
    page["open-upload"].click()
    page.send(page.samples / "ill.png", page.samples / HOSTILE)
    page.press(Keys.END)
    assert faults() == [], "with a refused picture"
    page["open-card"].click()
    page.wait(lambda: page["card"].text)
    assert faults() == [], "with the model card"
    page.press(Keys.ESCAPE)
    page["open-keys"].click()
    assert faults() == [], "with the keys"
