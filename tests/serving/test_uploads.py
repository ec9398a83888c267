"""What is asked too much or wrong gets a clear answer; requests beside each other; names, limits, results kept."""

from __future__ import annotations

import socket
import time
from contextlib import suppress
from typing import Any

import cv2
import numpy as np
import pytest
from tests.conftest import wait_for
from tests.serving.conftest import (
    CLASSIFY,
    FORM,
    MIB,
    PATIENCE,
    SLOW,
    Running,
    Start,
    everything,
    form,
    is_problem,
    picture,
    zipped,
)

NAMED = "Zwiebelfisch"
FAILS = f"if item.origin.file.endswith('bad.png'): raise RuntimeError('{NAMED} in ' + item.origin.file)"


@pytest.fixture(scope="module")
def tight(start: Start) -> Running:
    """A service that takes on little."""
    of_one = (
        "--upload-mib 1 --files 3 --slices 4 --pixels 20000 --unpacked-mib 1 --seconds 8 --keep-seconds 2"
    )
    return start(*of_one.split(), "--requests", "2", "--idle-seconds", "1")


@pytest.fixture(scope="module")
def hasty(start: Start) -> Running:
    """A service that gives a request a second, and classifies two slices in it."""
    return start("--seconds", "1", "--workers", "1", code=SLOW)


@pytest.fixture(scope="module")
def slow(start: Start) -> Running:
    """A service of one worker that takes half a second for a slice."""
    return start("--workers", "1", code=SLOW)


def test_more_than_is_allowed(tight: Running, png: bytes) -> None:
    assert tight.post(("a.png", png + bytes(MIB - len(png)))).status_code == 200, "the form does not count"
    is_problem(tight.post(("a.png", bytes(MIB + 4096))), 413, "upload-too-large", "1,048,576 bytes")
    is_problem(tight.send(iter([form("a.png", bytes(3 * MIB))])), 413, "upload-too-large")  # says no size
    assert tight.send(iter([form("a.png", png)])).status_code == 200
    is_problem(tight.post(*((f"{number}.png", png) for number in range(4))), 413, "too-many-files")
    is_problem(tight.post(("a.zip", zipped(*[png] * 5))), 413, "too-many-slices")
    wide = bytes(cv2.imencode(".png", np.zeros((150, 150), np.uint8))[1])
    rows = tight.rows(("wide.png", wide), ("a.zip", zipped(png + bytes(2 * MIB))), ("good.png", png))
    assert [row["status"] for row in rows] == ["failed", "failed", "ok"]
    assert "150 x 150 pixels are more than the limit of 20,000" in rows[0]["reason"]
    assert "bytes are more than the limit of 1,048,576" in rows[1]["reason"]


NO_FORMS: list[tuple[bytes, dict[str, str], int, str]] = [
    (b"no form", {}, 415, "unsupported-media-type"),
    (b"{}", {"Content-Type": "application/json"}, 415, "unsupported-media-type"),
    (b"no boundary", {"Content-Type": "multipart/form-data"}, 400, "bad-request"),
    (b"", FORM, 400, "bad-request"),
    (b"no part", FORM, 400, "bad-request"),
    (b"--0123456789--\r\n", FORM, 422, "invalid-request"),
    (form("a.png", b"x")[:-20], FORM, 400, "bad-request"),
    (form("a.png", b"x")[5:], FORM, 400, "bad-request"),
    (form("", b"x").replace(b'; filename=""', b""), FORM, 415, "unsupported-media-type"),
    (b"-" * 5000 + form("a.png", b"x"), FORM, 400, "bad-request"),
]


def test_what_is_no_form_no_image_no_option_no_address_and_no_method(tight: Running, png: bytes) -> None:
    for content, headers, status, kind in NO_FORMS:
        is_problem(tight.send(content, headers), status, kind)
    answer = tight.post(("a.txt", b"text"), ("b.png", b""))
    is_problem(answer, 415, "unsupported-media-type", "None of the 2 files")
    is_problem(tight.post(("a.png", png), keep="perhaps"), 422, "invalid-request", "keep")
    is_problem(tight.get("/nothing"), 404, "not-found")
    is_problem(tight.ask("POST", "/v1/findings"), 410, "gone")
    is_problem(tight.get("/v2/results/none/slices/x/picture.png"), 422, "invalid-request")
    is_problem(tight.get("/v2/results/none/slices/0/picture.png"), 404, "no-such-result")
    answer = tight.ask("PUT", "/v2/predictions")
    is_problem(answer, 405, "method-not-allowed")
    assert answer.headers["allow"] == "POST"


