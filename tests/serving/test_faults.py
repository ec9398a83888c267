"""A fault of the service itself: the client learns nothing of it, the log only where it was."""

from __future__ import annotations

import httpx
import pytest
from tests.serving.conftest import (
    Running,
    Start,
    connection,
    form,
    is_problem,
    parts,
    send_head,
    slow,
    wait_for,
)

NAMED = "Zwiebelfisch"
FAILS = f"""
from groundglass.inference.classifier import Classifier
classify = Classifier.classify
def fail(self, item, **options):
    if item.origin.file.endswith("bad.png"):
        raise RuntimeError("{NAMED} in " + item.origin.file)
    return classify(self, item, **options)
Classifier.classify = fail
"""


@pytest.fixture(scope="module")
def faulty(start: Start) -> Running:
    """A service that fails on files of one name."""
    return start("--workers", "1", code=FAILS)


def test_a_fault_is_an_answer_and_a_line_in_the_log(faulty: Running, png: bytes) -> None:
    answer = faulty.post(("bad.png", png))
    is_problem(answer, 500, "internal-error")
    assert NAMED not in answer.text
    assert faulty.post(("good.png", png)).status_code == 200, "it goes on"
    logged = faulty.out.read_text() + faulty.err.read_text()
    assert NAMED not in logged
    assert "bad.png" not in logged
    entry = next(entry for entry in faulty.log() if entry["event"] == "request failed")
    assert entry["error"] == "RuntimeError"
    assert entry["request"] == answer.headers["x-request-id"]
    assert any("sitecustomize.py:" in place for place in entry["through"])
    assert faulty.uploads_on_disk() == []


def test_a_fault_breaks_off_an_answer_that_had_begun(faulty: Running, png: bytes) -> None:
    files = parts(("good.png", png), ("bad.png", png))
    received: list[str] = []
    with (
        faulty.client() as client,
        client.stream(
            "POST", "/v2/predictions", files=files, headers={"Accept": "application/x-ndjson"}
        ) as lines,
        pytest.raises(httpx.RemoteProtocolError),
    ):
        received.extend(lines.iter_lines())
    faulty.wait_until_idle()
    assert NAMED not in faulty.out.read_text() + faulty.err.read_text()


def test_a_place_is_free_only_when_the_work_for_it_has_ended(start: Start, png: bytes) -> None:
    service, content = start("--requests", "1", code=slow(1.5)), form("a.png", png)
    with connection(service) as opened:
        send_head(opened, len(content))
        opened.sendall(content)
        wait_for(lambda: "classifying" in service.err.read_text())
    is_problem(service.post(("a.png", png)), 503, "busy")
    service.wait_until_idle()
    assert any(entry.get("client_gone") for entry in service.log())
    assert "done" in service.err.read_text(), "its upload is not removed under the hands of who reads it"
    assert service.uploads_on_disk() == []


def test_requests_sent_ahead_are_answered_in_turn(start: Start, png: bytes) -> None:
    service, content = start("--idle-seconds", "1", "--workers", "1", code=slow(1.5)), form("a.png", png)
    with connection(service) as opened:
        for _ in range(2):
            send_head(opened, len(content))
            opened.sendall(content)
        received = b""
        while received.count(b'"kept":null}') < 2:
            chunk = opened.recv(65536)
            assert chunk, "closed before the second answer"
            received += chunk
    assert received.count(b"HTTP/1.1 200 ") == 2
