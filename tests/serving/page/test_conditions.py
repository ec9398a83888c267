"""The page where something is in the way: tokens, limits, lost connections, hostile sites, other ways to see."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

import pytest
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from tests.serving.page.conftest import DESKTOP, DONE, PHONE, Page, Samples
from tests.serving.service.conftest import TOKEN, Running, Start

pytestmark = pytest.mark.slow

AXE = (Path(__file__).parent / "vendor" / "axe.min.js").read_text(encoding="utf-8")
# What only happens by bad luck: the third of three slices finds the service at its end.
BREAKS_OFF = """
from groundglass.serving.jobs import Job
from groundglass.serving.schemas import Problem
classify = Job._classify
def broken(self, item):
    if "broken" in str(item) and self._heat_maps == "link":
        raise Problem("too-slow", "The request took more than 300 seconds; send fewer files at a time.")
    return classify(self, item)
Job._classify = broken
"""


@pytest.fixture(scope="module")
def tight(start_real: Start) -> Running:
    """A service that takes little, and breaks off where three files are sent."""
    return start_real("--upload-mib", "1", "--requests", "1", "--files", "8", code=BREAKS_OFF)


@pytest.fixture(scope="module")
def guarded(start_real: Start) -> Running:
    """A service that asks for a token."""
    return start_real(token=TOKEN)


def enter(page: Page, token: str) -> None:
    page.wait(page["token-dialog"].is_displayed)
    page["token"].send_keys(token, Keys.ENTER)


def test_a_token_is_asked_for_and_kept_in_memory_only(page: Page, guarded: Running, samples: Samples) -> None:
    page.open(guarded.url)
    enter(page, "wrong-token-wrong-token")
    page.wait(lambda: "did not accept" in page["token-error"].text)
    enter(page, TOKEN)
    page.wait(lambda: not page["token-dialog"].is_displayed())
    page.send(samples.study, into="choose-folder")
    page.wait(lambda: page.run("return document.querySelector('#gallery canvas').width > 1"))
    assert len(set(page.pixels())) > 20, "pictures come with the token"
    page.driver.find_element(By.CSS_SELECTOR, "[data-export=csv]").click()
    landed = page.downloads / "predictions.csv"
    page.wait(lambda: landed.exists() and b"ill/01.dcm" in landed.read_bytes())
    stores = "[document.cookie, JSON.stringify(localStorage), JSON.stringify(sessionStorage), location.href]"
    assert page.run(f"return {stores}") == ["", "{}", "{}", f"{guarded.url}/"]
    assert TOKEN not in page.run(
        "return document.documentElement.outerHTML + document.getElementById('token').value"
    )
    page.driver.refresh()
    page.wait(page["token-dialog"].is_displayed)
    assert TOKEN not in guarded.out.read_text()


def test_without_the_token_there_is_a_way_back_to_the_question(page: Page, guarded: Running) -> None:
    page.open(guarded.url)
    page.wait(page["token-dialog"].is_displayed)
    page.press(Keys.ESCAPE)
    assert "answers only with its token" in page.message()
    page.answer("Enter the token")
    enter(page, TOKEN)
    page.wait(lambda: not page["message"].is_displayed())


def test_a_page_without_a_token_asks_for_none(page: Page, service: Running) -> None:
    page.open(service.url)
    page["open-card"].click()
    page.wait(lambda: page["card"].text)
    assert not page["token-dialog"].is_displayed()


def test_too_large_an_upload(page: Page, tight: Running, samples: Samples, tmp_path: Path) -> None:
    large = tmp_path / "large.dcm"
    large.write_bytes(samples.series[0].read_bytes() + bytes(3 * 2**20))
    page.open(tight.url)
    page.choose(large)
    told = page.message()
    assert told.startswith("Too large.")
    assert "1,048,576 bytes" in told
    assert page["drop"].is_displayed()
    assert "Choose files" in page["message"].text
    page.send(samples.slices[0])
    assert not page["message"].is_displayed(), "what went wrong is over"


def test_too_many_files_and_nothing_to_look_at(
    page: Page, tight: Running, samples: Samples, tmp_path: Path
) -> None:
    many = [tmp_path / f"{number}.png" for number in range(9)]
    for path in many:
        path.write_bytes(samples.slices[0].read_bytes()[:2000])
    page.open(tight.url)
    page.choose(*many)
    assert page.message().startswith("Too many files. More than 8 files")
    text = tmp_path / "notes.txt"
    text.write_text("no image")
    page.choose(text)
    page.wait(lambda: "No image." in page.message())


def test_a_busy_service_says_when_to_come_again(page: Page, tight: Running, samples: Samples) -> None:
    page.open(tight.url)
    with socket.create_connection(("127.0.0.1", tight.port)) as other:
        head = "POST /v2/predictions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n"
        other.sendall(f"{head}Content-Type: multipart/form-data; boundary=x\r\n\r\n".encode())
        page.wait(lambda: tight.gauge("uploads_in_flight") == 1)
        page.choose(samples.slices[0])
        told = page.message()
        assert told.startswith("The service is busy.")
        assert "wait 2 s" in told
    tight.wait_until_idle()
    page.answer("Try again")
    page.wait(lambda: page.run(DONE))
    assert len(page.cards()) == 1


def test_an_answer_that_breaks_off_says_why(page: Page, tight: Running, samples: Samples) -> None:
    page.open(tight.url)
    page.choose(*samples.slices, samples.broken)
    told = page.message()
    assert "took" in told
    assert "send fewer files at a time" in told
    assert page["drop"].is_displayed()


def test_a_result_that_is_forgotten_can_be_had_again(page: Page, service: Running, samples: Samples) -> None:
    page.open(service.url)
    page.send(samples.study, into="choose-folder")
    with service.client() as client:
        assert client.delete(page.address()).status_code == 204
    page.press(Keys.END)
    assert "has forgotten this upload" in page.message()
    assert len(page.cards()) == 14, "what was found stays"
    page.answer("Send the files again")
    page.wait(lambda: not page["message"].is_displayed() and page.run(DONE))
    assert len(page.cards()) == 14
    page.driver.find_element(By.CSS_SELECTOR, "[data-export=jsonl]").click()
    page.wait((page.downloads / "predictions.jsonl").exists)


def test_a_connection_that_is_lost(page: Page, service: Running, samples: Samples) -> None:
    page.open(service.url)
    page.driver.execute_cdp_cmd("Network.enable", {})
    offline = {"offline": True, "latency": 0, "downloadThroughput": -1, "uploadThroughput": -1}
    try:
        page.driver.execute_cdp_cmd("Network.emulateNetworkConditions", offline)
        page.choose(*samples.slices)
        assert "connection was lost" in page.message()
        page["open-card"].click()
        page.wait(lambda: "cannot be reached" in page.message())
    finally:
        page.driver.execute_cdp_cmd("Network.emulateNetworkConditions", {**offline, "offline": False})
    page.answer("Try again")
    page.wait(lambda: page["card"].text)
    page.press(Keys.ESCAPE)
    page.send(*samples.slices)
    assert len(page.cards()) == 2


def test_an_upload_can_be_cancelled(page: Page, service: Running, samples: Samples) -> None:
    page.open(service.url)
    page.driver.execute_cdp_cmd("Network.enable", {})
    slow = {"offline": False, "latency": 0, "downloadThroughput": -1, "uploadThroughput": 20_000}
    try:
        page.driver.execute_cdp_cmd("Network.emulateNetworkConditions", slow)
        page.choose(*samples.series)
        page.wait(page["cancel"].is_displayed)
        assert "Sending 7 files" in page["progress-text"].text
        page["cancel"].click()
        page.wait(page["drop"].is_displayed)
        assert not page["progress"].is_displayed()
        assert not page["message"].is_displayed()
    finally:
        page.driver.execute_cdp_cmd("Network.emulateNetworkConditions", {**slow, "uploadThroughput": -1})


def test_the_policy_keeps_out_what_does_not_belong(page: Page, service: Running, tight: Running) -> None:
    page.open(service.url)
    page.run(
        "window.blocked = []; document.addEventListener('securitypolicyviolation',"
        "(event) => blocked.push(event.effectiveDirective));"
    )
    asked = page.driver.execute_async_script(
        "const done = arguments[1]; fetch(arguments[0]).then(() => done('came'), () => done('blocked'))",
        f"{tight.url}/healthz",
    )
    assert asked == "blocked"
    page.run(
        "const script = document.createElement('script'); script.append('window.hacked = 1');"
        "try { document.body.append(script); } catch {}"
        "const picture = new Image(); picture.src = arguments[0] + '/page/icon.svg'; document.body.append(picture);",
        tight.url,
    )
    assert (
        page.run("try { document.body.innerHTML = '<b>x</b>'; return 'made'; } catch { return 'refused'; }")
        == "refused"
    )
    page.wait(lambda: {"connect-src", "img-src"} <= set(page.run("return blocked")))
    assert page.run("return window.hacked") is None
    assert page.complaints() != []
    assert page.run("return document.cookie") == ""


def faults(page: Page) -> list[dict[str, Any]]:
    """What axe-core finds."""
    if not page.run("return 'axe' in window"):
        page.run(AXE)
    found = page.driver.execute_async_script(
        "const done = arguments[0]; axe.run(document, {resultTypes: ['violations']})"
        ".then(({violations}) => done(violations.map(({id, nodes}) => ({id, nodes: nodes.map(node =>"
        "[node.html.slice(0, 120), node.failureSummary])}))))"
    )
    return list(found)


@pytest.mark.parametrize("size", [DESKTOP, PHONE], ids=["desktop", "phone"])
@pytest.mark.parametrize("scheme", ["dark", "light"])
def test_accessibility(
    page: Page, service: Running, samples: Samples, scheme: str, size: tuple[int, int]
) -> None:
    page.resize(size)
    page.colours(scheme)
    page.open(service.url)
    assert faults(page) == [], "at the start"
    page.send(*samples.slices, *samples.series, samples.photograph, samples.broken)
    assert faults(page) == [], "with a slice"
    page.press(Keys.END, Keys.ARROW_LEFT)
    page.chosen()
    assert faults(page) == [], "with a refused slice"
    page["open-card"].click()
    page.wait(lambda: page["card"].text)
    assert faults(page) == [], "with the model card"
    page.press(Keys.ESCAPE)
    page["open-keys"].click()
    assert faults(page) == [], "with the keys"
    assert page.run("return document.documentElement.scrollWidth <= window.innerWidth"), "nothing is cut off"


@pytest.mark.parametrize("scheme", ["dark", "light"])
def test_accessibility_of_questions_and_problems(page: Page, guarded: Running, scheme: str) -> None:
    page.colours(scheme)
    page.open(guarded.url)
    page.wait(page["token-dialog"].is_displayed)
    assert faults(page) == []
    page.press(Keys.ESCAPE)
    page.message()
    assert faults(page) == []