def test_more_files_than_a_process_may_have_open(start: Start) -> None:
    service = start(code="import resource; resource.setrlimit(resource.RLIMIT_NOFILE, (200, 200))")
    content = picture(1)
    answer = service.post(*((f"{number}.png", content) for number in range(300)))
    assert len(content) * 300 > MIB, "more than stays in memory"
    assert answer.json()["counts"]["total"] == 300


# What a client sends as the name of a file, or whole as the header of a part, and what the predictions call it.
NAMES: dict[str | bytes, str] = {
    "Screenshot 2024-05-01 at 9.41.00\u202fAM.png": "Screenshot 2024-05-01 at 9.41.00 AM.png",
    "CT\u00a012.dcm": "CT 12.dcm",
    "\u05e8\u05d9\u05d0\u05d5\u05ea\u200f.dcm": "\u05e8\u05d9\u05d0\u05d5\u05ea.dcm",
    "\u202egnp.exe": "gnp.exe",
    "Lu\u0308nge.dcm": "Lu\u0308nge.dcm",
    "x\ue000\x01\x7f.dcm": "x___.dcm",
    "a\u2028b\tc.dcm": "a b c.dcm",
    "2024-05-01T12:30:00.dcm": "2024-05-01T12_30_00.dcm",
    "\u80ba" * 80 + ".dcm": "\u80ba" * 80 + ".dcm",
    "x" * 996 + ".dcm": "x" * 180 + "\u2026" + "x" * 56 + ".dcm",
    "a/" * 40 + "b.png": "a/" * 31 + "b.png",
    "%2e%2e%2fa%20b.png": "%2e%2e%2fa%20b.png",
    "../a.png": "a.png",
    "/etc/a.png": "etc/a.png",
    "a/../../b.png": "a/b.png",
    "..\\\\a.png": "a.png",
    "a/": "a",
    " / . /..": "file",
    b"form-data; name=files; filename*=UTF-8''%e8%82%ba%2F..%2F1.png": "\u80ba/1.png",
    b"form-data; name=files; filename*=iso-8859-1'de'L%fcnge.png": "L\u00fcnge.png",
    b"form-data; filename*0*=UTF-8''a%20; filename*1=b.png": "a b.png",
    b"form-data; filename=a.png; filename*=UTF-8''b.png": "a.png",
    b"form-data; name=scan; filename*=undefined''%ff": "scan",
    b'form-data; name="L\xfcnge"; filename=""': "L\u00fcnge",
    b'form-data; filename="L\xfcnge.png"': "L\u00fcnge.png",
    b"": "file",
}


@pytest.mark.parametrize("sent", NAMES, ids=ascii)
def test_odd_names_are_cleaned_and_what_has_none_gets_one(
    service: Running, png: bytes, sent: str | bytes
) -> None:
    header = f'form-data; filename="{sent}"'.encode() if isinstance(sent, str) else sent
    body = b"Some programs write this.\r\n-- \r\n--0123456789\r\nContent-Disposition: " + header
    body += b"\r\n\r\n" + png + b"\r\n--0123456789--\r\nand that"
    charset = {"Content-Type": FORM["Content-Type"] + "; charset=undefined"}
    for padding in (b"", bytes(MIB)):  # in memory; on disk
        (row,) = service.send(body + padding, charset).json()["predictions"]
        assert (row["status"], row["file"]) == ("ok", NAMES[sent])
    assert service.is_clean()


def test_files_of_one_name_are_numbered(service: Running, png: bytes) -> None:
    names = ["a.png", "A.png", "a.png", "b", "b/1.png", "b/1.png", "c/1.png", "c"]
    told = ["a.png", "A-2.png", "a-3.png", "b", "b-5/1.png", "b-6/1.png", "c/1.png", "c-8"]
    for padding in (b"", bytes(MIB)):
        rows = service.rows(*((name, png + padding) for name in names))
        assert sorted(row["file"] for row in rows) == sorted(told)
        assert {row["status"] for row in rows} == {"ok"}


