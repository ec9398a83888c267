"""What is too much or wrong gets a clear answer; names, limits, results; SIGTERM: what was accepted is finished."""

import os
import socket
import stat
import tempfile
import threading
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any

import cv2
import httpx
import numpy as np
import pytest
from tests.conftest import Patch, png, wait_for
from tests.serving.conftest import FORM, MIB, PATIENCE, PNG, Running, Start, is_problem, packed

from groundglass.serving.jobs import upload_directory

CLIENTS = 6
CLASSIFY = """
import sys, time
from groundglass.inference.classifier import Classifier
classify = Classifier.classify
def say(word):
    print(word, file=sys.stderr, flush=True)
def changed(self, item, **options):
    {}
    return classify(self, item, **options)
Classifier.classify = changed
"""
SLOW = CLASSIFY.format("say('classifying'); time.sleep(0.5); say('done')")
NAMED = "Zwiebelfisch"
FAILS = f"if item.origin.file.endswith('bad.png'): raise RuntimeError('{NAMED} in ' + item.origin.file)"
SMALL = ("a.png", PNG)
# What a client sends as the name of a file, or whole as the header of a part, and what the predictions call it.
NAMES: dict[str | bytes, str] = {
    "Screenshot 2024-05-01 at 9.41.00\u202fAM.png": "Screenshot 2024-05-01 at 9.41.00 AM.png",
    "\u05e8\u05d9\u05d0\u05d5\u05ea\u200f.dcm": "\u05e8\u05d9\u05d0\u05d5\u05ea.dcm",
    "\u202egnp.exe": "gnp.exe", "Lu\u0308nge.dcm": "Lu\u0308nge.dcm", "x\ue000\x01\x7f.dcm": "x___.dcm",
    "2024-05-01T12:30:00!.dcm": "2024-05-01T12_30_00_.dcm",
    "x" * 996 + ".dcm": "x" * 180 + "\u2026" + "x" * 56 + ".dcm", "a/" * 40 + "b.png": "a/" * 7 + "b.png",
    "%2e%2e%2fa%20b.png": "%2e%2e%2fa%20b.png", "../a.png": "a.png", "/etc/a.png": "etc/a.png",
    "a/../../b.png": "a/b.png", "..\\\\a.png": "a.png", " / . /..": "file",
    b"form-data; name=files; filename*=UTF-8''%e8%82%ba%2F..%2F1.png": "\u80ba/1.png",
    b"form-data; filename*0*=UTF-8''a%20; filename*1=b.png": "a b.png",
    b"form-data; filename=a.png; filename*=UTF-8''b.png": "a.png",
    b"form-data; name=scan; filename*=undefined''%ff": "scan", b"form-data; name*=UTF-8''x": "x",
    b"form-data; name=scan; filename*=punycode''aaaa": "file",
    b"form-data; name=scan; filename*=utf-8''a; filename*0=b": "file",
    b'form-data; name="L\xfcnge"; filename=""': "L\u00fcnge", b"": "file",
}  # fmt: skip


def zipped(count: int, content: bytes = PNG) -> bytes:
    """A zip that holds a picture so many times."""
    return packed({f"{number}.png": content for number in range(count)})


def form(content: bytes, name: str = "a.png") -> bytes:
    head = f'Content-Disposition: form-data; name="files"; filename="{name}"\r\n\r\n'.encode()
    return b"--0123456789\r\n" + head + content + b"\r\n--0123456789--\r\n"


def everything(opened: socket.socket) -> bytes:
    return b"".join(iter(lambda: opened.recv(65536), b""))


@pytest.fixture(scope="module")
def tight(start: Start) -> Running:
    """A service that takes on little."""
    of_one = "--upload-mib 1 --files 3 --slices 4 --pixels 20000 --unpacked-mib 1 --seconds 8 --requests 2"
    return start(*of_one.split(), "--keep-seconds", "2", "--idle-seconds", "1")


@pytest.fixture(scope="module")
def hasty(start: Start) -> Running:
    """A service that gives a request a second, and classifies two slices in it."""
    return start("--seconds", "1", "--workers", "1", code=SLOW)


@pytest.fixture(scope="module")
def slow(start: Start) -> Running:
    """A service of one worker that takes half a second for a slice."""
    return start("--workers", "1", code=SLOW)


