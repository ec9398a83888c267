"""What is said over HTTP is what ``groundglass predict`` says, and is described; who may ask; nobody is named."""

import csv
import io
import json
import re
import subprocess
import sys
import zipfile
from contextlib import suppress
from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from xml.etree import ElementTree as ET

import cv2
import nibabel as nib
import numpy as np
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from hypothesis.errors import Unsatisfiable
from numpy.typing import NDArray
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi import checks
from tests.conftest import ID, NAME, Command, Patch, change_dicom, pixels, png, wait_for
from tests.imaging.conftest import CHEST, write_ct
from tests.imaging.test_fuzz import GENERATED, damages, generated
from tests.imaging.test_read import LINK
from tests.serving.conftest import PATIENCE, PNG, TOKEN, Running, Start, is_problem, packed

from groundglass.imaging.phantom import make_series, write_dicom
from groundglass.inference.classifier import Classifier
from groundglass.serving.results import Results
from groundglass.serving.settings import Settings

__all__ = ["generated"]

DOCS = (Path(__file__).parents[2] / "docs" / "serve.md").read_text(encoding="utf-8")
PAGE = {entry.name: entry.read_bytes() for entry in (files("groundglass.serving") / "page").iterdir()}
KINDS = {"html": "text/html", "js": "text/javascript", "css": "text/css", "svg": "image/svg+xml"}
FILE, INNER = "geheim-xyz.dcm", "innen-xyz.dcm"
# Larger, with noise as of a scanner: a picture of few grey values is refused.
_NOISE = np.random.default_rng(0).integers(-100, 100, CHEST.shape).astype(np.int16)
LARGE = np.kron(CHEST + _NOISE, np.ones((2, 2), np.int16))
CHECKS = [
    not_a_server_error, checks.status_code_conformance, checks.content_type_conformance,
    checks.response_schema_conformance,
]  # fmt: skip
SAME = settings(deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))


@pytest.fixture(scope="module")
def guarded(start: Start, tmp_path_factory: pytest.TempPathFactory) -> Running:
    """A service that asks for the token of a file; its client says which."""
    file = tmp_path_factory.mktemp("secret") / "token"
    file.write_text(f"{TOKEN}\n")
    return replace(start("--token-file", str(file)), token=TOKEN)


@pytest.fixture
def stranger(guarded: Running) -> Running:
    """The same to a client without the token."""
    return replace(guarded, token="")


def test_predictions_are_those_of_predict(service: Running, tmp_path: Path, tiny_bundle: Path) -> None:
    """Of one file of each kind, some of them bad."""
    (tmp_path / "a.png").write_bytes(PNG)
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "b ü.jpg").write_bytes(bytes(cv2.imencode(".jpg", pixels(2))[1]))
    dicom = write_ct(tmp_path / "c.dcm", LARGE).read_bytes()
    planes = (LARGE[::-1, ::-1].T[:, :, None] - np.arange(5)).astype(np.int16)
    nib.Nifti1Image(planes, np.eye(4)).to_filename(tmp_path / "d.nii.gz")
    inner = {"inner/2.png": png(3), "inner/10.png": png(4), "inner/bad.png": png(4)[:100]}
    (tmp_path / "e.zip").write_bytes(packed(inner))
    (tmp_path / "f.dcm").write_bytes(dicom[:2000])
    paths = sorted(path for path in tmp_path.rglob("*") if path.is_file())
    uploads = [(path.relative_to(tmp_path).as_posix(), path.read_bytes()) for path in paths]
    options = ["predict", "--json", "--bundle", str(tiny_bundle), *(name for name, _ in uploads)]
    command = [sys.executable, "-m", "groundglass.cli.main", *options]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, timeout=PATIENCE, check=False)
    assert done.returncode == 3, done.stderr
    predicted = done.stdout.decode().splitlines()

    document, rows = service.post(*uploads).json(), [json.loads(line) for line in predicted]
    assert document["predictions"] == rows
    assert {row["status"] for row in rows} == {"ok", "failed"}
    assert document["counts"]["total"] == len(rows)
    assert [len(series["predictions"]) for series in document["series"]] == [1, 5]
    assert service.lines(*uploads) == (predicted, False), "byte for byte"
    # A small file alone is classified from memory, and unlike archives and files with company never written.
    assert [row for upload in uploads for row in service.rows(upload)] == rows


