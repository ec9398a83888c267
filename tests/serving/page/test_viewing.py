"""Looking at slices: upload, gallery, stage, curve, keys, exports, in a real browser before a real service."""

from __future__ import annotations

import csv
import io
import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
from selenium.webdriver import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from tests.serving.page.conftest import DESKTOP, DONE, HOSTILE, PHONE, SCREENSHOTS, Page, Samples
from tests.serving.service.conftest import Running

from groundglass.imaging.phantom import make_series, write_dicom

pytestmark = pytest.mark.slow

DRAWN = (
    "const list = document.getElementById('gallery').getBoundingClientRect();"
    "return [...document.querySelectorAll('#gallery canvas')].every((canvas) => { const box ="
    "canvas.getBoundingClientRect(); return canvas.width > 1 || box.top > list.bottom || box.left > list.right; })"
)


@pytest.fixture
def study(page: Page, service: Running, samples: Samples) -> Page:
    """The page with the two series."""
    page.open(service.url)
    page.send(samples.study, into="choose-folder")
    return page


@pytest.fixture
def everything(page: Page, service: Running, samples: Samples) -> Page:
    """The page with a picture of each kind."""
    page.open(service.url)
    page.send(*samples.slices, samples.series[3], samples.photograph, samples.broken)
    return page


def test_a_folder_that_is_dropped_shows_what_the_api_says(
    page: Page, service: Running, samples: Samples
) -> None:
    page.open(service.url)
    assert "Research use only" in page.driver.find_element(By.TAG_NAME, "header").text
    page.drop(samples.study)
    page.wait(lambda: page.run("return document.querySelectorAll('#gallery [aria-selected=true]').length"))
    sent = [
        (f"{path.parent.name}/{path.name}", path.read_bytes())
        for path in sorted(samples.study.rglob("*.dcm"))
    ]
    predictions = service.post(*sent).json()["predictions"]
    cards = page.cards()
    expected = [row["probability"] for row in predictions if row["status"] == "ok"]
    shown = [float(card["probability"]) for card in cards if card["probability"]]
    assert shown == pytest.approx(sorted(expected, reverse=True), abs=0.006)
    assert len(cards) == len(predictions) == 14
    assert sorted(card["label"] for card in cards) == sorted(
        row["label"] or row["status"] for row in predictions
    )
    assert page["summary"].text.startswith("14 slices: ")
    assert cards[0]["chosen"]
    assert page["slice-title"].is_displayed()
    assert len(page.driver.find_elements(By.CSS_SELECTOR, "#series-filter option")) == 3
    files = page["prediction"].text
    assert "study/ill/" in files, "the highest probability is of the ill series, named with its folder"


def test_a_zip_and_progress(page: Page, service: Running, samples: Samples) -> None:
    page.open(service.url)
    page.run(
        "window.told = []; new MutationObserver(() => told.push(document.getElementById('progress-text')"
        ".textContent)).observe(document.getElementById('progress-text'), {childList: true});"
    )
    page.send(samples.packed)
    told = page.run("return told")
    assert told[0].startswith("Sending 1 file, "), told
    assert told[-1].startswith("Classified 7 slices: "), told
    assert not page["progress"].is_displayed()
    assert {card["name"] for card in page.cards()} == {f"0{number}.dcm" for number in range(1, 8)}


def test_arrows_step_through_the_list_and_the_focus_can_be_seen(study: Page) -> None:
    order = [card["number"] for card in study.cards()]
    assert study.chosen() == order[0]
    study.press(Keys.ARROW_RIGHT)
    assert study.chosen() == order[1]
    study.press(Keys.ARROW_DOWN, Keys.ARROW_DOWN, Keys.ARROW_UP)
    assert study.chosen() == order[2]
    focused = study.driver.switch_to.active_element
    assert focused.get_attribute("data-number") == str(order[2]), "focus goes along"
    assert study.run("return getComputedStyle(document.activeElement).outlineStyle") == "solid"
    study.press(Keys.END)
    assert study.chosen() == order[-1]
    study.press(Keys.PAGE_UP)
    assert study.chosen() == order[-11]
    study.press(Keys.HOME, Keys.ARROW_LEFT)
    assert study.chosen() == order[0], "no further than the first"
    assert study["corner-number"].text == "1 of 14"