def test_more_than_is_allowed(tight: Running) -> None:
    assert tight.post(("a.png", PNG + bytes(MIB - len(PNG)))).status_code == 200, "the form does not count"
    is_problem(tight.post(("a.png", bytes(MIB + 4096))), 413, "upload-too-large", "1,048,576 bytes")
    is_problem(tight.send(iter([form(bytes(3 * MIB))])), 413, "upload-too-large")  # says no size
    assert tight.send(iter([form(PNG)])).status_code == 200
    is_problem(tight.post(*[SMALL] * 4), 413, "too-many-files")
    is_problem(tight.post(("a.zip", zipped(5))), 413, "too-many-slices")
    wide = bytes(cv2.imencode(".png", np.zeros((150, 150), np.uint8))[1])
    rows = tight.rows(("wide.png", wide), ("a.zip", zipped(1, PNG + bytes(2 * MIB))), ("good.png", PNG))
    assert [row["status"] for row in rows] == ["failed", "failed", "ok"]
    assert "150 x 150 pixels are more than the limit of 20,000" in rows[0]["reason"]
    assert "bytes are more than the limit of 1,048,576" in rows[1]["reason"]


def test_what_is_no_form_no_image_no_option_no_address_and_no_method(tight: Running) -> None:
    for content, headers, status, kind in (
        (b"no form", {}, 415, "unsupported-media-type"),
        (b"no boundary", {"Content-Type": "multipart/form-data"}, 400, "bad-request"),
        (b"", FORM, 400, "bad-request"),
        (b"--0123456789--\r\n", FORM, 422, "invalid-request"),
        (form(b"x")[:-20], FORM, 400, "bad-request"),
        (form(b"x", "").replace(b'; filename=""', b""), FORM, 415, "unsupported-media-type"),
        (b"-" * 5000 + form(b"x"), FORM, 400, "bad-request"),
    ):
        is_problem(tight.send(content, headers), status, kind)
    answer = tight.post(("a.txt", b"text"), ("b.png", b""))
    is_problem(answer, 415, "unsupported-media-type", "None of the 2 files")
    is_problem(tight.post(SMALL, keep="perhaps"), 422, "invalid-request", "keep")
    is_problem(tight.get("/nothing"), 404, "not-found")
    is_problem(tight.get("/v2/results/none/slices/x/picture.png"), 422, "invalid-request")
    is_problem(tight.get("/v2/results/none/slices/0/picture.png"), 404, "no-such-result")
    answer = tight.ask("PUT", "/v2/predictions")
    is_problem(answer, 405, "method-not-allowed")
    assert answer.headers["allow"] == "POST"
    assert {*tight.ask("PUT", "/v2/results/x").headers["allow"].split(", ")} == {"GET", "DELETE"}
    upgrade = {**FORM, "Upgrade": "h2c", "Connection": "Upgrade"}
    is_problem(tight.send(form(PNG), upgrade), 400, "bad-request", "without the header Upgrade")


def test_more_files_than_a_process_may_have_open(start: Start) -> None:
    service = start(code="import resource; resource.setrlimit(resource.RLIMIT_NOFILE, (200, 200))")
    assert len(PNG) * 300 > MIB, "more than stays in memory"
    assert service.post(*[SMALL] * 300).json()["counts"]["total"] == 300


@pytest.mark.parametrize("sent", NAMES, ids=ascii)
def test_odd_names_are_cleaned_and_what_has_none_gets_one(service: Running, sent: str | bytes) -> None:
    header = f'form-data; filename="{sent}"'.encode() if isinstance(sent, str) else sent
    body = b"--0123456789\r\nContent-Disposition: " + header
    body += b"\r\n\r\n" + PNG + b"\r\n--0123456789--\r\nand that"
    charset = {"Content-Type": FORM["Content-Type"] + "; charset=undefined"}
    for padding in (b"", bytes(MIB)):  # in memory; on disk
        (row,) = service.send(body + padding, charset).json()["predictions"]
        assert (row["status"], row["file"]) == ("ok", NAMES[sent])
    assert service.is_clean()


def test_files_of_one_name_are_numbered(service: Running) -> None:
    names = ["a.png", "A.png", "a.png", "b", "b/1.png", "b/1.png", "c/1.png", "c"]
    told = ["a.png", "A-2.png", "a-3.png", "b", "b-5/1.png", "b-5/1-6.png", "c/1.png", "c-8"]
    for padding in (b"", bytes(MIB)):
        rows = service.rows(*((name, PNG + padding) for name in names))
        assert sorted((row["file"], row["status"]) for row in rows) == [(name, "ok") for name in sorted(told)]