def test_layers_lie_on_the_slice_and_a_copy_counts_once(service: Running, tmp_path: Path) -> None:
    def fetched(layer: str) -> NDArray[np.uint8]:
        return np.frombuffer(service.get(image[layer]).content, np.uint8)

    content = write_ct(tmp_path / "a.dcm", LARGE).read_bytes()
    document = service.kept(("a.dcm", content), ("copy.dcm", content))
    first, copy = document["predictions"]
    assert first["overlay"] == first["image"]["lesions"]
    assert (copy["status"], copy["reason"][:15], copy["overlay"]) == ("refused", "a copy of a.dcm", None)
    assert document["counts"]["total"] == 1
    assert [series["predictions"] for series in document["series"]] == [[0]]
    image = first["image"]
    assert (image["rows"], image["columns"]) == LARGE.shape
    assert cv2.imdecode(fetched("picture"), cv2.IMREAD_UNCHANGED).shape == LARGE.shape
    colours = cv2.imdecode(fetched("lesions"), cv2.IMREAD_UNCHANGED)
    assert colours.shape == (*LARGE.shape, 4)
    assert colours[:, :, 3].max() > 100
    np.testing.assert_array_equal(fetched("hounsfield").view("<i2").reshape(LARGE.shape), np.clip(LARGE, -1024, None))
    outline = ET.fromstring(service.get(image["outline"]).text)  # noqa: S314 - our own
    assert outline.attrib["viewBox"] == f"0 0 {LARGE.shape[1]} {LARGE.shape[0]}"
    assert {child.attrib["class"] for child in outline} == {"lungs", "lesions"}
    grey = service.kept(("a.png", PNG))["predictions"][0]["image"]
    assert grey["hounsfield"] is None
    assert service.get(grey["picture"].replace("picture.png", "hounsfield.raw")).status_code == 404


def test_planes_cross_the_slices_of_a_complete_series(service: Running, tmp_path: Path) -> None:
    phantoms = list(make_series(np.random.default_rng(1), 9, 0.5, size=96))
    for phantom in phantoms:
        write_dicom(phantom, tmp_path / f"{phantom.instance}.dcm")
    files = [(path.name, path.read_bytes()) for path in sorted(tmp_path.iterdir(), reverse=True)]
    document = service.kept(*files)
    (series,), base = document["series"], document["kept"]["links"]["self"]
    assert series["description"] == "Phantom, not a patient"
    shown = [document["predictions"][number]["file"] for number in series["volume"]["predictions"]]
    assert shown == [f"{number}.dcm" for number in range(1, 10)]
    stack = np.stack([phantom.hounsfield for phantom in phantoms])
    for plane, expected in (("coronal/40", stack[:, 40]), ("sagittal/30", stack[:, :, 30])):
        content = service.get(f"{base}/series/0/{plane}/hounsfield.raw").content
        np.testing.assert_array_equal(np.frombuffer(content, "<i2").reshape(9, 96), expected)
        assert 'viewBox="0 0 96 9"' in service.get(f"{base}/series/0/{plane}/outline.svg").text
    for wrong in ("0/coronal/96", "1/coronal/0"):
        is_problem(service.get(f"{base}/series/{wrong}/hounsfield.raw"), 404, "no-such-layer", "no such plane")
    assert service.kept(*files[:4], *files[5:])["series"][0]["volume"] is None, "a slice is missing"
    for aside, gap in ((0, 10), (40, None)):  # of a tilted series, along its normal
        for number, (name, _) in enumerate(files):
            place = [aside * (number == 4), -2.8 * number, 9.6 * number]
            orientation = [1, 0, 0, 0, 0.96, 0.28]
            change_dicom(tmp_path / name, ImagePositionPatient=place, ImageOrientationPatient=orientation)
        tilted = service.kept(*((name, (tmp_path / name).read_bytes()) for name, _ in files))
        assert ((tilted["series"][0]["volume"] or {}).get("gap")) == gap


def test_results_are_fetched_exported_and_forgotten(service: Running, classifier: Classifier, tmp_path: Path) -> None:
    content = write_ct(tmp_path / "a.dcm", LARGE, PixelSpacing=[2, 1]).read_bytes()
    document = service.kept(("a.dcm", content), ("bad.png", PNG[:60]))
    links = document["kept"]["links"]
    assert service.get(links["self"]).json()["predictions"] == document["predictions"]
    table = list(csv.DictReader(io.StringIO(service.get(links["csv"]).text)))
    lines = [json.loads(line) for line in service.get(links["jsonl"]).text.splitlines()]
    for rows in (table, lines):
        assert [(row["file"], row["status"]) for row in rows] == [("a.dcm", "ok"), ("bad.png", "failed")]
    report = service.get(links["report"])
    assert "attachment" in report.headers["content-disposition"]
    with zipfile.ZipFile(io.BytesIO(report.content)) as archive:
        (picture,) = (archive.read(name) for name in archive.namelist() if name.startswith("report/overlays/"))
        assert b'width="128" height="192"' in picture, "rows lie twice as far apart as columns"
        assert "a.dcm" in archive.read("report/report.html").decode()
    assert service.ask("DELETE", links["self"]).status_code == 204
    for link in (*links.values(), document["predictions"][0]["image"]["picture"]):
        assert service.get(link).status_code == 404
    assert service.uploads_on_disk() == []
    results = Results(Settings(keep_seconds=0))
    assert results.get(results.begin(classifier.bundle, keep=True).id), "its first prediction may take long"