def test_an_uploaded_folder_behaves_as_a_folder(service: Running, png: bytes) -> None:
    left_out = [(name, b"no image") for name in ("ct/notes.txt", "ct/.DS_Store", "ct/__MACOSX/._1.png")]
    files = [("ct/10.png", png), ("ct/2.png", png), ("ct/.3.png", png), ("ct/4.webp", b"RIFF\0\0\0\0WEBP")]
    rows = service.rows(*left_out, *files, ("notes.txt", b"no image"))
    assert [(row["file"], row["status"]) for row in rows] == [
        ("ct/2.png", "ok"), ("ct/4.webp", "failed"), ("ct/10.png", "ok"), ("notes.txt", "failed"),
    ]  # fmt: skip
    assert "convert or unpack it" in rows[1]["reason"]
    is_problem(service.post(*left_out, ("ct/.3.png", png)), 415, "unsupported-media-type")


def test_head_is_get_without_the_content(service: Running) -> None:
    for path in ("/", "/v2/model", "/nothing", "/v2/predictions"):
        told, whole = service.ask("HEAD", path), service.get(path)
        assert (told.status_code, told.content) == (whole.status_code, b"")
        for name in ("content-type", "content-length", "content-security-policy"):
            assert told.headers[name] == whole.headers[name]


def test_as_many_requests_and_bytes_as_there_may_be(tight: Running, start: Start, png: bytes) -> None:
    content = form("a.png", png)
    with tight.connection(content, 100), tight.connection(content, 100):
        wait_for(lambda: tight.gauge("uploads_in_flight") == 2)
        is_problem(tight.post(("a.png", png)), 503, "busy", "2 uploads are in flight")
    assert tight.is_clean()
    assert tight.post(("a.png", png)).status_code == 200
    service = start("--client-requests", "1")
    with service.connection(content, 0) as opened:
        wait_for(lambda: service.gauge("uploads_in_flight") == 1)
        is_problem(service.post(("a.png", png)), 429, "too-many-requests")
        opened.sendall(content)
        assert opened.recv(65536).startswith(b"HTTP/1.1 200 ")
    service = start("--uploads-mib", "1")
    with service.connection(form("a.png", bytes(MIB - 2000)), 100):
        wait_for(lambda: service.gauge("upload_bytes") > 0)
        is_problem(service.post(("a.png", png)), 503, "busy", "fill the space")


def test_a_slow_upload_is_ended(tight: Running, hasty: Running, png: bytes) -> None:
    with tight.connection(form("a.png", png), 200) as opened:
        answer = everything(opened)
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert b"upload-too-slow" in answer
    assert tight.is_clean()
    content, answer = form("a.png", png * 50), b""
    with hasty.connection(content, 0) as opened:
        opened.settimeout(0.1)
        for byte in content:  # which would take many minutes
            opened.sendall(bytes([byte]))
            with suppress(TimeoutError):
                answer = opened.recv(65536)
                break
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert hasty.is_clean()


def test_work_that_takes_too_long_is_ended(hasty: Running, png: bytes) -> None:
    content = zipped(*[png] * 9)
    is_problem(hasty.post(("a.zip", content)), 503, "too-slow")
    assert hasty.is_clean()
    lines, broke = hasty.lines(("a.zip", content))
    assert broke
    assert "too-slow" in lines[-1], "the last line says why the answer ends without its end"


def test_headers_that_do_not_come_and_what_is_no_http(tight: Running) -> None:
    started = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nX-"
    for sent, answer in ((started, b""), (b"", b""), (b"x\r\n\r\n", b"HTTP/1.1 400 ")):
        with tight.connection() as opened:
            opened.sendall(sent)
            assert everything(opened)[:13] == answer