def test_an_uploaded_folder_behaves_as_a_folder(service: Running) -> None:
    left_out = [(name, b"no image") for name in ("ct/notes.txt", "ct/.DS_Store", "ct/__MACOSX/._1.png")]
    files = [("ct/10.png", PNG), ("ct/2.png", PNG), ("ct/.3.png", PNG), ("ct/4.webp", b"RIFF\0\0\0\0WEBP")]
    rows = service.rows(*left_out, *files, ("notes.txt", b"no image"))
    assert [(row["file"], row["status"]) for row in rows] == [
        ("ct/2.png", "ok"), ("ct/4.webp", "failed"), ("ct/10.png", "ok"), ("notes.txt", "failed"),
    ]  # fmt: skip
    assert "convert or unpack it" in rows[1]["reason"]
    is_problem(service.post(*left_out, ("ct/.3.png", PNG)), 415, "unsupported-media-type", "MetaImage, NRRD or zip")
    header = b"ObjectType = Image\nNDims = 3\nDimSize = 9 9 9\nElementType = MET_SHORT\nElementDataFile = a.raw\n"
    rows = service.rows(("a.raw", bytes(2 * 9**3)), ("a.mhd", header))
    assert {row["file"] for row in rows} == {"a.mhd"}, "its voxels have no row of their own"


def test_as_many_requests_and_bytes_as_there_may_be(tight: Running, start: Start) -> None:
    content = form(PNG)
    with tight.connection(content, 100), tight.connection(content, 100):
        wait_for(lambda: tight.gauge("uploads_in_flight") == 2)
        is_problem(tight.post(SMALL), 503, "busy", "2 uploads are in flight")
    assert tight.is_clean()
    assert tight.post(SMALL).status_code == 200
    service = start("--uploads-mib", "1")
    with service.connection(form(bytes(MIB - 2000)), 100):
        wait_for(lambda: service.gauge("upload_bytes") > 0)
        is_problem(service.post(SMALL), 503, "busy", "fill the space")


def test_a_slow_upload_is_ended(tight: Running, hasty: Running) -> None:
    with tight.connection(form(PNG), 200) as opened:
        answer = everything(opened)
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert b"upload-too-slow" in answer
    assert tight.is_clean()
    content, answer = form(PNG * 50), b""
    with hasty.connection(content, 0) as opened:
        opened.settimeout(0.1)
        for byte in content:  # which would take many minutes
            opened.sendall(bytes([byte]))
            with suppress(TimeoutError):
                answer = opened.recv(65536)
                break
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert hasty.is_clean()


def test_work_that_takes_too_long_is_ended(hasty: Running) -> None:
    content = zipped(9)
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
    for head in (b"x: y\r\n" * 200 + b"\r\n", b"x: " + b"y" * 300_000):
        with tight.connection() as opened, suppress(ConnectionResetError, BrokenPipeError):
            opened.sendall(started + head)
            assert everything(opened) == b"", "too many, and too long"
    with tight.connection() as opened, suppress(ConnectionResetError, BrokenPipeError):
        sent = b"POST /v2/predictions HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nX: "
        opened.sendall(sent + b"y" * 2**21)
        assert not everything(opened).startswith(b"HTTP/1.1 200"), "trailers count too"
    with tight.connection() as opened:
        opened.sendall(started + b": y\r\n\r\n")
        assert opened.recv(65536).startswith(b"HTTP/1.1 200 ")
        opened.sendall(b"\r\n")
        assert b"HTTP" not in everything(opened), "a blank line begins no request"


