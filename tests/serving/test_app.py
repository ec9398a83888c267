"""What is said over HTTP is what ``groundglass predict`` says, what hangs on it can be fetched, and all is described."""

from __future__ import annotations

import csv
import io
import json
import subprocess
import sys
import zipfile
from contextlib import suppress
from pathlib import Path
from xml.etree import ElementTree as ET

import cv2
import nibabel as nib
import numpy as np
import pydicom
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.errors import Unsatisfiable
from numpy.typing import NDArray
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi import checks
from tests.imaging.conftest import CHEST, write_ct
from tests.serving.conftest import PATIENCE, Running, is_problem, packed, picture

from groundglass.imaging.phantom import make_series, write_dicom

# Larger, with noise as of a scanner: a picture of few grey values is refused.
_NOISE = np.random.default_rng(0).integers(-100, 100, CHEST.shape).astype(np.int16)
LARGE = np.kron(CHEST + _NOISE, np.ones((2, 2), np.int16))
OPERATIONS = {
    "createPredictions", "getResult", "deleteResult", "exportResult", "getLayer", "getPlane",
    "getSynthetic", "getModel", "getHealth", "getReadiness", "getMetrics",
}  # fmt: skip
CHECKS = [
    not_a_server_error, checks.status_code_conformance, checks.content_type_conformance,
    checks.response_schema_conformance,
]  # fmt: skip
FEW = settings(
    max_examples=10, deadline=None, derandomize=True, database=None, phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
)  # fmt: skip


def test_predictions_are_those_of_predict(service: Running, tmp_path: Path, tiny_bundle: Path) -> None:
    """Of one file of each kind, some of them bad."""
    (tmp_path / "a.png").write_bytes(picture(1))
    (tmp_path / "sub").mkdir()
    pixels = cv2.imdecode(np.frombuffer(picture(2), np.uint8), cv2.IMREAD_GRAYSCALE)
    (tmp_path / "sub" / "b ü.jpg").write_bytes(bytes(cv2.imencode(".jpg", pixels)[1]))
    dicom = write_ct(tmp_path / "c.dcm", LARGE).read_bytes()
    planes = np.stack([LARGE[::-1, ::-1].T - index for index in range(5)], axis=-1)
    nib.Nifti1Image(planes.astype(np.int16), np.eye(4)).to_filename(tmp_path / "d.nii.gz")
    inner = {"inner/2.png": picture(3), "inner/10.png": picture(4), "inner/bad.png": picture(4)[:100]}
    (tmp_path / "e.zip").write_bytes(packed(inner))
    (tmp_path / "f.dcm").write_bytes(dicom[:2000])
    paths = sorted(path for path in tmp_path.rglob("*") if path.is_file())
    uploads = [(path.relative_to(tmp_path).as_posix(), path.read_bytes()) for path in paths]
    options = ["predict", "--json", "--bundle", str(tiny_bundle), *(name for name, _ in uploads)]
    command = [sys.executable, "-m", "groundglass.cli.main", *options]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, timeout=PATIENCE, check=False)
    assert done.returncode == 3, done.stderr
    predicted = done.stdout.decode().splitlines()

    document = service.post(*uploads).json()
    rows = document["predictions"]
    assert rows == [json.loads(line) for line in predicted]
    assert {row["status"] for row in rows} == {"ok", "failed"}
    assert document["counts"]["total"] == len(rows)
    assert [len(series["predictions"]) for series in document["series"]] == [1, 5]
    assert service.lines(*uploads) == (predicted, False), "byte for byte"
    # A small file alone is classified from memory, and unlike archives and files with company never written.
    assert [row for upload in uploads for row in service.rows(upload)] == rows


def test_a_manifest_reads_no_file_of_the_server(service: Running, png: bytes) -> None:
    manifest = ("g.csv", b"path,label\n/etc/passwd,COVID\na.png,COVID\n")
    assert [row["status"] for row in service.rows(("a.png", png), manifest)] == ["ok", "failed"]
    assert service.post(manifest).status_code == 415


def test_rows_can_be_joined_and_a_copy_counts_once(service: Running, tmp_path: Path) -> None:
    path = write_ct(tmp_path / "a.dcm", LARGE, InstanceNumber=7, StudyInstanceUID="1.2.3")
    content, uid = path.read_bytes(), str(pydicom.dcmread(path).SOPInstanceUID)
    document = service.post(("a.dcm", content), ("copy.dcm", content), keep="true").json()
    first, copy = document["predictions"]
    found = [first[name] for name in ("study", "series", "instance", "slice_number")]
    assert found == ["1.2.3", "1.2.3.4", uid, 7]
    assert first["overlay"] == first["image"]["lesions"]
    assert (copy["status"], copy["reason"][:15], copy["overlay"]) == ("refused", "a copy of a.dcm", None)
    assert document["counts"]["total"] == 1
    assert [series["predictions"] for series in document["series"]] == [[0]]


