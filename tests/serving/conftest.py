"""A service as its user starts it: a process of its own on a free port, stopped when the tests are done."""

import io
import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from tests.conftest import make_zip, png, wait_for

PATIENCE = 60
MIB = 2**20
FORM = {"Content-Type": "multipart/form-data; boundary=0123456789"}
TOKEN = "not the only token there is"  # noqa: S105
PNG = png(1)
Sent = tuple[str, bytes]  # the name and the content of a file


@dataclass
class Running:
    """A service that runs."""

    process: subprocess.Popen[bytes]
    folder: Path
    port: int = 0
    token: str = ""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def out(self) -> str:
        return (self.folder / "out").read_text(encoding="utf-8")

    @property
    def err(self) -> str:
        return (self.folder / "err").read_text(encoding="utf-8")

    @property
    def uploads(self) -> Path:
        return self.folder / "uploads"

    def says_where_it_is(self) -> bool:
        """On standard error, and nothing else."""
        return self.err == f"groundglass is at {self.url}/\n"

    def ask(self, method: str, path: str, headers: Any = None, **options: Any) -> httpx.Response:
        headers = ({"Authorization": f"Bearer {self.token}"} if self.token else {}) | (headers or {})
        kept = {"headers": headers, "timeout": PATIENCE, "trust_env": False}
        return httpx.request(method, self.url + path, **kept, **options)

    def get(self, path: str, **headers: Any) -> httpx.Response:
        return self.ask("GET", path, headers)

    def post(self, *files: Sent, headers: Any = None, **parameters: str) -> httpx.Response:
        parts = [("files", file) for file in files]
        return self.ask("POST", "/v2/predictions", headers, files=parts, params=parameters)

    def send(self, content: Any, headers: dict[str, str] = FORM) -> httpx.Response:
        """Post a body as it is."""
        return self.ask("POST", "/v2/predictions", headers, content=content)

    def rows(self, *files: Sent) -> list[dict[str, Any]]:
        return list(self.post(*files).json()["predictions"])

    def kept(self, *files: Sent) -> dict[str, Any]:
        """The answer where results are kept."""
        return dict(self.post(*files, keep="true").json())

    def lines(self, *files: Sent) -> tuple[list[str], bool]:
        """The lines of an answer, and whether it broke off."""
        received: list[str] = []
        sent: Any = {"files": [("files", file) for file in files], "timeout": PATIENCE, "trust_env": False}
        headers = {"Accept": "application/x-ndjson"}
        with httpx.stream("POST", f"{self.url}/v2/predictions", headers=headers, **sent) as answer:
            assert answer.headers["content-type"] == "application/x-ndjson"
            with suppress(httpx.RemoteProtocolError):
                received.extend(answer.iter_lines())
                return received, False
        return received, True

    @contextmanager
    def connection(self, content: bytes = b"", count: int | None = None, query: str = "") -> Iterator[socket.socket]:
        """A connection on which the head of an upload and the first bytes of its form have been sent."""
        fields = {"Host": "localhost", "Content-Length": len(content), **FORM}
        head = "\r\n".join(f"{name}: {value}" for name, value in fields.items())
        with socket.create_connection(("127.0.0.1", self.port), PATIENCE) as opened:
            if content:
                start = f"POST /v2/predictions{query} HTTP/1.1\r\n{head}\r\n\r\n"
                opened.sendall(start.encode() + content[:count])
            yield opened

    def log(self, event: str = "") -> list[dict[str, Any]]:
        entries = [json.loads(line) for line in self.out.splitlines()]
        return [entry for entry in entries if event in {"", entry["event"]}]

    def gauge(self, name: str) -> float:
        figures = dict(line.rsplit(" ", 1) for line in self.get("/metrics").text.splitlines())
        return float(figures[f"groundglass_{name}"])

    def uploads_on_disk(self) -> list[Path]:
        return [path for path in self.uploads.rglob("*") if path.parent != self.uploads]

    def is_clean(self) -> bool:
        """Whether nothing of any upload is left, once nothing is worked on any more."""
        wait_for(lambda: self.gauge("uploads_in_flight") == 0)
        return not self.uploads_on_disk() and self.gauge("upload_bytes") == 0

    def stop(self) -> int:
        self.process.terminate()
        return self.process.wait(PATIENCE)


def packed(members: Mapping[Any, bytes]) -> bytes:
    """A zip."""
    return bytes(make_zip(io.BytesIO(), members).getvalue())


Start = Callable[..., Running]


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory, tiny_bundle: Path) -> Iterator[Start]:
    """A function that starts a service with options of the command line; it runs until the module's end."""
    processes: list[subprocess.Popen[bytes]] = []

    def run(*options: str, bundle: Path = tiny_bundle, token: str = "", code: str = "") -> Running:
        """Start it, after some code."""
        folder = tmp_path_factory.mktemp("service")
        (folder / "uploads").mkdir()
        main = f"{code}\nfrom groundglass.cli.main import main; main()"
        command = [sys.executable, "-c", main, "serve", "--port", "0", "--bundle", str(bundle), *options]
        changed = {"TMPDIR": str(folder / "uploads"), "PYTHONWARNINGS": "default", "GROUNDGLASS_TOKEN": token}
        with (folder / "out").open("wb") as out, (folder / "err").open("wb") as err:
            process = subprocess.Popen(command, stdout=out, stderr=err, env={**os.environ, **changed})
        processes.append(process)
        service = Running(process, folder, token=token)
        wait_for(lambda: "\n" in service.out or process.poll() is not None)
        assert process.poll() is None, f"{process.returncode}: {service.err}"
        service.port = service.log()[0]["port"]
        return service

    yield run
    for process in processes:
        process.kill()
        process.wait(PATIENCE)


@pytest.fixture(scope="module")
def service(start: Start) -> Running:
    """A service with its defaults."""
    return start()


def is_problem(answer: httpx.Response, status: int, kind: str, told: str = "") -> None:
    """Assert that an answer is problem details of that kind, whose detail tells something."""
    assert (answer.status_code, answer.headers["content-type"]) == (status, "application/problem+json")
    members = answer.json()
    assert (members["type"], members["status"]) == (f"urn:groundglass:problem:{kind}", status)
    assert members["title"]
    assert told in members["detail"]
    assert members["detail"].endswith(".")
    assert status != 503 or int(answer.headers["retry-after"]) > 0