def test_every_control_is_reached_with_the_tabulator(study: Page) -> None:
    study.run("document.activeElement.blur()")
    reached = []
    for _ in range(45):
        study.press(Keys.TAB)
        reached.append(
            study.run(
                "const at = document.activeElement;"
                "return at.id || at.dataset.export || (at.role === 'option' ? 'option' : at.tagName)"
            )
        )
    wanted = {
        "open-upload",
        "open-card",
        "open-keys",
        "sort",
        "filter",
        "series-filter",
        "option",
        "csv",
        "json",
    }
    wanted |= {"jsonl", "report", "canvas", "previous", "next", "tool-window", "preset", "level", "width"}
    wanted |= {"heat-map", "opacity", "outline", "zoom-in", "zoom-out", "fit", "curve", "SUMMARY"}
    assert wanted <= set(reached)
    assert reached.count("option") <= 2, "the gallery is one stop, not fourteen"


def test_dragging_changes_window_and_level_of_hounsfield_units(study: Page) -> None:
    before = study.pixels()
    assert [study[name].get_attribute("value") for name in ("level", "width")] == ["-600", "1500"]
    drag = ActionChains(study.driver).drag_and_drop_by_offset
    drag(study["canvas"], 100, -50).perform()
    assert float(study["width"].get_attribute("value")) == pytest.approx(1800, abs=10)
    assert float(study["level"].get_attribute("value")) == pytest.approx(-750, abs=10), "up is brighter"
    assert study.pixels() != before
    assert study["preset"].get_attribute("value") == "Own window"
    study.press("2")
    assert [study[name].get_attribute("value") for name in ("level", "width")] == ["40", "400"]
    soft = study.pixels()
    study["level"].clear()
    study["level"].send_keys("-600", Keys.TAB)
    assert study.pixels() != soft, "by typing as well"
    study.run("document.activeElement.blur()")
    study.press("1")
    assert study.pixels() == before


def test_the_window_is_that_of_the_values(study: Page) -> None:
    """Grey on the stage is what Hounsfield units come to in the window, wherever the pointer looks."""
    for name in ("heat-map", "outline"):
        study[name].click()
    study.press("1")
    ActionChains(study.driver).move_to_element(study["canvas"]).perform()
    value = int(study["corner-value"].text.split(": ")[1].removesuffix(" HU"))
    study.pixels()
    grey = study.run(
        "const canvas = document.getElementById('canvas');"
        "return canvas.getContext('2d').getImageData(canvas.width / 2, canvas.height / 2, 1, 1).data[0]"
    )
    assert grey == pytest.approx(min(max((value + 1350) * 255 / 1500, 0), 255), abs=30)


def test_wheel_and_keys_zoom_and_move(study: Page) -> None:
    whole = study.pixels()
    centre = study["canvas"]
    passed_on = study.run(
        "const canvas = document.getElementById('canvas'); const box = canvas.getBoundingClientRect();"
        "return canvas.dispatchEvent(new WheelEvent('wheel', {deltaY: -300, bubbles: true, cancelable: true,"
        "clientX: box.left + 40, clientY: box.top + 40}))"
    )
    assert not passed_on, "the page does not scroll as well"
    zoomed = study.pixels()
    assert zoomed != whole
    assert "173 %" in study["corner-window"].text
    study["tool-pan"].find_element(By.XPATH, "following-sibling::label[1]").click()
    ActionChains(study.driver).drag_and_drop_by_offset(centre, 60, 30).perform()
    panned = study.pixels()
    assert panned != zoomed
    assert study["width"].get_attribute("value") == "1500", "panning leaves the window alone"
    study.press(Keys.SHIFT, Keys.ARROW_LEFT)
    study.press(Keys.SHIFT)
    study.press("0")
    assert study.pixels() == whole
    study.press("+", "+", "-")
    assert "125 %" in study["corner-window"].text