def test_an_answer_that_is_not_taken_is_given_up(start: Start) -> None:
    service = start("--idle-seconds", "1")
    noise = np.random.default_rng(0).integers(0, 256, (1500, 1500), np.uint8)
    content = bytes(cv2.imencode(".png", noise)[1])
    link = service.post(("a.png", content), keep="true").json()["predictions"][0]["image"]["picture"]
    with socket.socket() as opened:
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8192)
        opened.settimeout(PATIENCE)
        opened.connect(("127.0.0.1", service.port))
        asked, received = 8, b""
        opened.sendall(f"GET {link} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode() * asked)
        wait_for(lambda: any(entry.get("route", "").endswith("{layer}") for entry in service.log()))
        time.sleep(3)
        with suppress(ConnectionResetError):
            received = everything(opened)
    assert len(received) < asked * len(content)
    assert service.get("/healthz").status_code == 200


def test_a_client_that_goes_away_holds_its_place_until_the_work_for_it_has_ended(
    start: Start, png: bytes
) -> None:
    service = start("--requests", "1", code=SLOW.replace("0.5", "1"))
    with service.connection(form("many.zip", zipped(*[png] * 90)), query="?keep=true"):
        wait_for(lambda: service.gauge("kept_bytes") > 0)
    is_problem(service.post(("a.png", png)), 503, "busy")
    assert service.is_clean()
    assert service.err.count("done") == service.err.count("classifying"), (
        "nothing is removed while it is read"
    )
    (gone,) = (entry for entry in service.log() if entry.get("client_gone"))
    assert 0 < gone["slices"] < 90
    assert not gone["complete"]
    assert service.gauge("kept_results") == 0


def test_a_fault_is_an_answer_or_breaks_one_off_and_a_line_in_the_log(start: Start, png: bytes) -> None:
    service = start("--workers", "1", code=CLASSIFY.format(FAILS))
    answer = service.post(("bad.png", png))
    is_problem(answer, 500, "internal-error")
    assert NAMED not in answer.text
    assert service.post(("good.png", png)).status_code == 200, "it goes on"
    (entry,) = service.log("request failed")
    assert (entry["error"], entry["request"]) == ("RuntimeError", answer.headers["x-request-id"])
    assert any("sitecustomize.py:" in place for place in entry["through"])
    assert service.lines(("good.png", png), ("bad.png", png))[1]
    assert service.is_clean()
    assert not [secret for secret in (NAMED, "bad.png") if secret in service.out + service.err]


def test_a_small_request_does_not_wait_for_a_large_one(slow: Running, png: bytes) -> None:
    before = slow.err.count("done")
    with slow.connection(form("a.zip", zipped(*[png] * 200))):
        wait_for(lambda: slow.err.count("done") == before + 3)
        assert slow.post(("a.png", png)).status_code == 200
        assert slow.err.count("done") < before + 10, "its turn comes between two slices of the other"
    assert slow.is_clean()


def test_archives_are_worked_on_one_after_another_by_one_worker(slow: Running, png: bytes) -> None:
    def answered() -> list[Any]:
        return [entry for entry in slow.log("request") if entry["route"] == "/v2/predictions"]

    content, before, finished = form("a.zip", zipped(*[png] * 4)), slow.err.count("done"), len(answered())
    with slow.connection(content), slow.connection(content):
        wait_for(lambda: len(answered()) > finished)
        assert slow.err.count("done") < before + 6, "taking turns, they would end together"
        wait_for(lambda: slow.err.count("done") == before + 8)


def test_results_are_forgotten_after_a_while(tight: Running, png: bytes) -> None:
    link = tight.post(("a.png", png), keep="true").json()["kept"]["links"]["self"]
    assert tight.get(link).status_code == 200
    wait_for(lambda: tight.gauge("kept_results") == 0)
    is_problem(tight.get(link), 404, "no-such-result", "Send the files again")


def test_results_share_bounded_memory_and_the_oldest_are_forgotten(start: Start, png: bytes) -> None:
    service, content = start("--keep-mib", "1"), picture(1, size=512)

    def kept(count: int) -> dict[str, Any]:
        """A new result of so many slices."""
        return dict(service.post(("a.zip", zipped(*[content] * count)), keep="true").json())

    def known(*results: dict[str, Any]) -> list[bool]:
        return [service.get(each["kept"]["links"]["self"]).status_code == 200 for each in results]

    first, second = kept(1), kept(1)
    assert known(first, second) == [True, True]
    third = kept(2)
    assert known(first, second, third) == [False, True, True]
    pictures = [row["image"] is not None for row in kept(9)["predictions"]]
    assert 0 < sum(pictures) < len(pictures) == 9, "one result alone cannot grow without bounds"
    assert known(second, third) == [False, False]
    assert service.gauge("kept_bytes") <= MIB
    for _ in range(101):
        service.post(("a.png", png), keep="true")
    assert service.gauge("kept_results") <= 100
