"""Fixtures shared by all tests: real data where it lies beside the checkout, and a bundle in miniature."""

import json
import shutil
import signal
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from html.parser import HTMLParser
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import onnx.parser
import pydicom
import pytest
from numpy.typing import NDArray
from PIL import Image

import groundglass
from groundglass.cli.main import main
from groundglass.imaging.crop import Preprocessing
from groundglass.imaging.lungs import shipped
from groundglass.imaging.phantom import make_phantom
from groundglass.imaging.slice import CTSlice, Origin
from groundglass.inference.bundle import INPUT, OUTPUTS, Engine, save_arrays, self_test, write_bundle
from groundglass.inference.classifier import Classifier
from groundglass.inference.input_check import LUNG, InputCheck
from groundglass.training.input_check_fit import Examples, fit_model

SHARED_DATA = Path(__file__).parents[2] / "shared" / "data"
APPEARANCE = 957  # numbers that describe a picture to the input check
NAME, ID, BIRTH = "Zwiebelfisch^Xaver", "MRN-4711-XZ", "19310719"
Patch = pytest.MonkeyPatch
AXE = (Path(__file__).parent / "serving" / "vendor" / "axe.min.js").read_text(encoding="utf-8")
TINY_MODEL = """
    <ir_version: 9, opset_import: ["": 18]>
    tiny (float[batch, 1, 64, 64] image)
        => (float[batch] logit, float[batch, 8, 8] lesion_map, float[batch, 64] embedding)
        <float gain = {GAIN}, int64[1] channel = {1}, int64[2] sides = {1, 2}> {
        pooled = AveragePool <kernel_shape = [8, 8], strides = [8, 8]> (image)
        scaled = Mul (pooled, gain)
        lesion_map = Squeeze (scaled, channel)
        embedding = Flatten (pooled)
        logit = ReduceMean <keepdims = 0> (lesion_map, sides)
    }
"""


def accept_all(channels: int) -> InputCheck:
    """An untrained check, for embeddings of ``channels`` numbers: it accepts whatever is not blank or no lung slice."""
    features = np.random.default_rng(0).normal(0, 1, (4, APPEARANCE + channels))
    return fit_model(Examples(features, np.repeat([LUNG, "other"], 2), np.arange(4), np.ones(4), np.ones(4) > 0))


def pytest_configure() -> None:
    """A shell script that starts tests in the background makes them, and all they start, deaf to interrupts."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session", autouse=True)
def _environment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Cropped slices are shared by all tests, and no proxy is asked for what listens here."""
    with Patch.context() as patch:
        patch.setenv("GROUNDGLASS_CACHE", str(tmp_path_factory.mktemp("cache")))
        for name in ("NO_PROXY", "no_proxy"):
            patch.setenv(name, "127.0.0.1,localhost")
        yield


def real(name: str, what: str) -> Any:
    """A fixture: the folder of real data, of which ``what`` says what they are, or a reason to skip the test."""

    def folder() -> Path:
        if not (SHARED_DATA / name).exists():
            pytest.skip(f"{what}: not here: {SHARED_DATA / name}")
        return SHARED_DATA / name

    return pytest.fixture(scope="session")(folder)


covid_ct = real("covid-ct", "the COVID-CT data set as published, official split included")
luna_slices = real("luna-slices", "1,000 lesion-free lung slices")
dicom_samples = real("dicom", "DICOM files of several makers, planes and transfer syntaxes")
hospitals = real("hospitals", "slices of thirteen sources with a manifest, lung and lesion masks for some")


def tiny_model(gain: float = 4.0) -> bytes:
    """A network without weights: its logit grows with the bright area of the cropped slice."""
    return bytes(onnx.parser.parse_model(TINY_MODEL.replace("GAIN", str(gain))).SerializeToString())