def test_an_answer_that_is_not_taken_is_given_up(start: Start) -> None:
    service, asked, received = start("--idle-seconds", "1"), 8, b""
    noise = np.random.default_rng(0).integers(0, 256, (1500, 1500), np.uint8)
    content = bytes(cv2.imencode(".png", noise)[1])
    link = service.kept(("a.png", content))["predictions"][0]["image"]["picture"]
    with socket.socket() as opened:
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8192)
        opened.settimeout(PATIENCE)
        opened.connect(("127.0.0.1", service.port))
        opened.sendall(f"GET {link} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode() * asked)
        wait_for(lambda: any(entry.get("route", "").endswith("{layer}") for entry in service.log()))
        time.sleep(3)
        with suppress(ConnectionResetError):
            received = everything(opened)
    assert len(received) < asked * len(content)
    assert service.get("/healthz").status_code == 200


def test_a_client_that_goes_away_holds_its_place_until_its_work_has_ended(start: Start) -> None:
    service = start("--requests", "1", code=SLOW.replace("0.5", "1"))
    with service.connection(form(zipped(90), "many.zip"), query="?keep=true"):
        wait_for(lambda: service.gauge("kept_bytes") > 0)
    is_problem(service.post(SMALL), 503, "busy")
    assert service.is_clean()
    done, begun = (service.err.count(word) for word in ("done", "classifying"))
    assert done == begun, "nothing is removed while it is read"
    (gone,) = (entry for entry in service.log() if entry.get("client_gone"))
    assert 0 < gone["slices"] < 90
    assert not gone["complete"]
    assert service.gauge("kept_results") == 0


def test_a_fault_is_an_answer_or_breaks_one_off_and_a_line_in_the_log(start: Start) -> None:
    service = start("--workers", "1", code=CLASSIFY.format(FAILS))
    answer = service.post(("bad.png", PNG))
    is_problem(answer, 500, "internal-error")
    assert NAMED not in answer.text
    assert service.post(SMALL).status_code == 200, "it goes on"
    (entry,) = service.log("request failed")
    assert (entry["error"], entry["request"]) == ("RuntimeError", answer.headers["x-request-id"])
    assert any("<string>:" in place for place in entry["through"])
    assert service.lines(SMALL, ("bad.png", PNG))[1]
    assert service.is_clean()
    assert not [secret for secret in (NAMED, "bad.png") if secret in service.out + service.err]


def test_a_small_request_does_not_wait_for_a_large_one(slow: Running) -> None:
    before = slow.err.count("done")
    with slow.connection(form(zipped(200), "a.zip")):
        wait_for(lambda: slow.err.count("done") == before + 3)
        assert slow.post(SMALL).status_code == 200
        assert slow.err.count("done") < before + 10, "its turn comes between two slices of the other"
    assert slow.is_clean()


def test_archives_are_worked_on_one_after_another_by_one_worker(slow: Running) -> None:
    def answered() -> int:
        return sum(entry["route"] == "/v2/predictions" for entry in slow.log("request"))

    content, before, finished = form(zipped(4), "a.zip"), slow.err.count("done"), answered()
    with slow.connection(content), slow.connection(content):
        wait_for(lambda: answered() > finished)
        assert slow.err.count("done") < before + 6, "taking turns, they would end together"
        wait_for(lambda: slow.err.count("done") == before + 8)


def test_results_are_forgotten_after_a_while(tight: Running) -> None:
    link = tight.kept(SMALL)["kept"]["links"]["self"]
    assert tight.get(link).status_code == 200
    wait_for(lambda: tight.gauge("kept_results") == 0)
    is_problem(tight.get(link), 404, "no-such-result", "Send the files again")


def test_results_share_bounded_memory_and_the_oldest_are_forgotten(start: Start) -> None:
    service, content = start("--keep-mib", "1"), png(1, size=512)

    def kept(count: int) -> dict[str, Any]:
        """A new result of so many slices."""
        return service.kept(("a.zip", zipped(count, content)))

    def known(*results: dict[str, Any]) -> list[bool]:
        return [service.get(each["kept"]["links"]["self"]).status_code == 200 for each in results]

    first, second = kept(1), kept(1)
    assert known(first, second) == [True, True]
    third = kept(2)
    assert service.kept(("a.png", png(1, size=1100)))["predictions"][0]["image"] is None, "it can never fit"
    assert known(first, second, third) == [False, True, True]
    pictures = [row["image"] is not None for row in kept(9)["predictions"]]
    assert 0 < sum(pictures) < len(pictures) == 9, "one result alone cannot grow without bounds"
    assert known(second, third) == [False, False]
    assert service.gauge("kept_bytes") <= MIB
    for _ in range(101):
        service.kept(SMALL)
    assert service.gauge("kept_results") <= 100
    assert service.gauge('requests_total{method="POST",route="/v2/predictions",status="200"}') == 106
    figures = service.get("/metrics").text.splitlines()
    made = [float(line.split()[-1]) for line in figures if line.startswith("groundglass_predictions_total")]
    assert sum(made) == 115


def ask(service: Running, content: bytes, outcomes: Counter[str]) -> None:
    """Ask again and again, on connections kept as long as the service keeps them, until nobody listens."""
    with httpx.Client(base_url=service.url, timeout=PATIENCE, headers=FORM, trust_env=False) as client:
        while True:
            failed = "not accepted"  # closed before a byte of an answer
            try:
                with client.stream("POST", "/v2/predictions", content=content) as answer:
                    failed = "broken off"
                    answer.read()
                    outcomes[str(answer.status_code)] += 1
            except httpx.ConnectError:
                return
            except httpx.TransportError:
                outcomes[failed] += 1


def test_under_load_no_accepted_request_is_lost(start: Start, tmp_path: Path, monkeypatch: Patch) -> None:
    """And it opens its page."""
    browser, opened = tmp_path / "browser", tmp_path / "opened"
    browser.write_text(f'#!/bin/sh\necho "$1" > {opened}\n')
    browser.chmod(0o755)
    monkeypatch.setenv("BROWSER", f"{browser} %s")
    service, outcomes, content = start("--open"), Counter[str](), form(png(1, size=256))
    wait_for(lambda: opened.exists() and opened.read_text() == f"{service.url}/\n")
    clients = [threading.Thread(target=ask, args=(service, content, outcomes)) for _ in range(CLIENTS)]
    for client in clients:
        client.start()
    wait_for(lambda: outcomes["200"] > 3 * CLIENTS)
    before = outcomes["200"]
    assert service.stop() == 0
    for client in clients:
        client.join(PATIENCE)
    requests = service.log("request")
    assert outcomes["200"] > before, "those in flight were answered"
    assert set(outcomes) <= {"200", "not accepted"}, "none was broken off"
    assert len(requests) == outcomes["200"], "every request that reached the service got its answer"
    assert all(entry["complete"] for entry in requests)
    assert outcomes["not accepted"] <= CLIENTS
    assert (service.log()[-1]["event"], service.log()[-1]["unfinished"]) == ("ended", 0)
    assert list(service.uploads.iterdir()) == []
    assert service.says_where_it_is()


def test_while_it_ends_it_is_not_ready_and_what_had_begun_is_finished(start: Start) -> None:
    service, content = start("--drain-seconds", "4"), form(PNG)
    with service.connection(content, 300) as opened, service.connection() as idle:
        wait_for(lambda: service.gauge("uploads_in_flight") == 1)
        service.process.terminate()
        wait_for(lambda: service.get("/readyz").status_code == 503)
        answer = service.get("/readyz")
        assert answer.headers["connection"] == "close"
        assert int(answer.headers["retry-after"]) > 0
        assert service.get("/healthz").status_code == 200
        assert service.post(SMALL).status_code == 200
        assert everything(idle) == b"", "closed when that time is over"
        with pytest.raises(httpx.ConnectError):
            service.get("/healthz")
        opened.sendall(content[300:])
        finished = everything(opened)
    assert finished.startswith(b"HTTP/1.1 200 ")
    assert b"connection: close" in finished
    assert service.process.wait(PATIENCE) == 0


def test_the_next_service_removes_what_a_killed_one_left_and_nothing_else(start: Start) -> None:
    killed = start()
    (own,) = killed.uploads.iterdir()
    assert stat.S_IMODE(own.stat().st_mode) == 0o700
    names = ("other", "groundglass-serve-new", "groundglass-serve-link")
    elsewhere, new, link = (killed.uploads / name for name in names)
    new.mkdir()
    elsewhere.mkdir()
    (elsewhere / "file").touch()
    link.symlink_to(elsewhere)
    os.utime(new, (time.time() + 600,) * 2)  # however slow this machine is
    same = ("--upload-directory", str(killed.uploads))
    with killed.connection(form(bytes(3 * MIB)), -50):  # more than stays in memory
        wait_for(lambda: list(own.iterdir()))
        for path in (own, elsewhere, link):
            os.utime(path, (0, 0), follow_symlinks=False)
        assert start(*same).stop() == 0
        assert list(own.iterdir()), "another service's folder is its own as long as it lives"
        killed.process.kill()
        killed.process.wait(PATIENCE)
    assert start(*same).stop() == 0
    assert set(killed.uploads.rglob("*")) == {elsewhere, elsewhere / "file", new, link}
    with upload_directory(killed.uploads) as own:
        assert Path(tempfile.gettempdir()) == own, "what readers copy goes with the rest"
    assert Path(tempfile.gettempdir()) != own


def test_serve_says_what_it_needs(start: Start) -> None:
    with pytest.raises(AssertionError, match=r"2: .*pip install '\.\[serve\]'"):
        start(code="import sys; sys.modules['fastapi'] = None")
