"""SIGTERM: what was accepted is finished, nothing is left behind."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import httpx
from tests.conftest import wait_for
from tests.serving.conftest import FORM, MIB, PATIENCE, Running, Start, everything, form, picture, running

CLIENTS = 6


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


def test_under_load_no_accepted_request_is_lost(start: Start) -> None:
    service, outcomes, content = start(), Counter[str](), form("a.png", picture(1, size=256))
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


def test_an_upload_that_had_begun_is_finished(start: Start) -> None:
    service, content = start("--drain-seconds", "0.2"), form("a.png", picture(1))
    with service.connection(content, 300) as opened, service.connection() as idle:
        wait_for(lambda: service.gauge("uploads_in_flight") == 1)
        service.process.send_signal(signal.SIGTERM)
        wait_for(lambda: service.log("ending") != [])
        time.sleep(0.8)
        opened.sendall(content[300:])
        answer = everything(opened)
        assert everything(idle) == b""
    assert answer.startswith(b"HTTP/1.1 200 ")
    assert b"connection: close" in answer
    assert service.process.wait(PATIENCE) == 0


def test_while_it_ends_it_is_not_ready(start: Start) -> None:
    service = start("--drain-seconds", "600")  # longer than stop() waits
    service.process.send_signal(signal.SIGTERM)
    wait_for(lambda: service.get("/readyz").status_code == 503)
    answer = service.get("/readyz")
    assert answer.headers["connection"] == "close"
    assert int(answer.headers["retry-after"]) > 0
    assert service.get("/healthz").status_code == 200
    assert service.post(("a.png", picture(1))).status_code == 200
    assert service.stop() == 0, "a second signal ends it at once"


def test_the_next_service_removes_what_a_killed_one_left(tmp_path: Path, tiny_bundle: Path) -> None:
    content = form("a.png", bytes(3 * MIB))  # more than stays in memory
    with running(tmp_path / "first", tiny_bundle) as killed, killed.connection(content, -50):
        wait_for(lambda: killed.uploads_on_disk() != [])
        same = ("--upload-directory", str(killed.uploads))
        with running(tmp_path / "second", tiny_bundle, *same) as second:
            assert killed.uploads_on_disk() != [], "another service's folder is its own as long as it lives"
            assert second.stop() == 0
        killed.process.kill()
        killed.process.wait(PATIENCE)
    (left,) = killed.uploads.iterdir()
    os.utime(left, (0, 0))
    with running(tmp_path / "third", tiny_bundle, *same):
        assert not left.exists()


def test_the_directory_is_private_and_what_is_not_the_services_own_is_left_alone(
    tmp_path: Path, tiny_bundle: Path
) -> None:
    names = ("elsewhere", *(f"groundglass-serve-{name}" for name in ("new", "old", "link")))
    elsewhere, new, old, link = (tmp_path / name for name in names)
    for folder in (elsewhere, new, old):
        folder.mkdir()
    (elsewhere / "file").touch()
    link.symlink_to(elsewhere)
    for path in (old, elsewhere, link):
        os.utime(path, (0, 0), follow_symlinks=False)
    before = set(tmp_path.rglob("*"))
    with running(tmp_path / "run", tiny_bundle, "--upload-directory", str(tmp_path)) as service:
        (own,) = set(tmp_path.glob("groundglass-serve-*")) - before
        assert stat.S_IMODE(own.stat().st_mode) == 0o700
        assert service.stop() == 0
    assert before - set(tmp_path.rglob("*")) == {old}
    assert not own.exists()


def test_serve_says_what_it_needs() -> None:
    blocked = "import sys; sys.modules['fastapi'] = None; sys.argv[1:] = ['serve']; import groundglass.cli.main as m; m.main()"
    command = [sys.executable, "-c", blocked]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert done.returncode == 2
    assert "pip install '.[serve]'" in done.stderr
