"""Requests beside each other: a fault is its own request's, a small one need not wait, a place is free in the end."""

from __future__ import annotations

import pytest
from tests.conftest import wait_for
from tests.serving.conftest import CLASSIFY, SLOW, Running, Start, form, head, is_problem, zipped

NAMED = "Zwiebelfisch"
FAILS = f"if item.origin.file.endswith('bad.png'): raise RuntimeError('{NAMED} in ' + item.origin.file)"


@pytest.fixture(scope="module")
def faulty(start: Start) -> Running:
    """A service that fails on files of one name."""
    return start("--workers", "1", code=CLASSIFY.format(FAILS))


def test_a_fault_is_an_answer_and_a_line_in_the_log(faulty: Running, png: bytes) -> None:
    answer = faulty.post(("bad.png", png))
    is_problem(answer, 500, "internal-error")
    assert NAMED not in answer.text
    assert faulty.post(("good.png", png)).status_code == 200, "it goes on"
    (entry,) = faulty.log("request failed")
    assert entry["error"] == "RuntimeError"
    assert entry["request"] == answer.headers["x-request-id"]
    assert any("sitecustomize.py:" in place for place in entry["through"])


def test_a_fault_breaks_off_an_answer_that_had_begun(faulty: Running, png: bytes) -> None:
    assert faulty.lines(("good.png", png), ("bad.png", png))[1]
    assert faulty.is_clean()
    assert not [secret for secret in (NAMED, "bad.png") if secret in faulty.out + faulty.err]


def test_a_place_is_free_only_when_the_work_for_it_has_ended(start: Start, png: bytes) -> None:
    service = start("--requests", "1", code=SLOW)
    with service.connection(form("a.png", png)):
        wait_for(lambda: "classifying" in service.err)
    is_problem(service.post(("a.png", png)), 503, "busy")
    assert service.is_clean()
    assert any(entry.get("client_gone") for entry in service.log())
    assert "done" in service.err, "its upload is not removed under the hands of who reads it"


def test_requests_sent_ahead_are_answered_in_turn(start: Start, png: bytes) -> None:
    service, content = start("--idle-seconds", "0.4", "--workers", "1", code=SLOW), form("a.png", png)
    with service.connection(content) as opened:
        opened.sendall(head(content) + content)
        received = b""
        while received.count(b'"kept":null}') < 2:
            chunk = opened.recv(65536)
            assert chunk, "closed before the second answer"
            received += chunk
    assert received.count(b"HTTP/1.1 200 ") == 2


def test_a_small_request_does_not_wait_for_a_large_one(start: Start, png: bytes) -> None:
    service = start("--workers", "1", code=SLOW)
    with service.connection(form("a.zip", zipped(*[png] * 200))):
        wait_for(lambda: service.err.count("done") == 3)
        assert service.post(("a.png", png)).status_code == 200
        assert service.err.count("done") < 10, "its turn comes between two slices of the other"


def test_archives_are_worked_on_one_after_another_by_one_worker(start: Start, png: bytes) -> None:
    service, content = start("--workers", "1", code=SLOW), form("a.zip", zipped(*[png] * 4))
    with service.connection(content), service.connection(content):
        wait_for(lambda: any(entry["route"] == "/v2/predictions" for entry in service.log("request")))
        assert service.err.count("done") < 6, "taking turns, they would end together"
        wait_for(lambda: service.err.count("done") == 8)