def test_head_is_get_without_the_content(service: Running) -> None:
    for path in ("/", "/v2/model", "/nothing", "/v2/predictions"):
        told, whole = service.ask("HEAD", path), service.get(path)
        assert (told.status_code, told.content) == (whole.status_code, b"")
        for name in ("content-type", "content-length", "content-security-policy"):
            assert told.headers[name] == whole.headers[name]


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.5", "example.org", ""])  # noqa: S104
def test_nothing_beyond_this_machine(host: str, run_command: Command, monkeypatch: Patch) -> None:
    monkeypatch.setenv("GROUNDGLASS_TOKEN", "")
    assert "refusing to listen beyond this machine without a token" in run_command("serve", "--host", host)[2]
    for near in ("127.0.0.1", "127.0.0.2", "::1", "localhost"):
        assert Settings(host=near).token is None
    monkeypatch.setenv("GROUNDGLASS_TOKEN", TOKEN)
    assert TOKEN not in repr(Settings(host=host))


def test_what_it_cannot_use(service: Running, run_command: Command, tmp_path: Path, monkeypatch: Patch) -> None:
    """A token, a port or a directory that is no good."""
    monkeypatch.setattr("logging.disable", lambda: None)
    token = tmp_path / "token"
    for content, told in ((TOKEN[:5], "has 5 characters"), ("\n", "has 0"), ("ö" * 16, "holds characters that no")):
        token.write_text(content)
        assert f"the token {told}" in run_command("serve", "--token-file", token)[2]
    assert all("31622400" in run_command("serve", "--seconds", each)[2] for each in ("nan", "inf", "31622401"))
    assert "for '--token-file'" in run_command("serve", "--token-file", tmp_path / "none")[2]
    assert "cannot be listened at" in run_command("serve", "--port", service.port)[2]
    assert "/none: uploads cannot be" in run_command("serve", "--upload-directory", "/none")[2]


@pytest.mark.parametrize("sent", ["Bearer", "Bearer é", f"Bearer {TOKEN}x", f"Basic {TOKEN}", None])
def test_without_the_token_there_is_nothing(guarded: Running, stranger: Running, sent: str | None) -> None:
    headers = {} if sent is None else {"Authorization": sent.encode()}
    paths = ("/v2/model", "/v2/results/x", "/metrics", "/openapi.json", "/nothing")
    answers = [stranger.get(path, **headers) for path in paths]
    for answer in (*answers, stranger.post(("a.png", PNG), headers=headers)):
        is_problem(answer, 401, "unauthorized")
        assert answer.headers["www-authenticate"] == "Bearer"
    assert stranger.get("/healthz", **headers).status_code == 200
    assert guarded.post(("a.png", PNG)).status_code == 200
    assert guarded.get("/openapi.json").json()["security"] == [{"token": []}]
    assert TOKEN not in guarded.out + guarded.err


def test_pages_of_other_sites_may_not_ask(service: Running) -> None:
    origins = (service.url, "https://example.org", "null", "http://127.0.0.1:1", "http://[")
    answers = [service.post(("a.png", PNG), headers={"Origin": origin}) for origin in origins]
    assert [answer.status_code for answer in answers] == [200, 403, 403, 403, 403]
    for host in ("example.org", "example.org:80", "127.0.0.1.example.org", "[", "a b"):
        is_problem(service.get("/v2/model", Host=host), 421, "misdirected-request", "loopback addresses")
    assert service.get("/v2/model", Host=f"localhost:{service.port}").status_code == 200


def test_anybody_gets_the_page_and_nothing_else(stranger: Running) -> None:
    assert stranger.get("/").content == PAGE["index.html"]
    for name, file in PAGE.items():
        answer = stranger.get(f"/page/{name}")
        assert answer.content == file
        assert answer.headers["content-type"].startswith(KINDS[name.rpartition(".")[2]])
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert "set-cookie" not in answer.headers
    for name in ("", "none.js", "..%2fapp.py", "%2e%2e/app.py", "__init__.py"):
        assert stranger.get(f"/page/{name}").status_code in {401, 404}


