"""A finding survives being written down, and says who is on a slice only where that was asked for."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pydicom
import pytest
from PIL import Image

from groundglass.imaging.phantom import make_phantom
from groundglass.imaging.phantom_files import write_dicom
from groundglass.imaging.slice import Patient
from groundglass.inference.bundle import Bundle
from groundglass.inference.classifier import Classifier
from groundglass.inference.finding import COLUMNS, IDENTIFIERS, Finding, Status

FINDING = Finding(
    Status.OK, "a.zip!b/ä.dcm", "abc-fp32", None, 0.25, "NonCOVID", ("NonCOVID",), ("lungs-not-found",),
    frame=3, series="1.2.3", position=-12.5,
)  # fmt: skip


@pytest.fixture
def named(tmp_path: Path) -> Path:
    """A DICOM phantom of somebody."""
    path = tmp_path / "named.dcm"
    write_dicom(make_phantom(np.random.default_rng(3), 0.2, 0.5, size=128), path)
    dataset = pydicom.dcmread(path)
    dataset.PatientName, dataset.PatientID, dataset.PatientBirthDate = "Doe^Jane", "MRN-77", "19500102"
    dataset.save_as(path)
    return path


@pytest.mark.parametrize(
    "finding",
    [
        FINDING,
        Finding(Status.FAILED, "x", "b", reason="the file is empty"),
        replace(FINDING, patient=Patient("Doe^Jane", None, "19500102")),
    ],
)
def test_a_row_gives_the_finding_back(finding: Finding) -> None:
    row = json.loads(json.dumps(finding.as_row()))
    assert tuple(row) == COLUMNS + (IDENTIFIERS if finding.patient else ())
    assert Finding.from_row(row) == finding


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("file", None), ("status", "fine"), ("probability", "0.5"), ("frame", True), ("flags", "none"),
        ("label", 3), ("position", []),
    ],
)  # fmt: skip
def test_a_row_that_cannot_be_a_finding_is_refused(column: str, value: object) -> None:
    with pytest.raises(ValueError, match=column if column != "status" else "fine"):
        Finding.from_row({**FINDING.as_row(), column: value})
    with pytest.raises(ValueError, match="bundle"):
        Finding.from_row({name: each for name, each in FINDING.as_row().items() if name != "bundle"})


def test_identifiers_are_kept_only_where_asked_for(tiny_bundle: Path, named: Path, tmp_path: Path) -> None:
    bundle = Bundle.open(tiny_bundle)
    finding = Classifier(bundle, 1).predict(named)
    assert finding.patient is None
    assert not set(finding.as_row()) & set(IDENTIFIERS)

    keeping = Classifier(bundle, 1, keep_identifiers=True)
    finding = keeping.predict(named)
    assert finding.patient == Patient("Doe^Jane", "MRN-77", "19500102")
    assert "Jane" not in repr(finding)
    (tmp_path / "broken.png").write_bytes(b"broken")
    assert next(keeping.predict_all([tmp_path / "broken.png"])).as_row()["patient_name"] is None


def test_a_refused_slice_can_be_shown(tiny_bundle: Path, tmp_path: Path, named: Path) -> None:
    dataset = pydicom.dcmread(named)
    dataset.ImageOrientationPatient = [1, 0, 0, 0, 0, -1]
    dataset.save_as(named)
    Image.fromarray(np.zeros((64, 64), np.uint8)).save(tmp_path / "0.png")
    classifier = Classifier(Bundle.open(tiny_bundle), 1)
    findings = classifier.predict_all([named], evidence=True)
    finding = next(findings)
    assert finding.status is Status.REFUSED
    assert finding.evidence is not None
    assert finding.evidence.activation_map is None
    assert finding.evidence.slice.pixels.shape == (128, 128)
    assert classifier.predict(named).evidence is None


def test_files_that_are_done_are_not_read(tiny_bundle: Path, named: Path) -> None:
    named.write_bytes(b"damaged since")
    classifier = Classifier(Bundle.open(tiny_bundle), 1)
    folder = named.parent
    assert [finding.status for finding in classifier.predict_all([folder])] == [Status.FAILED]
    assert list(classifier.predict_all([folder], skip_file=lambda name: name == str(named))) == []