def test_two_fingers_zoom_and_one_drags(study: Page) -> None:
    study.resize(PHONE)
    study.run("document.getElementById('canvas').scrollIntoView({block: 'center'})")
    box = study.run("return document.getElementById('canvas').getBoundingClientRect().toJSON()")
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2

    def touch(kind: str, *apart: float) -> None:
        points = [{"x": x + shift, "y": y, "id": number} for number, shift in enumerate(apart)]
        study.driver.execute_cdp_cmd("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})

    touch("touchStart", -20, 20)
    touch("touchMove", -40, 40)
    touch("touchEnd")
    assert "200 %" in study["corner-window"].text
    assert study["width"].get_attribute("value") == "1500"
    touch("touchStart", 0)
    touch("touchMove", -30)
    touch("touchEnd")
    assert study["width"].get_attribute("value") == "1410"


def test_heat_map_with_opacity_and_outline(study: Page) -> None:
    both = study.pixels()
    study["opacity"].send_keys(Keys.END)
    assert study["opacity-text"].text == "100 %"
    strong = study.pixels()
    study["opacity"].send_keys(Keys.HOME)
    none = study.pixels()
    assert len({tuple(strong), tuple(none), tuple(both)}) == 3
    study["fit"].send_keys("h")
    assert not study["heat-map"].is_selected()
    assert study.pixels() == none, "off looks like an opacity of nothing"
    study.press("o")
    bare = study.pixels()
    assert bare != none
    red, blue = bare[0::4], bare[2::4]
    assert red == blue, "without both there is nothing but grey"


def test_the_curve_leads_to_the_slice_that_is_pressed(study: Page) -> None:
    dots = study.driver.find_elements(By.CSS_SELECTOR, "#curve .dot:not(.chosen)")
    numbers = [int(dot.get_attribute("data-number")) for dot in dots]
    for number in (numbers[0], numbers[-1]):
        dot = study["curve"].find_element(By.CSS_SELECTOR, f'[data-number="{number}"]')
        ActionChains(study.driver).move_to_element(dot).click().perform()
        assert study.chosen() == number
    assert f"slice {len(dots)} of {len(dots)}" in str(study["curve"].get_attribute("aria-valuetext"))
    study["curve"].send_keys(Keys.ARROW_LEFT)
    assert study.chosen() == numbers[-2], "along the body, whatever the gallery is sorted by"
    study.press(",")
    assert study.chosen() == numbers[-3]
    told = study["series"].text
    assert "Series score" in told
    assert "Not a diagnosis" in told


def test_sorting_and_filtering(study: Page) -> None:
    study.select("sort", "file")
    numbers = [card["name"] for card in study.cards()]
    assert numbers == [f"0{number}.dcm" for number in range(1, 8)] * 2
    study.select("sort", "body")
    names = [card["name"] for card in study.cards()]
    assert names == [f"0{number}.dcm" for number in range(7, 0, -1)] * 2, "from the feet, series by series"
    study.select("series-filter", "1")
    assert {card["number"] for card in study.cards()} == set(range(7, 14))
    assert study.chosen() in range(7, 14)


def test_the_histogram_follows_slice_and_window(study: Page) -> None:
    def told() -> str:
        return str(study["histogram"].get_attribute("aria-label"))

    assert "Hounsfield units" in told()
    assert "-1350 to 150" in told()
    bars = study["histogram"].find_element(By.CSS_SELECTOR, ".bars").get_attribute("d")
    study.press("2")
    assert "-160 to 240" in told()
    study.press(Keys.ARROW_RIGHT)
    study.chosen()
    assert study["histogram"].find_element(By.CSS_SELECTOR, ".bars").get_attribute("d") != bars


def test_refused_and_failed_slices_say_why(everything: Page) -> None:
    cards = {card["name"]: card for card in everything.cards()}
    assert [card["label"] for card in everything.cards()][-2:] == ["refused", "failed"], "they come last"
    refused, failed = cards[HOSTILE], cards["broken.png"]
    for card in (refused, failed):
        assert card["reason"]
        everything.show(card["number"])
        assert card["reason"] in everything["prediction"].text
        assert card["label"] in everything["prediction"].text
    assert everything["stage-text"].is_displayed(), "a file that cannot be read has no picture"
    assert not everything["heat-map"].is_enabled()
    everything.select("filter", "refused")
    assert [card["name"] for card in everything.cards()] == [HOSTILE]


def test_pictures_without_hounsfield_units_have_grey_levels(everything: Page) -> None:
    number = next(card["number"] for card in everything.cards() if card["name"] == "healthy.png")
    everything.show(number)
    assert "grey values" in str(everything["histogram"].get_attribute("aria-label"))
    assert everything["width"].get_attribute("value") == "255"
    before = everything.pixels()
    ActionChains(everything.driver).drag_and_drop_by_offset(everything["canvas"], -80, 0).perform()
    assert everything["width"].get_attribute("value") == "215"
    assert everything.pixels() != before
    assert "belongs to no series" in everything["series"].text


def test_a_hostile_name_is_shown_as_text(everything: Page) -> None:
    assert HOSTILE in [card["name"] for card in everything.cards()]
    everything.show(next(card["number"] for card in everything.cards() if card["name"] == HOSTILE))
    assert HOSTILE in everything["prediction"].text
    assert everything["corner-name"].text == HOSTILE
    assert everything.run("return window.hacked") is None
    assert everything.run("return document.querySelectorAll('img').length") == 0


def test_names_that_the_service_would_refuse_do_not_stop_the_rest(
    page: Page, service: Running, samples: Samples, tmp_path: Path
) -> None:
    content = samples.slices[0].read_bytes()
    for name in ("1:2\u202fPM.png", "plain.png", ".hidden"):
        (tmp_path / "odd" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "odd" / name).write_bytes(content)
    page.open(service.url)
    page.send(tmp_path / "odd", into="choose-folder")
    assert {card["name"] for card in page.cards()} == {"1_2_PM.png", "plain.png"}
    (tmp_path / "empty").mkdir()
    page.drop(tmp_path / "empty")
    assert "no file" in page.message()
    assert len(page.cards()) == 2, "what is shown stays"


def test_exports_are_those_of_the_api(everything: Page, service: Running) -> None:
    address = everything.address()
    for button in everything.driver.find_elements(By.CSS_SELECTOR, "[data-export]"):
        button.click()
    names = ("predictions.csv", "predictions.json", "predictions.jsonl", "report.zip")
    landed = [everything.downloads / name for name in names]
    everything.wait(lambda: all(path.exists() and path.stat().st_size for path in landed))
    table, document, lines, report = (path.read_bytes() for path in landed)
    assert table == service.get(f"{address}/predictions.csv").content
    assert lines == service.get(f"{address}/predictions.jsonl").content
    rows = list(csv.DictReader(io.StringIO(table.decode())))
    predictions = json.loads(document)["predictions"]
    assert [row["file"] for row in rows] == [prediction["file"] for prediction in predictions]
    with zipfile.ZipFile(io.BytesIO(report)) as archive:
        assert "report/report.html" in archive.namelist()


def test_the_model_card_is_one_press_away(study: Page, service: Running) -> None:
    study["open-card"].click()
    study.wait(lambda: study["card"].text)
    card = service.get("/v2/model").json()["card"]
    assert card.splitlines()[0].removeprefix("# ") == study["card"].find_element(By.TAG_NAME, "h3").text
    table = study["card"].find_element(By.TAG_NAME, "table").text
    assert "Positive class" in table
    assert "**" not in study["card"].text
    assert "`" not in study["card"].text
    study.press(Keys.ARROW_RIGHT)
    study.press(Keys.ESCAPE)
    assert not study["card-dialog"].is_displayed()
    assert study.chosen() == study.cards()[0]["number"], "keys belong to the dialog while it is open"
    study.press("?")
    assert "next slice" in study["keys"].text
    study["letters"].click()
    study.press(Keys.ESCAPE)
    study.press("h")
    assert study["heat-map"].is_selected(), "single keys are off"


def test_another_upload_makes_the_service_forget_the_last(
    study: Page, service: Running, samples: Samples
) -> None:
    address = study.address()
    assert service.get(address).status_code == 200
    study["open-upload"].click()
    assert study["drop"].is_displayed()
    study["back"].click()
    assert len(study.cards()) == 14
    study["open-upload"].click()
    study.choose(samples.slices[0])
    study.wait(lambda: service.get(address).status_code == 404)
    study.wait(lambda: study.run(DONE))
    assert [card["name"] for card in study.cards()] == ["healthy.png"]
    address = study.address()
    study.driver.get("about:blank")
    study.wait(lambda: service.get(address).status_code == 404)


def test_three_hundred_slices_stay_smooth(
    page: Page, service: Running, samples: Samples, tmp_path: Path
) -> None:
    content = samples.slices[0].read_bytes()
    folder = tmp_path / "many"
    folder.mkdir()
    for number in range(300):
        (folder / f"{number:03}.png").write_bytes(content)
    page.open(service.url)
    page.run(
        "window.urls = 0; const make = URL.createObjectURL;"
        "URL.createObjectURL = (blob) => { window.urls += 1; return make(blob); }"
    )
    page.send(folder, into="choose-folder")
    assert len(page.cards()) == 300
    page.wait(lambda: page.run("return document.querySelectorAll('#gallery canvas')[0].width > 1"))
    page.press(Keys.END)
    page.wait(lambda: page.run("return [...document.querySelectorAll('#gallery canvas')].pop().width > 1"))
    drawn = page.run(
        "return [...document.querySelectorAll('#gallery canvas')].filter(each => each.width > 1).length"
    )
    assert drawn < 80, "only what is in sight, or close to it, has pixels"
    assert page.run("return document.querySelectorAll('#gallery canvas')[0].width") == 1
    assert page.run("return window.urls") == 0, "nothing is drawn from a URL that would have to be revoked"
    took = page.run(
        "const start = performance.now(); for (let i = 0; i < 50; i += 1) document.dispatchEvent("
        "new KeyboardEvent('keydown', {key: 'ArrowUp', bubbles: true})); return performance.now() - start"
    )
    assert took / 50 < 50, "milliseconds for one step"


def test_screenshots(page: Page, service: Running, tmp_path: Path) -> None:
    """Kept under build/screenshots; `make picture` takes the documentation's from there."""
    for seed, (name, severity) in enumerate((("healthy", 0.0), ("mild", 0.25), ("severe", 0.8))):
        for phantom in make_series(np.random.default_rng(seed + 20), 9, severity):
            write_dicom(phantom, tmp_path / "phantoms" / name / f"{phantom.instance:02}.dcm")
    page.open(service.url)
    page.send(tmp_path / "phantoms", into="choose-folder")
    for scheme in ("dark", "light"):
        page.colours(scheme)
        for size, device in ((DESKTOP, "desktop"), (PHONE, "phone")):
            page.resize(size)
            page.wait(lambda: page.run(DRAWN))
            page.pixels()
            page.save(f"{device}-{scheme}")
            assert page.run("return document.documentElement.scrollWidth <= window.innerWidth")
    picture = SCREENSHOTS / "desktop-dark.png"
    assert picture.stat().st_size < 300_000
