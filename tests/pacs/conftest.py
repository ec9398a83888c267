"""DICOMweb servers on loopback: a real Orthanc, and one that answers whatever a test wants."""

import io
import json
import shutil
import socket
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
import requests
from tests.conftest import BIRTH, ID, NAME, Asked, Patch, Said, Server, change_dicom, wait_for

from groundglass.imaging.phantom import make_series, write_dicom
from groundglass.inference.classifier import Classifier
from groundglass.pacs.client import Archive
from groundglass.pacs.worker import Poll, SeriesProcessor

PLUGIN = Path("/usr/share/orthanc/plugins/libOrthancDicomWeb.so")


@pytest.fixture(autouse=True)
def _no_credentials_nor_proxies(monkeypatch: Patch, tmp_path: Path) -> None:
    for name in ("TOKEN", "USER", "PASSWORD"):
        monkeypatch.delenv(f"GROUNDGLASS_PACS_{name}", raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "no-netrc"))


class Orthanc:
    """A real archive, which can be killed and started again."""

    classifier: Classifier  # which answers its series

    def __init__(self, folder: Path, example: Mapping[str, Any] | None = None) -> None:
        if shutil.which("Orthanc") is None or not PLUGIN.exists():
            pytest.skip("Orthanc and its plugin are not here: apt-get install orthanc orthanc-dicomweb")
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.root = f"http://127.0.0.1:{port}"
        self.url = f"{self.root}/dicom-web"
        self._configuration, self._log = folder / "orthanc.json", folder / "orthanc.log"
        storage = dict.fromkeys(("StorageDirectory", "IndexDirectory"), str(folder / "storage"))
        off = dict.fromkeys(("DicomServerEnabled", "RemoteAccessAllowed", "AuthenticationEnabled"), False)
        web = {"HttpPort": port, "Plugins": [str(PLUGIN)]}
        self._configuration.write_text(json.dumps({**(example or {}), **storage, **off, **web}))

    def start(self) -> None:
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(["Orthanc", str(self._configuration)], stdout=log, stderr=log)
        wait_for(lambda: self._process.poll() is not None or self._answers(), 120)
        assert self._process.poll() is None, self._log.read_text(errors="replace")[-2000:]

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()

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

    def counted(self) -> list[int]:
        """How many reports, heat maps and masks are stored."""
        return [len(self.objects(modality)) for modality in ("SR", "OT", "SEG")]

    def poll(self, url: str = "", retry_seconds: float = 60, *, settle: bool = False) -> Poll:
        """What goes through its series, or through those that a server before it shows."""
        archive = Archive(url or self.url, retry_seconds)
        return Poll(archive, SeriesProcessor(archive, self.classifier), settle=settle)

    def _answers(self) -> bool:
        with suppress(requests.RequestException):
            return bool(self._rest("GET", "/system"))
        return False

    def _rest(self, method: str, path: str, body: bytes | None = None) -> bytes:
        answer = requests.request(method, self.root + path, data=body, timeout=60)
        answer.raise_for_status()
        return answer.content


@pytest.fixture(scope="module")
def _running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Orthanc]:
    orthanc = Orthanc(tmp_path_factory.mktemp("orthanc"))
    orthanc.start()
    yield orthanc
    orthanc.kill()


@pytest.fixture
def orthanc(_running: Orthanc, classifier: Classifier) -> Orthanc:
    """A running, empty Orthanc."""
    _running.classifier = classifier
    _running.clear()
    return _running


@pytest.fixture
def proxy(server: Server, orthanc: Orthanc) -> Server:
    """A server that says whatever Orthanc says, and 502 where it is away; tests put faults before it."""

    def answer(asked: Asked) -> Said:
        kept = {"Accept", "Content-Type"} & asked.headers.keys()
        sent = {"data": asked.body or None, "headers": {name: asked.headers[name] for name in kept}}
        try:
            answer = requests.request(asked.method, orthanc.root + asked.path, timeout=60, **sent)
        except requests.RequestException:
            return Said(502)
        kind = answer.headers.get("Content-Type", "application/dicom+json")
        return Said(answer.status_code, answer.content, {"Content-Type": kind})

    server.answer = answer
    return server


@pytest.fixture
def series(tmp_path: Path) -> list[Path]:
    """Files of a phantom series of five slices, whose invented patient has a name."""
    paths = [tmp_path / "series" / f"{number}.dcm" for number in range(5)]
    for phantom, path in zip(make_series(np.random.default_rng(5), 5, 0.5, 256), paths, strict=True):
        write_dicom(phantom, path)
        change_dicom(path, PatientName=NAME, PatientID=ID, PatientBirthDate=BIRTH)
    return paths


@pytest.fixture
def study(orthanc: Orthanc, series: list[Path]) -> str:
    """The series in Orthanc, by its study."""
    return orthanc.put(*series)