def test_a_hostile_file_gets_a_prediction_that_says_why(service: Running) -> None:
    header = b"ObjectType = Image\nNDims = 3\nDimSize = 9 9 9\nElementType = MET_SHORT\nElementDataFile = "
    hostile = {
        "bomb.zip": (packed({"bomb.png": bytes(40_000_000)}), "decompression bomb"),
        "out.zip": (packed({"../evil.png": PNG}), "leads out of the archive"),
        "link.zip": (packed({LINK: b"/etc/passwd"}), "a link"),
        "nested.zip": (packed({"really.png": packed({"x.png": PNG})}), "an archive within an archive"),
        "cut.zip": (packed({"x.png": PNG})[:-30], ""),
        "outside.mhd": (header + b"../../../../etc/passwd\n", ""),
    }
    rows = service.rows(*((name, content) for name, (content, _) in hostile.items()), ("good.png", PNG))
    by_file = {row["file"].partition("!")[0]: row for row in rows}
    assert by_file.pop("good.png")["status"] == "ok", "one bad file never stops the rest"
    assert set(by_file) == set(hostile)
    for name, (content, reason) in hostile.items():
        assert by_file[name]["status"] == "failed"
        assert reason in by_file[name]["reason"]
        assert str(service.uploads) not in by_file[name]["reason"]
        assert service.post((name, content)).status_code in {200, 415}, "alone as well"
    manifest = ("g.csv", b"path,label\n/etc/passwd,COVID\na.png,COVID\n")
    assert [row["status"] for row in service.rows(("a.png", PNG), manifest)] == ["ok", "failed"]
    assert service.post(manifest).status_code == 415
    assert service.is_clean()


def test_damaged_files_of_every_kind(service: Running, generated: dict[str, bytes]) -> None:
    @settings(SAME, max_examples=100)
    @given(st.sampled_from(GENERATED).flatmap(lambda kind: damages(generated[kind])))
    def check(content: bytes) -> None:
        assert service.post(("damaged", content), keep="true").status_code in {200, 415}

    check()
    assert service.is_clean()
    assert not [entry for entry in service.log() if entry["level"] == "error"]


def test_nobody_is_named_in_the_log(start: Start, tmp_path: Path) -> None:
    service = start("--drain-seconds", "600")  # longer than stop() waits
    who = {"PatientName": NAME, "PatientID": ID, "SeriesInstanceUID": "1.2.3.4.5.987654321"}
    content = write_ct(tmp_path / "a.dcm", np.kron(CHEST, np.ones((2, 2), np.int16)), **who).read_bytes()
    broken = content.replace(b"MONOCHROME2 ", b"PALETTE COLO")
    for file in (content, broken, content[:1500], packed({INNER: content, "geheim-xyz.png": b"bad"})):
        answer = service.post((FILE, file), keep="true")
        links = answer.json()["kept"]["links"]
        for told in (answer, *(service.get(link, **{"User-Agent": ID}) for link in links.values())):
            assert NAME not in told.text
            assert ID not in told.text
        service.get(f"/{NAME}?id={ID}")
    service.process.terminate()
    wait_for(lambda: service.log("ending"))
    assert service.stop() == 0, "a second signal ends it at once"
    secrets = (NAME, ID, "xyz", "987654321", links["self"].rpartition("/")[2], str(service.uploads))
    assert not [secret for secret in secrets if secret in service.out + service.err]
    assert service.says_where_it_is()


@pytest.mark.slow
@pytest.mark.parametrize("mode", list(GenerationMode), ids=lambda mode: mode.value)
def test_fuzzing_from_the_description(service: Running, mode: GenerationMode) -> None:
    """What fits the description, and what does not, is answered as it says and never by a 5xx."""
    description = schemathesis.openapi.from_url(f"{service.url}/openapi.json")
    operations = [found.ok() for found in description.get_all_operations()]
    documented = set(re.findall(r"`((?:create|get|delete|export)[A-Z]\w+)`", DOCS))
    assert {each.definition.raw["operationId"] for each in operations} == documented
    assert all(each.definition.raw["description"] for each in operations)
    assert service.get("/v2/synthetic.zip").status_code == 200, "made once, and kept"
    asked = 0
    for operation in operations:

        @settings(SAME, max_examples=10, phases=[Phase.generate])
        @given(operation.as_strategy(mode))
        def check(case: schemathesis.Case) -> None:
            nonlocal asked
            asked += 1
            case.call_and_validate(checks=CHECKS)

        with suppress(Unsatisfiable):  # an address without parameters has nothing that does not fit
            check()
    assert asked > len(operations)
    assert service.get("/healthz").status_code == 200
