"""A request that asks for too much, or a client that keeps the service waiting, gets a clear answer."""

from __future__ import annotations

import io
import socket
import time
import zipfile
from contextlib import ExitStack, suppress

import cv2
import httpx
import numpy as np
import pytest
from tests.serving.conftest import (
    BOUNDARY,
    PATIENCE,
    Running,
    Start,
    connection,
    everything,
    form,
    is_problem,
    picture,
    send_head,
    slow,
    wait_for,
)

MIB = 2**20


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
    """A service that gives a request a second, and classifies slowly."""
    return start("--seconds", "1", "--workers", "1", code=slow(0.1))


def many(count: int) -> bytes:
    """A zip of so many slices."""
    stream, content = io.BytesIO(), picture(1)
    with zipfile.ZipFile(stream, "w") as archive:
        for number in range(count):
            archive.writestr(f"{number}.png", content)
    return stream.getvalue()


def test_too_large_an_upload(tight: Running, png: bytes) -> None:
    assert tight.post(("a.png", png + bytes(MIB - len(png)))).status_code == 200, "the form does not count"
    problem = is_problem(tight.post(("a.png", bytes(MIB + 4096))), 413, "upload-too-large")
    assert "1,048,576 bytes" in str(problem["detail"])
    with tight.client() as client:  # in chunks, without a size in its headers
        headers = {"Content-Type": f"multipart/form-data; boundary={BOUNDARY.decode()}"}
        answer = client.post(
            "/v2/predictions", content=iter([form("a.png", bytes(3 * MIB))]), headers=headers
        )
    is_problem(answer, 413, "upload-too-large")


def test_too_many_files_and_slices(tight: Running, png: bytes) -> None:
    is_problem(tight.post(*((f"{number}.png", png) for number in range(4))), 413, "too-many-files")
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for number in range(5):
            archive.writestr(f"{number}.png", png)
    is_problem(tight.post(("a.zip", stream.getvalue())), 413, "too-many-slices")


def test_too_many_pixels_and_too_much_to_unpack_are_predictions_that_say_so(
    tight: Running, png: bytes
) -> None:
    wide = bytes(cv2.imencode(".png", np.zeros((150, 150), np.uint8))[1])
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("large.png", png + bytes(2 * MIB))
    rows = tight.post(("wide.png", wide), ("a.zip", stream.getvalue()), ("good.png", png)).json()[
        "predictions"
    ]
    assert [row["status"] for row in rows] == ["failed", "failed", "ok"]
    assert "150 x 150 pixels are more than the limit of 20,000" in rows[0]["reason"]
    assert "bytes are more than the limit of 1,048,576" in rows[1]["reason"]


def test_what_is_no_form_no_file_no_image(tight: Running, png: bytes) -> None:
    with tight.client() as client:
        is_problem(client.post("/v2/predictions", content=png), 415, "unsupported-media-type")
        is_problem(client.post("/v2/predictions", json={}), 415, "unsupported-media-type")
        headers = {"Content-Type": "multipart/form-data"}
        is_problem(client.post("/v2/predictions", content=png, headers=headers), 400, "bad-request")
        headers = {"Content-Type": f"multipart/form-data; boundary={BOUNDARY.decode()}"}
        for content in (b"", png, form("a.png", png)[:-20], form("a.png", png)[5:]):
            is_problem(client.post("/v2/predictions", content=content, headers=headers), 400, "bad-request")
        nothing = b"--" + BOUNDARY + b"--\r\n"
        assert client.post("/v2/predictions", content=nothing, headers=headers).status_code in {400, 422}
        field = form("", b"x").replace(b'; filename=""', b"")
        is_problem(client.post("/v2/predictions", content=field, headers=headers), 422, "invalid-request")
    problem = is_problem(tight.post(("a.txt", b"text"), ("b.png", b"")), 415, "unsupported-media-type")
    assert "None of the 2 files" in str(problem["detail"])
    problem = is_problem(tight.post(("a.png", png), keep="perhaps"), 422, "invalid-request")
    assert "keep" in str(problem["detail"])


def test_more_files_than_a_process_may_have_open(start: Start) -> None:
    service = start(code="import resource; resource.setrlimit(resource.RLIMIT_NOFILE, (200, 200))")
    content = picture(1)
    answer = service.post(*((f"{number}.png", content) for number in range(300)))
    assert len(content) * 300 > MIB, "more than stays in memory"
    assert answer.json()["counts"]["total"] == 300


NAMES = (
    "../a.png", "/etc/a.png", "a/../../b.png", "..\\a.png", "\\\\host\\a.png", "a/", "..", "a\x01.png", "x" * 300,
)  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_names_that_lead_out_of_their_folder(tight: Running, png: bytes, name: str) -> None:
    opened_name = name.replace("\\", "\\\\")
    headers = {"Content-Type": f"multipart/form-data; boundary={BOUNDARY.decode()}"}
    with tight.client() as client:
        answer = client.post("/v2/predictions", content=form(opened_name, png), headers=headers)
    if name.startswith("\\\\"):  # as old browsers send it; the parser keeps the last part
        assert answer.status_code == 200
        assert answer.json()["predictions"][0]["file"] == "a.png"
    else:
        is_problem(answer, 422, "invalid-request")
    assert tight.uploads_on_disk() == []


def test_two_files_of_one_name(tight: Running, png: bytes) -> None:
    is_problem(tight.post(("a.png", png), ("a.png", png)), 422, "invalid-request")
    is_problem(tight.post(("a", png), ("a/b.png", png)), 422, "invalid-request")
    assert tight.post(("a/1.png", png), ("b/1.png", png)).status_code == 200


