"""What is said over HTTP is what ``groundglass predict`` says, and what hangs on it can be fetched."""

from __future__ import annotations

import csv
import io
import json
import subprocess
import sys
import zipfile
from pathlib import Path
from xml.etree import ElementTree as ET

import cv2
import nibabel as nib
import numpy as np
import pydicom
import pytest
from numpy.typing import NDArray
from tests.imaging.conftest import CHEST, write_ct
from tests.serving.conftest import PATIENCE, Running, is_problem, picture

from groundglass.imaging.phantom import make_series
from groundglass.imaging.phantom import write_dicom as write_phantom

# Larger, with noise as of a scanner: a picture of few grey values is refused.
_NOISE = np.random.default_rng(0).integers(-100, 100, CHEST.shape).astype(np.int16)
LARGE = np.kron(CHEST + _NOISE, np.ones((2, 2), np.int16))
Uploads = list[tuple[str, bytes]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one file of each kind, some of them bad."""
    folder = tmp_path_factory.mktemp("files")
    (folder / "a.png").write_bytes(picture(1))
    (folder / "sub").mkdir()
    pixels = cv2.imdecode(np.frombuffer(picture(2), np.uint8), cv2.IMREAD_GRAYSCALE)
    (folder / "sub" / "b ü.jpg").write_bytes(bytes(cv2.imencode(".jpg", pixels)[1]))
    write_ct(folder / "c.dcm", LARGE)
    planes = np.stack([LARGE[::-1, ::-1].T - index for index in range(5)], axis=-1)
    nib.Nifti1Image(planes.astype(np.int16), np.eye(4)).to_filename(folder / "d.nii.gz")
    with zipfile.ZipFile(folder / "e.zip", "w") as archive:
        archive.writestr("inner/2.png", picture(3))
        archive.writestr("inner/10.png", picture(4))
        archive.writestr("inner/bad.png", picture(4)[:100])
    (folder / "f.dcm").write_bytes((folder / "c.dcm").read_bytes()[:2000])
    return folder


@pytest.fixture(scope="module")
def uploads(folder: Path) -> Uploads:
    found = sorted(path for path in folder.rglob("*") if path.is_file())
    return [(path.relative_to(folder).as_posix(), path.read_bytes()) for path in found]


@pytest.fixture(scope="module")
def predicted(folder: Path, uploads: Uploads, tiny_bundle: Path) -> list[str]:
    """What ``groundglass predict --json`` prints."""
    options = ["predict", "--json", "--bundle", str(tiny_bundle), *(name for name, _ in uploads)]
    command = [sys.executable, "-m", "groundglass.cli.main", *options]
    done = subprocess.run(command, cwd=folder, capture_output=True, timeout=PATIENCE, check=False)
    assert done.returncode == 3, done.stderr
    return done.stdout.decode().splitlines()


def test_predictions_are_those_of_predict(service: Running, uploads: Uploads, predicted: list[str]) -> None:
    document = service.post(*uploads).json()
    rows = document["predictions"]
    assert rows == [json.loads(line) for line in predicted]
    assert {row["status"] for row in rows} == {"ok", "failed"}
    assert document["counts"]["total"] == len(rows)
    assert [len(series["predictions"]) for series in document["series"]] == [1, 5]
    assert service.lines(*uploads) == (predicted, False), "byte for byte"
    # A small file alone is classified from memory, and unlike archives and files with company never written.
    alone = [row for upload in uploads for row in service.rows(upload)]
    assert alone == rows


def test_a_manifest_reads_no_file_of_the_server(service: Running, png: bytes) -> None:
    manifest = ("g.csv", b"path,label\n/etc/passwd,COVID\na.png,COVID\n")
    rows = service.rows(("a.png", png), manifest)
    assert [row["status"] for row in rows] == ["ok", "failed"]
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
    lines, _ = service.lines(("a.dcm", content), ("copy.dcm", content))
    assert [json.loads(line)["status"] for line in lines] == ["ok", "refused"]


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
    assert {child.attrib["class"] for child in outline} == {"lungs", "lesions", "crop"}
    grey = service.post(("a.png", png), keep="true").json()["predictions"][0]["image"]
    assert grey["hounsfield"] is None
    assert service.get(grey["picture"].replace("picture.png", "hounsfield.raw")).status_code == 404


def test_planes_cross_the_slices_of_a_complete_series(service: Running, tmp_path: Path) -> None:
    phantoms = list(make_series(np.random.default_rng(1), 9, 0.5, size=96))
    for phantom in phantoms:
        write_phantom(phantom, tmp_path / f"{phantom.instance}.dcm")
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
        outline = ET.fromstring(service.get(f"{base}/series/0/{plane}/outline.svg").text)  # noqa: S314 - our own
        assert outline.attrib["viewBox"] == "0 0 96 9"
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
    assert [row["status"] for row in table] == ["ok", "failed"]
    lines = [json.loads(line) for line in service.get(links["jsonl"]).text.splitlines()]
    assert [line["file"] for line in lines] == ["a.png", "bad.png"]
    packed = service.get(links["report"])
    assert "attachment" in packed.headers["content-disposition"]
    with zipfile.ZipFile(io.BytesIO(packed.content)) as archive:
        assert sum(name.startswith("report/overlays/") for name in archive.namelist()) == 1
        assert "a.png" in archive.read("report/report.html").decode()
    assert service.ask("DELETE", links["self"]).status_code == 204
    for link in (*links.values(), document["predictions"][0]["image"]["picture"]):
        assert service.get(link).status_code == 404
    assert service.uploads_on_disk() == []


def test_model_card_health_and_figures(service: Running, png: bytes) -> None:
    card = service.get("/v2/model").json()
    assert card["name"] == "tiny"
    assert card["bundle"].endswith("-fp32")
    markdown = service.get("/v2/model", Accept="text/markdown")
    assert markdown.headers["content-type"].startswith("text/markdown")
    assert service.get("/healthz").json() == service.get("/readyz").json() == {"status": "ok"}
    service.post(("a.png", png))
    figures = service.get("/metrics").text
    assert 'groundglass_requests_total{method="POST",route="/v2/predictions",status="200"}' in figures
    assert "groundglass_predictions_total{label=" in figures
    assert service.gauge("uploads_in_flight") == 0
