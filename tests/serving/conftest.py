"""A service as its user starts it: a process of its own on a free port, stopped when the tests are done."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import httpx
import numpy as np
import pytest
from tests.imaging.conftest import chest, recompress, volume, write_dicom, write_metaimage
from tests.inference.conftest import tiny_bundle

from groundglass.imaging.phantom import make_phantom

__all__ = ["chest", "recompress", "tiny_bundle", "volume", "write_dicom", "write_metaimage"]

PATIENCE = 60
BOUNDARY = b"0123456789"
TOKEN = "not-the-only-token-there-is"  # noqa: S105


def slow(seconds: float) -> str:
    """Code that makes a service classify slowly, and say so on standard error."""
    return f"""
import sys, time
from groundglass.inference.classifier import Classifier
classify = Classifier.classify
def slow(self, item, **options):
    print("classifying", file=sys.stderr, flush=True)
    time.sleep({seconds})
    print("done", file=sys.stderr, flush=True)
    return classify(self, item, **options)
Classifier.classify = slow
"""


@dataclass
class Running:
    """A service that runs."""

    process: subprocess.Popen[bytes]
    out: Path
    err: Path
    uploads: Path
    port: int = 0
    token: str | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def client(self, **options: Any) -> httpx.Client:
        headers = {"Authorization": f"Bearer {self.token}"} if self.token else {}
        return httpx.Client(base_url=self.url, timeout=PATIENCE, headers=headers, trust_env=False, **options)

    def post(self, *files: tuple[str, bytes], **parameters: str) -> httpx.Response:
        with self.client() as client:
            return client.post("/v2/predictions", files=parts(*files), params=parameters)

    def get(self, path: str, **headers: str) -> httpx.Response:
        with self.client() as client:
            return client.get(path, headers=headers)

    def log(self) -> list[dict[str, Any]]:
        lines = self.out.read_text(encoding="utf-8").splitlines()
        return [json.loads(line) for line in lines]

    def gauge(self, name: str) -> float:
        line = next(
            line for line in self.get("/metrics").text.splitlines() if line.startswith(f"groundglass_{name} ")
        )
        return float(line.split()[1])

    def wait_until_idle(self) -> None:
        wait_for(lambda: self.gauge("uploads_in_flight") == 0)

    def uploads_on_disk(self) -> list[Path]:
        return [path for path in self.uploads.rglob("*") if path.parent != self.uploads]

    def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(PATIENCE)


def parts(*files: tuple[str, bytes]) -> list[tuple[str, tuple[str, bytes]]]:
    return [("files", file) for file in files]


def wait_for(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)


@contextmanager
def running(
    folder: Path, bundle: Path, *options: str, token: str | None = None, code: str = ""
) -> Iterator[Running]:
    """A service for as long as the block lasts; it runs the code before it starts."""
    uploads = folder / "uploads"
    uploads.mkdir()
    command = [sys.executable, "-m", "groundglass.cli.main", "serve", "--port", "0", "--bundle", str(bundle)]
    environment = {**os.environ, "TMPDIR": str(uploads), "PYTHONWARNINGS": "default"}
    if token:
        environment["GROUNDGLASS_TOKEN"] = token
    if code:
        (folder / "sitecustomize.py").write_text(code)
        environment["PYTHONPATH"] = os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")])
    with (folder / "out").open("wb") as out, (folder / "err").open("wb") as err:
        process = subprocess.Popen([*command, *options], stdout=out, stderr=err, env=environment)
    service = Running(process, folder / "out", folder / "err", uploads, token=token)
    try:
        wait_for(lambda: b"\n" in service.out.read_bytes() or process.poll() is not None)
        assert process.poll() is None, service.err.read_text()
        service.port = service.log()[0]["port"]
        yield service
    finally:
        if process.poll() is None:
            process.kill()
        process.wait(PATIENCE)


Start = Callable[..., Running]


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory, tiny_bundle: Path) -> Iterator[Start]:
    """A function that starts a service with options of the command line; it runs until the module's end."""
    with ExitStack() as stack:
        yield lambda *options, token=None, code="": stack.enter_context(
            running(tmp_path_factory.mktemp("service"), tiny_bundle, *options, token=token, code=code)
        )


@pytest.fixture(scope="module")
def service(start: Start) -> Running:
    """A service with its defaults."""
    return start()


def picture(seed: int, size: int = 96) -> bytes:
    """A PNG of a phantom."""
    pixels = make_phantom(np.random.default_rng(seed), 0.6 * (seed % 2), 0.5, size=size).slice.pixels
    return bytes(cv2.imencode(".png", pixels)[1])


@pytest.fixture(scope="session")
def png() -> bytes:
    return picture(1)


def is_problem(answer: httpx.Response, status: int, kind: str) -> dict[str, object]:
    """The members of an answer that must be problem details of that kind."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    members: dict[str, object] = answer.json()
    assert members["type"] == f"urn:groundglass:problem:{kind}"
    assert members["status"] == status
    assert members["title"]
    assert str(members["detail"]).endswith(".")
    return members


def form(name: str, content: bytes) -> bytes:
    head = f'Content-Disposition: form-data; name="files"; filename="{name}"\r\n\r\n'.encode()
    return b"--" + BOUNDARY + b"\r\n" + head + content + b"\r\n--" + BOUNDARY + b"--\r\n"


@contextmanager
def connection(service: Running) -> Iterator[socket.socket]:
    with socket.create_connection(("127.0.0.1", service.port), PATIENCE) as opened:
        yield opened


def send_head(opened: socket.socket, length: int, target: str = "/v2/predictions") -> None:
    opened.sendall(
        f"POST {target} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {length}\r\n"
        f"Content-Type: multipart/form-data; boundary={BOUNDARY.decode()}\r\n\r\n".encode()
    )


def everything(opened: socket.socket) -> bytes:
    received = b""
    while chunk := opened.recv(65536):
        received += chunk
    return received