def test_layers_lie_on_the_slice(service: Running, tmp_path: Path, png: bytes) -> None:
    def fetched(layer: str) -> NDArray[np.uint8]:
        return np.frombuffer(service.get(image[layer]).content, np.uint8)

    content = write_ct(tmp_path / "a.dcm", LARGE).read_bytes()
    image = service.post(("a.dcm", content), keep="true").json()["predictions"][0]["image"]
    assert (image["rows"], image["columns"]) == LARGE.shape
    assert cv2.imdecode(fetched("picture"), cv2.IMREAD_UNCHANGED).shape == LARGE.shape
    colours = cv2.imdecode(fetched("lesions"), cv2.IMREAD_UNCHANGED)
    assert colours.shape == (*LARGE.shape, 4)
    assert colours[:, :, 3].max() > 100
    units = fetched("hounsfield").view("<i2").reshape(LARGE.shape)
    np.testing.assert_array_equal(units, np.clip(LARGE, -1024, None))
    outline = ET.fromstring(service.get(image["outline"]).text)  # noqa: S314 - our own
    assert outline.attrib["viewBox"] == f"0 0 {LARGE.shape[1]} {LARGE.shape[0]}"
    assert {child.attrib["class"] for child in outline} == {"lungs", "lesions"}
    grey = service.post(("a.png", png), keep="true").json()["predictions"][0]["image"]
    assert grey["hounsfield"] is None
    assert service.get(grey["picture"].replace("picture.png", "hounsfield.raw")).status_code == 404


def test_planes_cross_the_slices_of_a_complete_series(service: Running, tmp_path: Path) -> None:
    phantoms = list(make_series(np.random.default_rng(1), 9, 0.5, size=96))
    for phantom in phantoms:
        write_dicom(phantom, tmp_path / f"{phantom.instance}.dcm")
    files = [(path.name, path.read_bytes()) for path in sorted(tmp_path.iterdir(), reverse=True)]
    document = service.post(*files, keep="true").json()
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
        answer = service.get(f"{base}/series/{wrong}/hounsfield.raw")
        is_problem(answer, 404, "no-such-layer", "no such plane")
    (gap,) = service.post(*files[:4], *files[5:], keep="true").json()["series"]
    assert gap["volume"] is None, "a slice is missing"


def test_a_result_can_be_fetched_again_exported_and_forgotten(service: Running, png: bytes) -> None:
    document = service.post(("a.png", png), ("bad.png", png[:60]), keep="true").json()
    links = document["kept"]["links"]
    assert service.get(links["self"]).json()["predictions"] == document["predictions"]
    table = list(csv.DictReader(io.StringIO(service.get(links["csv"]).text)))
    lines = [json.loads(line) for line in service.get(links["jsonl"]).text.splitlines()]
    for rows in (table, lines):
        assert [(row["file"], row["status"]) for row in rows] == [("a.png", "ok"), ("bad.png", "failed")]
    report = service.get(links["report"])
    assert "attachment" in report.headers["content-disposition"]
    with zipfile.ZipFile(io.BytesIO(report.content)) as archive:
        assert sum(name.startswith("report/overlays/") for name in archive.namelist()) == 1
        assert "a.png" in archive.read("report/report.html").decode()
    assert service.ask("DELETE", links["self"]).status_code == 204
    for link in (*links.values(), document["predictions"][0]["image"]["picture"]):
        assert service.get(link).status_code == 404
    assert service.uploads_on_disk() == []


def test_a_card_for_people_and_figures_for_prometheus(service: Running, png: bytes) -> None:
    assert service.get("/v2/model").json()["bundle"].endswith("-fp32")
    markdown = service.get("/v2/model", Accept="text/markdown")
    assert markdown.headers["content-type"].startswith("text/markdown")
    service.post(("a.png", png))
    figures = service.get("/metrics").text
    assert 'groundglass_requests_total{method="POST",route="/v2/predictions",status="200"}' in figures
    assert "groundglass_predictions_total{label=" in figures


@pytest.mark.slow
@pytest.mark.parametrize("mode", list(GenerationMode), ids=lambda mode: mode.value)
def test_fuzzing_from_the_description(service: Running, mode: GenerationMode) -> None:
    """What fits the description, and what does not, is answered as it says and never by a 5xx."""
    description = schemathesis.openapi.from_url(f"{service.url}/openapi.json")
    operations = [found.ok() for found in description.get_all_operations()]
    assert {each.definition.raw["operationId"] for each in operations} == OPERATIONS
    assert all(each.definition.raw["description"] for each in operations)
    assert service.get("/v2/synthetic.zip").status_code == 200, "made once, and kept"
    asked = 0
    for operation in operations:

        @FEW
        @given(operation.as_strategy(mode))
        def check(case: schemathesis.Case) -> None:
            nonlocal asked
            asked += 1
            case.call_and_validate(checks=CHECKS)

        with suppress(Unsatisfiable):  # an address without parameters has nothing that does not fit
            check()
    assert asked > len(OPERATIONS)
    assert service.get("/healthz").status_code == 200
