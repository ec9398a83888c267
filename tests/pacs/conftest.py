"""DICOMweb servers on loopback: a real Orthanc, and one that answers whatever a test wants."""

from __future__ import annotations

import io
import json
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
import requests

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
                server.asked.append(Asked(self.command, self.path, dict(self.headers), body))
                said = server.answer(server.asked[-1])
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


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    yield server
    server.http.shutdown()
    server.http.server_close()


class Orthanc:
    """A real archive, which can be killed and started again."""

    def __init__(self, folder: Path, example: Mapping[str, Any] | None = None) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.root = f"http://127.0.0.1:{port}"
        self.url = f"{self.root}/dicom-web"
        self._configuration, self._log = folder / "orthanc.json", folder / "orthanc.log"
        self._process: subprocess.Popen[bytes] | None = None
        storage = str(folder / "storage")
        settings = {
            "StorageDirectory": storage,
            "IndexDirectory": storage,
            "HttpPort": port,
            "Plugins": [str(PLUGIN)],
        }
        settings |= {"DicomWeb": {"Enable": True, "Root": "/dicom-web/"}}
        settings |= dict.fromkeys(
            ("DicomServerEnabled", "RemoteAccessAllowed", "AuthenticationEnabled"), False
        )
        self._configuration.write_text(json.dumps({**(example or {}), **settings}))

    def start(self) -> None:
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(["Orthanc", str(self._configuration)], stdout=log, stderr=log)
        end = time.monotonic() + 120
        while time.monotonic() < end and self._process.poll() is None:
            try:
                self._rest("GET", "/system")
            except requests.RequestException:
                time.sleep(0.1)
            else:
                return
        pytest.fail(f"Orthanc does not start: {self._log.read_text(errors='replace')[-2000:]}")

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def clear(self) -> None:
        for study in json.loads(self._rest("GET", "/studies")):
            self._rest("DELETE", f"/studies/{study}")

    def put(self, *paths: Path) -> str:
        """Store files; gives the study of the first."""
        for path in paths:
            self._rest("POST", "/instances", path.read_bytes())
        return str(pydicom.dcmread(paths[0], stop_before_pixels=True).StudyInstanceUID)

    def objects(self, modality: str) -> list[pydicom.Dataset]:
        return [
            pydicom.dcmread(io.BytesIO(self._rest("GET", f"/instances/{instance}/file")))
            for series in json.loads(self._rest("GET", "/series?expand"))
            if series["MainDicomTags"].get("Modality") == modality
            for instance in series["Instances"]
        ]

    def _rest(self, method: str, path: str, body: bytes | None = None) -> bytes:
        answer = requests.request(method, self.root + path, data=body, timeout=60)
        answer.raise_for_status()
        return answer.content


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
    """A server that says whatever Orthanc says, and 502 where it is away; tests put faults before it."""

    def answer(asked: Asked) -> Said:
        left_behind = {"connection", "accept-encoding"}
        headers = {name: value for name, value in asked.headers.items() if name.lower() not in left_behind}
        try:
            answer = requests.request(
                asked.method, orthanc.root + asked.path, data=asked.body or None, headers=headers, timeout=60
            )
        except requests.RequestException:
            return Said(502)
        kind = answer.headers.get("Content-Type", "application/dicom+json")
        return Said(answer.status_code, answer.content, {"Content-Type": kind})

    server.answer = answer
    return server


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


@pytest.fixture
def study(orthanc: Orthanc, series: list[Path]) -> str:
    """The series in Orthanc, by its study."""
    return orthanc.put(*series)