def tiny_parts() -> tuple[dict[str, Any], dict[str, bytes]]:
    """Fields of the miniature's ``bundle.json`` and its other files."""
    preprocessing, model = Preprocessing(size=64, normalisation="min-max"), tiny_model()
    pixels = make_phantom(np.random.default_rng(0), 0.5, 0.5, size=128).slice.pixels
    quantiles = {"COVID": 0.6, "NonCOVID": 0.6}
    fields = {
        "name": "tiny", "created": "2026-01-01T00:00:00+00:00", "network": {"name": "tiny", "input_size": 64},
        "preprocessing": preprocessing.model_dump(), "positive": "COVID", "precision": "fp32",
        "calibration": {"temperature": 2.0, "coverage": 0.9, "quantiles": quantiles, "slices": 10},
        "onnx": {"opset": 18, "input": INPUT, "outputs": list(OUTPUTS)}, "training": {},
        "metrics": {"test": {"metrics": {"auc": {"value": 0.9, "low": None, "high": None}}}},
        "validation_auc": {"fp32": 0.9}, "licence": "Apache-2.0", "versions": {},
    }  # fmt: skip
    contents = {
        "classifier.onnx": model,
        "reference.npz": save_arrays(accept_all(channels=64).as_arrays()),
        "lungs.onnx": shipped().model,
        "selftest.npz": save_arrays(self_test(Engine(model, threads=1), shipped(), preprocessing, pixels)),
    }
    return fields, contents


@pytest.fixture(scope="session")
def tiny_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle's folder, made without torch; not to be written to."""
    path = tmp_path_factory.mktemp("bundle") / "tiny"
    write_bundle(path, *tiny_parts())
    return path


class Page(HTMLParser):
    """The tags of a page with their attributes; its text, whole and by the id of what last had one."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.html, self.text, self.parts, self._id = html, "", {"": ""}, ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._id = dict(attrs).get("id") or self._id
        self.parts.setdefault(self._id, "")

    def handle_data(self, data: str) -> None:
        words = "".join(f"{word} " for word in data.split())
        self.text += words
        self.parts[self._id] += words


@dataclass(frozen=True)
class Asked:
    """A request as it came."""

    method: str
    path: str
    headers: Mapping[str, str]
    body: bytes


@dataclass(frozen=True)
class Said:
    """An answer; ``cut`` breaks it off after so many bytes of its body, once it is not ``held`` any more."""

    status: int = 200
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)
    cut: int | None = None
    held: threading.Event | None = None

    @classmethod
    def json(cls, value: Any) -> "Said":
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
                if said.held is not None:
                    said.held.wait(60)
                self.close_connection = said.cut is not None

            do_GET = do_POST = _handle  # noqa: N815

            def log_message(self, *arguments: object) -> None:
                """Tests need no log."""

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.daemon_threads = True
        self.http.handle_error = lambda *arguments: None  # type: ignore[method-assign]
        threading.Thread(target=self.http.serve_forever, args=(0.05,), daemon=True).start()

    def says(self, *said: Said) -> None:
        """Answer with these in turn, and with the last for ever."""
        waiting = iter(said[:-1])
        self.answer = lambda asked: next(waiting, said[-1])

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.http.server_port}/dicom-web"


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    yield server
    server.http.shutdown()
    server.http.server_close()


def save_image(path: Path, pixels: int | NDArray[np.uint8] = 90) -> Path:
    """Write a picture; of one grey value it is 6 x 8 pixels large."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((8, 6), pixels, np.uint8) if isinstance(pixels, int) else pixels).save(path)
    return path


@cache
def pixels(seed: int, size: int = 96) -> NDArray[np.uint8]:
    """A phantom slice, ill where the seed is odd."""
    return make_phantom(np.random.default_rng(seed), 0.6 * (seed % 2), 0.5, size=size).slice.pixels


@cache
def png(seed: int, size: int = 96) -> bytes:
    return bytes(cv2.imencode(".png", pixels(seed, size))[1])


def blank(height: int, width: int) -> CTSlice:
    """A black slice of a picture."""
    return CTSlice(np.zeros((height, width), np.uint8), Origin("blank.png", "PNG"))


def make_zip(file: Any, members: Mapping[Any, bytes]) -> Any:
    """Write a zip into a file of this name or an open one; its members are named by texts or ``ZipInfo``."""
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return file


def change_dicom(path: Path, **elements: object) -> None:
    dataset = pydicom.dcmread(path)
    for keyword, value in elements.items():
        setattr(dataset, keyword, value)
    dataset.save_as(path)


