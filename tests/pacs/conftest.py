"""DICOMweb servers on loopback: a real Orthanc, and one that answers whatever a test wants."""

from __future__ import annotations

import http.client
import json
import shutil
import socket
import subprocess
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest

from groundglass.imaging.phantom import make_series, write_dicom

PLUGIN = Path("/usr/share/orthanc/plugins/libOrthancDicomWeb.so")
NAME, ID = "Zwiebelfisch^Xaver", "MRN-4711-XZ"


@pytest.fixture(autouse=True)
def _no_credentials_nor_proxies(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("TOKEN", "USER", "PASSWORD"):
        monkeypatch.delenv(f"GROUNDGLASS_PACS_{name}", raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")
    monkeypatch.setenv("NETRC", str(tmp_path / "no-netrc"))


@dataclass(frozen=True)
class Asked:
    """A request as it came."""

    method: str
    path: str
    headers: Mapping[str, str]
    body: bytes


@dataclass(frozen=True)
class Said:
    """An answer; ``cut`` breaks it off after so many bytes of its body."""

    status: int = 200
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)
    cut: int | None = None

    @classmethod
    def json(cls, value: Any) -> Said:
        return cls(body=json.dumps(value).encode(), headers={"Content-Type": "application/dicom+json"})


Answer = Callable[[Asked], Said]


class Server:
    """Answers requests as its ``answer`` says, and remembers them."""

    def __init__(self) -> None:
        self.asked: list[Asked] = []
        self.answer: Answer = lambda asked: Said(404)
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def _handle(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                asked = Asked(self.command, self.path, dict(self.headers), body)
                server.asked.append(asked)
                said = server.answer(asked)
                self.send_response(said.status)
                for name, value in said.headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(said.body)))
                self.end_headers()
                self.wfile.write(said.body[: said.cut])
                self.close_connection = said.cut is not None

            do_GET = do_POST = _handle  # noqa: N815

            def log_message(self, *arguments: object) -> None:
                """Tests need no log."""

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.daemon_threads = True
        self.http.handle_error = lambda *arguments: None  # type: ignore[method-assign]
        threading.Thread(target=self.http.serve_forever, args=(0.05,), daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.http.server_port}/dicom-web"

    def stored(self) -> int:
        return sum(asked.method == "POST" for asked in self.asked)

    def close(self) -> None:
        self.http.shutdown()
        self.http.server_close()


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    yield server
    server.close()


class Orthanc:
    """A real archive, which can be killed and started again."""

    def __init__(self, folder: Path, example: Mapping[str, Any] | None = None) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self._configuration = folder / "orthanc.json"
        self._log = folder / "orthanc.log"
        self._process: subprocess.Popen[bytes] | None = None
        settings = {
            **(example or {}),
            "StorageDirectory": str(folder / "storage"),
            "IndexDirectory": str(folder / "storage"),
            "HttpPort": self.port,
            "DicomServerEnabled": False,
            "RemoteAccessAllowed": False,
            "AuthenticationEnabled": False,
            "Plugins": [str(PLUGIN)],
            "DicomWeb": {"Enable": True, "Root": "/dicom-web/"},
        }
        self._configuration.write_text(json.dumps(settings))

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/dicom-web"

    def start(self) -> None:
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(["Orthanc", str(self._configuration)], stdout=log, stderr=log)
        end = time.monotonic() + 120
        while time.monotonic() < end and self._process.poll() is None:
            if self._answers():
                return
            time.sleep(0.1)
        pytest.fail(f"Orthanc does not start: {self._log.read_text(errors='replace')[-2000:]}")

    def _answers(self) -> bool:
        try:
            self._rest("GET", "/system")
        except (OSError, http.client.HTTPException):
            return False
        return True

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def clear(self) -> None:
        for study in json.loads(self._rest("GET", "/studies")):
            self._rest("DELETE", f"/studies/{study}")

    def put(self, path: Path) -> None:
        self._rest("POST", "/instances", path.read_bytes())

    def objects(self, modality: str) -> dict[str, bytes]:
        """DICOM files by SOP Instance UID."""
        found = {}
        for series in json.loads(self._rest("GET", "/series?expand")):
            if series["MainDicomTags"].get("Modality") == modality:
                for instance in series["Instances"]:
                    content = self._rest("GET", f"/instances/{instance}/file")
                    found[_sop_instance(content)] = content
        return found

    def _rest(self, method: str, path: str, body: bytes | None = None) -> bytes:
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}{path}", body, method=method)
        with urllib.request.urlopen(request, timeout=60) as answer:  # noqa: S310 - loopback
            return bytes(answer.read())


def _sop_instance(content: bytes) -> str:
    return str(pydicom.dcmread(pydicom.filebase.DicomBytesIO(content)).SOPInstanceUID)


@pytest.fixture(scope="module")
def _running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Orthanc]:
    if shutil.which("Orthanc") is None or not PLUGIN.exists():
        pytest.skip("Orthanc with its DICOMweb plugin is not here: apt-get install orthanc orthanc-dicomweb")
    orthanc = Orthanc(tmp_path_factory.mktemp("orthanc"))
    orthanc.start()
    yield orthanc
    orthanc.kill()


@pytest.fixture
def orthanc(_running: Orthanc) -> Orthanc:
    """A running, empty Orthanc."""
    _running.clear()
    return _running


@pytest.fixture
def proxy(server: Server, orthanc: Orthanc) -> Server:
    """A server that asks Orthanc; tests put faults before it."""
    server.answer = forward(orthanc)
    return server


def forward(orthanc: Orthanc) -> Answer:
    """Whatever Orthanc says, and 502 where it is away, as reverse proxies do."""

    def answer(asked: Asked) -> Said:
        connection = http.client.HTTPConnection("127.0.0.1", orthanc.port, timeout=60)
        left_behind = {"connection", "accept-encoding"}
        headers = {name: value for name, value in asked.headers.items() if name.lower() not in left_behind}
        try:
            connection.request(asked.method, asked.path, asked.body or None, headers)
            answer = connection.getresponse()
            body, kind = answer.read(), answer.headers.get("Content-Type", "application/dicom+json")
        except (OSError, http.client.HTTPException):
            return Said(502)
        finally:
            connection.close()
        return Said(answer.status, body, {"Content-Type": kind})

    return answer


@pytest.fixture
def series(tmp_path: Path) -> list[Path]:
    """Files of a phantom series of five slices, whose invented patient has a name."""
    paths = []
    for phantom in make_series(np.random.default_rng(5), 5, 0.5, 256):
        paths.append(tmp_path / "series" / f"{phantom.instance}.dcm")
        write_dicom(phantom, paths[-1])
        named = pydicom.dcmread(paths[-1])
        named.PatientName, named.PatientID, named.PatientBirthDate = NAME, ID, "19310719"
        named.save_as(paths[-1])
    return paths
