"""A request that asks for too much, or a client that keeps the service waiting, gets a clear answer."""

from __future__ import annotations

import socket
import time
from contextlib import suppress

import cv2
import numpy as np
import pytest
from tests.conftest import wait_for
from tests.serving.conftest import (
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


@pytest.fixture(scope="module")
def tight(start: Start) -> Running:
    """A service that takes on little."""
    options = (
        "--upload-mib 1 --files 3 --slices 4 --pixels 20000 --unpacked-mib 1 --requests 2 --idle-seconds 1 "
        "--seconds 8 --keep-seconds 2 --uploads-mib 2"
    )
    return start(*options.split())


@pytest.fixture(scope="module")
def hasty(start: Start) -> Running:
    """A service that gives a request a second, and classifies two slices in it."""
    return start("--seconds", "1", "--workers", "1", code=SLOW)


def test_too_large_an_upload(tight: Running, png: bytes) -> None:
    assert tight.post(("a.png", png + bytes(MIB - len(png)))).status_code == 200, "the form does not count"
    is_problem(tight.post(("a.png", bytes(MIB + 4096))), 413, "upload-too-large", "1,048,576 bytes")
    # Without a size in the headers:
    is_problem(tight.send(iter([form("a.png", bytes(3 * MIB))])), 413, "upload-too-large")
    assert tight.send(iter([form("a.png", png)])).status_code == 200


def test_too_many_files_slices_and_pixels_and_too_much_to_unpack(tight: Running, png: bytes) -> None:
    is_problem(tight.post(*((f"{number}.png", png) for number in range(4))), 413, "too-many-files")
    is_problem(tight.post(("a.zip", zipped(*[png] * 5))), 413, "too-many-slices")
    wide = bytes(cv2.imencode(".png", np.zeros((150, 150), np.uint8))[1])
    rows = tight.rows(("wide.png", wide), ("a.zip", zipped(png + bytes(2 * MIB))), ("good.png", png))
    assert [row["status"] for row in rows] == ["failed", "failed", "ok"]
    assert "150 x 150 pixels are more than the limit of 20,000" in rows[0]["reason"]
    assert "bytes are more than the limit of 1,048,576" in rows[1]["reason"]


@pytest.mark.parametrize(
    ("content", "headers", "status", "kind"),
    [
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
    ],
)
def test_what_is_no_form_and_no_file(
    tight: Running, content: bytes, headers: dict[str, str], status: int, kind: str
) -> None:
    is_problem(tight.send(content, headers), status, kind)


def test_what_is_no_image_and_no_option(tight: Running, png: bytes) -> None:
    answer = tight.post(("a.txt", b"text"), ("b.png", b""))
    is_problem(answer, 415, "unsupported-media-type", "None of the 2 files")
    is_problem(tight.post(("a.png", png), keep="perhaps"), 422, "invalid-request", "keep")


def test_more_files_than_a_process_may_have_open(start: Start) -> None:
    service = start(code="import resource; resource.setrlimit(resource.RLIMIT_NOFILE, (200, 200))")
    content = picture(1)
    answer = service.post(*((f"{number}.png", content) for number in range(300)))
    assert len(content) * 300 > MIB, "more than stays in memory"
    assert answer.json()["counts"]["total"] == 300


# What a client sends as the name of a file, and what the predictions call it.
NAMES = {
    "Screenshot 2024-05-01 at 9.41.00\u202fAM.png": "Screenshot 2024-05-01 at 9.41.00 AM.png",
    "CT\u00a012.dcm": "CT 12.dcm",
    "\u80ba\u3000CT.dcm": "\u80ba CT.dcm",
    "\u05e8\u05d9\u05d0\u05d5\u05ea\u200f.dcm": "\u05e8\u05d9\u05d0\u05d5\u05ea.dcm",
    "\u202egnp.exe": "gnp.exe",
    "\ufeffx\u00ad.dcm": "x.dcm",
    "Lu\u0308nge.dcm": "Lu\u0308nge.dcm",
    "x\ue000\x01\x7f.dcm": "x___.dcm",
    "a\u2028b\tc.dcm": "a b c.dcm",
    "2024-05-01T12:30:00.dcm": "2024-05-01T12_30_00.dcm",
    "\u80ba" * 80 + ".dcm": "\u80ba" * 80 + ".dcm",
    "x" * 996 + ".dcm": "x" * 180 + "\u2026" + "x" * 56 + ".dcm",
    "a/" * 40 + "b.png": "a/" * 31 + "b.png",
    "CON.dcm": "CON.dcm",
    "~/x.dcm": "~/x.dcm",
    "%2e%2e%2fa%20b.png": "%2e%2e%2fa%20b.png",
    "../a.png": "a.png",
    "/etc/a.png": "etc/a.png",
    "a/../../b.png": "a/b.png",
    "..\\\\a.png": "a.png",
    "a/": "a",
    "...": "file",
    " / . /..": "file",
}


@pytest.mark.parametrize("name", NAMES, ids=ascii)
def test_odd_names_are_cleaned(service: Running, png: bytes, name: str) -> None:
    content = form(name, png).replace(b'name="files"; ', b"")
    for body in (content, content + bytes(MIB)):  # in memory; on disk
        (row,) = service.send(body).json()["predictions"]
        assert (row["status"], row["file"]) == ("ok", NAMES[name])
    assert service.is_clean()


@pytest.mark.parametrize(
    ("disposition", "name"),
    [
        (b"form-data; name=files; filename*=UTF-8''%e8%82%ba%2F..%2F1.png", "\u80ba/1.png"),
        (b"form-data; name=files; filename*=iso-8859-1'de'L%fcnge.png", "L\u00fcnge.png"),
        (b"form-data; filename*0*=UTF-8''a%20; filename*1=b.png", "a b.png"),
        (b"form-data; filename=a.png; filename*=UTF-8''b.png", "a.png"),
        (b"form-data; name=scan; filename*=undefined''%ff", "scan"),
        (b'form-data; name="L\xfcnge"; filename=""', "L\u00fcnge"),
        (b'form-data; filename="L\xfcnge.png"', "L\u00fcnge.png"),
        (b"form-data; name=files", "files"),
        (b"", "file"),
    ],
)
def test_what_is_named_in_another_way_or_not_at_all(
    service: Running, png: bytes, disposition: bytes, name: str
) -> None:
    body = b"Some programs write this.\r\n-- \r\n--0123456789\r\nContent-Disposition: " + disposition
    body += b"\r\n\r\n" + png + b"\r\n--0123456789--\r\nand that"
    charset = {"Content-Type": FORM["Content-Type"] + "; charset=undefined"}
    (row,) = service.send(body, charset).json()["predictions"]
    assert (row["status"], row["file"]) == ("ok", name)


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
    assert [row["file"] for row in rows] == ["ct/2.png", "ct/4.webp", "ct/10.png", "notes.txt"]
    assert [row["status"] for row in rows] == ["ok", "failed", "ok", "failed"]
    assert "WebP" in rows[1]["reason"]
    is_problem(service.post(*left_out, ("ct/.3.png", png)), 415, "unsupported-media-type")


@pytest.mark.parametrize("path", ["/", "/v2/model", "/openapi.json", "/nothing", "/v2/predictions"])
def test_head_is_get_without_the_content(service: Running, path: str) -> None:
    head, whole = service.ask("HEAD", path), service.get(path)
    assert head.status_code == whole.status_code
    assert head.content == b""
    for name in ("content-type", "content-length", "content-security-policy"):
        assert head.headers[name] == whole.headers[name]


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


@pytest.mark.parametrize(
    ("sent", "answer"),
    [(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nX-", b""), (b"", b""), (b"x\r\n\r\n", b"HTTP/1.1 400 ")],
)
def test_headers_that_do_not_come_and_what_is_no_http(tight: Running, sent: bytes, answer: bytes) -> None:
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


def test_a_client_that_goes_away(start: Start, png: bytes) -> None:
    service = start(code=SLOW)
    with service.connection(form("many.zip", zipped(*[png] * 90)), query="?keep=true"):
        wait_for(lambda: service.gauge("kept_bytes") > 0)
    assert service.is_clean()
    (gone,) = (entry for entry in service.log() if entry.get("client_gone"))
    assert 0 < gone["slices"] < 90
    assert not gone["complete"]
    assert service.gauge("kept_results") == 0


def test_results_are_forgotten_after_a_while(tight: Running, png: bytes) -> None:
    link = tight.post(("a.png", png), keep="true").json()["kept"]["links"]["self"]
    assert tight.get(link).status_code == 200
    wait_for(lambda: tight.gauge("kept_results") == 0)
    is_problem(tight.get(link), 404, "no-such-result", "Send the files again")


def test_results_share_bounded_memory_and_the_oldest_are_forgotten(start: Start, png: bytes) -> None:
    service, content = start("--keep-mib", "1"), picture(1, size=512)

    def kept(count: int) -> tuple[str, int]:
        """The address of a new result of so many slices, and of how many it has pictures."""
        document = service.post(("a.zip", zipped(*[content] * count)), keep="true").json()
        assert len(document["predictions"]) == count
        pictures = sum(row["image"] is not None for row in document["predictions"])
        return document["kept"]["links"]["self"], pictures

    def known(*results: tuple[str, int]) -> list[bool]:
        return [service.get(address).status_code == 200 for address, _ in results]

    first, second = kept(1), kept(1)
    assert known(first, second) == [True, True]
    third = kept(2)
    assert known(first, second, third) == [False, True, True]
    assert 0 < kept(9)[1] < 9, "one result alone cannot grow without bounds"
    assert known(second, third) == [False, False]
    assert service.gauge("kept_bytes") <= MIB
    for _ in range(101):
        service.post(("a.png", png), keep="true")
    assert service.gauge("kept_results") <= 100


@pytest.mark.parametrize(
    ("method", "path", "status", "kind"),
    [
        ("GET", "/nothing", 404, "not-found"),
        ("POST", "/v1/findings", 410, "gone"),
        ("PUT", "/v2/predictions", 405, "method-not-allowed"),
        ("GET", "/v2/results/none/slices/x/picture.png", 422, "invalid-request"),
        ("GET", "/v2/results/none/slices/0/picture.png", 404, "no-such-result"),
    ],
)
def test_unknown_addresses_and_methods(
    tight: Running, method: str, path: str, status: int, kind: str
) -> None:
    answer = tight.ask(method, path)
    is_problem(answer, status, kind)
    assert (answer.headers.get("allow") == "POST") == (status == 405)