def without(*packages: str) -> str:
    """Python code after which these packages are not there."""
    return f"""
import sys

class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {packages}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Missing())
"""


def wait_for(condition: Callable[[], object], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)


class Done(NamedTuple):
    """A finished command."""

    status: int
    out: str
    err: str

    @property
    def rows(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.out.splitlines()]


Command = Callable[..., Done]


def stop_when(ready: Callable[[], object], words: Sequence[str], by: int = signal.SIGKILL, **options: Any) -> Done:
    """Start a command and end it as soon as something is ready, unless it has ended by itself."""
    pipe = subprocess.PIPE
    with subprocess.Popen(words, stdout=pipe, stderr=pipe, text=True, **options) as process:
        wait_for(lambda: ready() or process.poll() is not None, 240)
        process.send_signal(by)
        out, err = process.communicate(timeout=240)
    return Done(process.returncode, out, err)


@pytest.fixture
def run_command(monkeypatch: Patch, capfdbinary: pytest.CaptureFixture[bytes]) -> Command:
    """Runs ``groundglass`` with some words in this process: exit status, output and errors."""

    def run(*words: object) -> Done:
        monkeypatch.setattr(sys, "argv", ["groundglass", *map(str, words)])
        capfdbinary.readouterr()
        with pytest.raises(SystemExit) as ended:
            main()
        sys.stdout.flush()
        out, err = capfdbinary.readouterr()
        return Done(int(ended.value.code or 0), out.decode("utf-8"), err.decode("utf-8"))

    return run


@pytest.fixture(scope="session")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Any, Path]]:
    """A browser without a window that reaches nothing but this machine, and where its downloads land."""
    webdriver = pytest.importorskip("selenium.webdriver")
    browser, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if browser is None or driver is None:
        pytest.skip("Chromium and its driver are not here: apt-get install chromium chromium-driver")
    downloads = tmp_path_factory.mktemp("downloads")
    options = webdriver.ChromeOptions()
    options.binary_location = browser
    switches = "headless=new no-sandbox disable-gpu disable-dev-shm-usage no-proxy-server no-first-run"
    for switch in [*switches.split(), "disable-background-networking", "force-prefers-reduced-motion"]:
        options.add_argument(f"--{switch}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    options.add_experimental_option("prefs", {"download.default_directory": str(downloads)})
    with webdriver.Chrome(options=options, service=webdriver.ChromeService(driver)) as chrome:
        chrome.set_script_timeout(60)
        yield chrome, downloads


def cut_off(browser: Any) -> list[str]:
    """Whether something of the page that a browser shows is."""
    return list(browser.execute_script("return document.documentElement.scrollWidth > innerWidth ? ['cut off'] : []"))


def page_faults(browser: Any) -> list[Any]:
    """What axe-core finds on it, too."""
    browser.execute_script(AXE)
    script = "axe.run(document, {resultTypes: ['violations']}).then(found => arguments[0](found.violations))"
    return [*browser.execute_async_script(script), *cut_off(browser)]


def accepted_by_others(made: pydicom.Dataset, folder: Path) -> str:
    """Assert that other people's tools accept an object; what they say of it."""
    if shutil.which("dciodvfy") is None or shutil.which("dsrdump") is None:
        pytest.skip("dciodvfy or dsrdump is not here: apt-get install dicom3tools dcmtk")
    made.save_as(path := folder / "made.dcm", enforce_file_format=True)
    told = ""
    for command in ("dciodvfy", "dsrdump")[: 1 + (made.Modality == "SR")]:
        done = subprocess.run([command, str(path)], capture_output=True, text=True, timeout=120, check=False)
        complaints = [line for line in done.stderr.splitlines() if "VR checker does not support" not in line]
        assert (done.returncode, complaints) == (0, []) or command == "dciodvfy"
        told += done.stdout + done.stderr
    assert "Error" not in told
    return told


@pytest.fixture(scope="session")
def classifier(tiny_bundle: Path) -> Classifier:
    """The tiny bundle, ready to classify."""
    return groundglass.load(tiny_bundle, threads=1)