def test_as_many_requests_as_there_may_be(tight: Running, png: bytes) -> None:
    content = form("a.png", png)
    with ExitStack() as stack:
        slow = [stack.enter_context(connection(tight)) for _ in range(2)]
        for opened in slow:
            send_head(opened, len(content))
            opened.sendall(content[:100])
        wait_for(lambda: tight.gauge("uploads_in_flight") == 2)
        answer = tight.post(("a.png", png))
        is_problem(answer, 503, "busy")
        assert int(answer.headers["retry-after"]) > 0
    tight.wait_until_idle()
    assert tight.post(("a.png", png)).status_code == 200


def test_as_many_requests_as_one_client_may_have(start: Start, png: bytes) -> None:
    service = start("--client-requests", "1")
    content = form("a.png", png)
    with connection(service) as opened:
        send_head(opened, len(content))
        wait_for(lambda: service.gauge("uploads_in_flight") == 1)
        answer = service.post(("a.png", png))
        is_problem(answer, 429, "too-many-requests")
        assert int(answer.headers["retry-after"]) > 0
        opened.sendall(content)
        assert opened.recv(65536).startswith(b"HTTP/1.1 200 ")


def test_a_slow_upload_is_ended(tight: Running, png: bytes) -> None:
    content = form("a.png", png)
    with connection(tight) as opened:
        send_head(opened, len(content))
        opened.sendall(content[:200])
        answer = everything(opened)
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert b"upload-too-slow" in answer
    tight.wait_until_idle()
    assert tight.uploads_on_disk() == []


def test_a_client_that_trickles_bytes_is_ended_when_its_time_is_up(hasty: Running, png: bytes) -> None:
    content = form("a.png", png * 50)
    with connection(hasty) as opened:
        send_head(opened, len(content))
        opened.settimeout(0.1)
        answer = b""
        for byte in content:  # which would take many minutes
            opened.sendall(bytes([byte]))
            with suppress(TimeoutError):
                answer = opened.recv(65536)
                break
    assert answer.startswith(b"HTTP/1.1 408 ")
    hasty.wait_until_idle()
    assert hasty.uploads_on_disk() == []


def test_headers_that_do_not_come(tight: Running) -> None:
    with connection(tight) as opened:
        opened.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nX-")
        assert everything(opened) == b""


def test_an_answer_that_is_not_taken_is_given_up(start: Start) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (1500, 1500), np.uint8)
    service = start("--idle-seconds", "1")
    content = bytes(cv2.imencode(".png", noise)[1])
    link = service.post(("a.png", content), keep="true").json()["predictions"][0]["image"]["picture"]
    with socket.socket() as opened:
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8192)
        opened.settimeout(PATIENCE)
        opened.connect(("127.0.0.1", service.port))
        asked = 8
        opened.sendall(f"GET {link} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode() * asked)
        wait_for(lambda: any(entry.get("route", "").endswith("{layer}") for entry in service.log()))
        time.sleep(3)
        received = b""
        try:
            received = everything(opened)
        except ConnectionResetError:
            received = b""
    assert len(received) < asked * len(content)
    assert service.get("/healthz").status_code == 200


def test_a_client_that_goes_away(service: Running) -> None:
    content = form("many.zip", many(400))
    with connection(service) as opened:
        send_head(opened, len(content), "/v2/predictions?keep=true")
        opened.sendall(content)
        wait_for(lambda: service.gauge("kept_bytes") > 0)
    service.wait_until_idle()
    wait_for(lambda: any(entry.get("client_gone") for entry in service.log()))
    gone = next(entry for entry in service.log() if entry.get("client_gone"))
    assert 0 < gone["slices"] < 400
    assert not gone["complete"]
    assert service.uploads_on_disk() == []
    assert service.gauge("kept_results") == 0


def test_results_are_forgotten_after_a_while(tight: Running, png: bytes) -> None:
    link = tight.post(("a.png", png), keep="true").json()["kept"]["links"]["self"]
    assert tight.get(link).status_code == 200
    wait_for(lambda: tight.gauge("kept_results") == 0)
    is_problem(tight.get(link), 404, "no-such-result")


def test_work_that_takes_too_long_is_ended(hasty: Running) -> None:
    service, content = hasty, many(30)
    answer = service.post(("a.zip", content))
    is_problem(answer, 503, "too-slow")
    assert int(answer.headers["retry-after"]) > 0
    service.wait_until_idle()
    with (
        service.client() as client,
        client.stream(
            "POST",
            "/v2/predictions",
            files={"files": ("a.zip", content)},
            headers={"Accept": "application/x-ndjson"},
        ) as lines,
    ):
        received: list[str] = []
        with pytest.raises(httpx.RemoteProtocolError):
            received.extend(lines.iter_lines())
    assert "too-slow" in received[-1], "the last line says why the answer ends without its end"


def test_unknown_addresses_and_methods(tight: Running) -> None:
    with tight.client() as client:
        is_problem(client.get("/nothing"), 404, "not-found")
        is_problem(client.post("/v1/findings"), 410, "gone")
        answer = client.put("/v2/predictions")
        is_problem(answer, 405, "method-not-allowed")
        assert answer.headers["allow"] == "POST"
        is_problem(client.get("/v2/results/none/slices/x/picture.png"), 422, "invalid-request")
        is_problem(client.get("/v2/results/none/slices/0/picture.png"), 404, "no-such-result")
    with connection(tight) as opened:
        opened.sendall(b"no HTTP at all\r\n\r\n")
        assert everything(opened).startswith(b"HTTP/1.1 400 ")
