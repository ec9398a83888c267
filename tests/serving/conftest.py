"""A service as its user starts it: a process of its own on a free port, stopped when the tests are done."""

from __future__ import annotations

import io
import json
import os
import signal
import socket
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import httpx
import numpy as np
import pytest
from tests.conftest import wait_for

from groundglass.imaging.phantom import make_phantom

PATIENCE = 60
MIB = 2**20
FORM = {"Content-Type": "multipart/form-data; boundary=0123456789"}
TOKEN = "not-the-only-token-there-is"  # noqa: S105
CLASSIFY = """
import sys, time
from groundglass.inference.classifier import Classifier
classify = Classifier.classify
def changed(self, item, **options):
    {}
    return classify(self, item, **options)
Classifier.classify = changed
"""
SLOW = CLASSIFY.format(
    "print('classifying', file=sys.stderr, flush=True); time.sleep(0.5); print('done', file=sys.stderr, flush=True)"
)


@dataclass
class Running:
    """A service that runs."""

    process: subprocess.Popen[bytes]
    folder: Path
    uploads: Path
    port: int = 0
    token: str | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def out(self) -> str:
        return (self.folder / "out").read_text(encoding="utf-8")

    @property
    def err(self) -> str:
        return (self.folder / "err").read_text(encoding="utf-8")

    def says_where_it_is(self) -> bool:
        """On standard error, and nothing else."""
        return self.err == f"groundglass is at {self.url}/\n"

    def ask(
        self, method: str, path: str, *, token: str | None = None, headers: Any = None, **options: Any
    ) -> httpx.Response:
        token = self.token if token is None else token
        headers = ({"Authorization": f"Bearer {token}"} if token else {}) | (headers or {})
        kept = {"headers": headers, "timeout": PATIENCE, "trust_env": False}
        return httpx.request(method, self.url + path, **kept, **options)

    def get(self, path: str, **headers: str) -> httpx.Response:
        return self.ask("GET", path, headers=headers)

    def post(self, *files: tuple[str, bytes], **parameters: str) -> httpx.Response:
        return self.ask("POST", "/v2/predictions", files=parts(*files), params=parameters)

    def send(self, content: Any, headers: dict[str, str] = FORM) -> httpx.Response:
        """Post a body as it is."""
        return self.ask("POST", "/v2/predictions", content=content, headers=headers)

    def rows(self, *files: tuple[str, bytes]) -> list[dict[str, Any]]:
        return list(self.post(*files).json()["predictions"])

    def lines(self, *files: tuple[str, bytes]) -> tuple[list[str], bool]:
        """The lines of an answer, and whether it broke off."""
        received: list[str] = []
        sent: dict[str, Any] = {"files": parts(*files), "headers": {"Accept": "application/x-ndjson"}}
        with httpx.stream(
            "POST", f"{self.url}/v2/predictions", timeout=PATIENCE, trust_env=False, **sent
        ) as answer:
            assert answer.headers["content-type"] == "application/x-ndjson"
            with suppress(httpx.RemoteProtocolError):
                received.extend(answer.iter_lines())
                return received, False
        return received, True

    @contextmanager
    def connection(
        self, content: bytes = b"", count: int | None = None, query: str = ""
    ) -> Iterator[socket.socket]:
        """A connection on which the head of an upload and the first bytes of its form have been sent."""
        fields = {"Host": "localhost", "Content-Length": len(content), **FORM}
        head = f"POST /v2/predictions{query} HTTP/1.1\r\n" + "".join(
            f"{k}: {v}\r\n" for k, v in fields.items()
        )
        with socket.create_connection(("127.0.0.1", self.port), PATIENCE) as opened:
            if content:
                opened.sendall(f"{head}\r\n".encode() + content[:count])
            yield opened

    def log(self, event: str = "") -> list[dict[str, Any]]:
        entries = [json.loads(line) for line in self.out.splitlines()]
        return [entry for entry in entries if event in {"", entry["event"]}]

    def gauge(self, name: str) -> float:
        figures = dict(line.rsplit(" ", 1) for line in self.get("/metrics").text.splitlines())
        return float(figures[f"groundglass_{name}"])

    def is_clean(self) -> bool:
        """Whether nothing of any upload is left, once nothing is worked on any more."""
        wait_for(lambda: self.gauge("uploads_in_flight") == 0)
        return not self.uploads_on_disk() and self.gauge("upload_bytes") == 0

    def uploads_on_disk(self) -> list[Path]:
        return [path for path in self.uploads.rglob("*") if path.parent != self.uploads]

    def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(PATIENCE)


def parts(*files: tuple[str, bytes]) -> list[tuple[str, tuple[str, bytes]]]:
    return [("files", file) for file in files]


def packed(members: Mapping[str, bytes], mode: int = 0) -> bytes:
    """A zip."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            member = zipfile.ZipInfo(name)
            member.compress_type, member.external_attr = zipfile.ZIP_DEFLATED, mode << 16
            archive.writestr(member, content)
    return stream.getvalue()


def zipped(*contents: bytes) -> bytes:
    return packed({f"{number}.png": content for number, content in enumerate(contents)})


def form(name: str, content: bytes) -> bytes:
    head = f'Content-Disposition: form-data; name="files"; filename="{name}"\r\n\r\n'.encode()
    return b"--0123456789\r\n" + head + content + b"\r\n--0123456789--\r\n"


def everything(opened: socket.socket) -> bytes:
    return b"".join(iter(lambda: opened.recv(65536), b""))


@contextmanager
def running(
    folder: Path, bundle: Path, *options: str, token: str | None = None, code: str = ""
) -> Iterator[Running]:
    """A service for as long as the block lasts; it runs the code before it starts."""
    uploads = folder / "uploads"
    uploads.mkdir(parents=True)
    command = [sys.executable, "-m", "groundglass.cli.main", "serve", "--port", "0", "--bundle", str(bundle)]
    environment = {**os.environ, "TMPDIR": str(uploads), "PYTHONWARNINGS": "default"}
    environment |= {"GROUNDGLASS_TOKEN": token} if token else {}
    (folder / "sitecustomize.py").write_text(code)
    environment["PYTHONPATH"] = os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")])
    with (folder / "out").open("wb") as out, (folder / "err").open("wb") as err:
        process = subprocess.Popen([*command, *options], stdout=out, stderr=err, env=environment)
    service = Running(process, folder, uploads, token=token)
    try:
        wait_for(lambda: "\n" in service.out or process.poll() is not None)
        assert process.poll() is None, service.err
        service.port = service.log()[0]["port"]
        yield service
    finally:
        process.kill()
        process.wait(PATIENCE)


Start = Callable[..., Running]


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory, tiny_bundle: Path) -> Iterator[Start]:
    """A function that starts a service with options of the command line; it runs until the module's end."""
    with ExitStack() as stack:
        yield lambda *options, token=None, code="", bundle=tiny_bundle: stack.enter_context(
            running(tmp_path_factory.mktemp("service"), bundle, *options, token=token, code=code)
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


def is_problem(answer: httpx.Response, status: int, kind: str, told: str = "") -> None:
    """Assert that an answer is problem details of that kind, whose detail tells something."""
    assert (answer.status_code, answer.headers["content-type"]) == (status, "application/problem+json")
    members = answer.json()
    assert (members["type"], members["status"]) == (f"urn:groundglass:problem:{kind}", status)
    assert members["title"]
    assert told in members["detail"]
    assert members["detail"].endswith(".")
    assert status not in {429, 503} or int(answer.headers["retry-after"]) > 0
