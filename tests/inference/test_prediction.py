"""A prediction survives being written down, and says who is on a slice only where that was asked for."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import jsonschema
import numpy as np
import pytest
from tests.conftest import change_dicom

from groundglass.imaging.crop import CroppedSlice
from groundglass.imaging.phantom import make_phantom, write_dicom
from groundglass.imaging.slice import Patient
from groundglass.inference.classifier import Classifier
from groundglass.inference.prediction import (
    COLUMNS,
    IDENTIFIERS,
    Prediction,
    Status,
    in_slice,
    lesion_mask,
    row_schema,
)

PREDICTION = Prediction(
    Status.OK, "a.zip!b/ä.dcm", "abc-fp32", None, 0.25, "NonCOVID", ("NonCOVID",), ("one-lung-found",),
    frame=3, series="1.2.3", position=-12.5,
)  # fmt: skip


@pytest.fixture
def named(tmp_path: Path) -> Path:
    """A DICOM phantom of somebody."""
    path = tmp_path / "named.dcm"
    write_dicom(make_phantom(np.random.default_rng(3), 0.2, 0.5, size=128), path)
    change_dicom(path, PatientName="Doe^Jane", PatientID="MRN-77", PatientBirthDate="19500102")
    return path


@pytest.mark.parametrize(
    "prediction",
    [
        PREDICTION,
        Prediction(Status.FAILED, "x", "b", reason="the file is empty"),
        replace(PREDICTION, patient=Patient("Doe^Jane", None, "19500102")),
    ],
)
def test_a_row_gives_the_prediction_back(prediction: Prediction) -> None:
    row = json.loads(json.dumps(prediction.to_dict()))
    assert tuple(row) == COLUMNS + (IDENTIFIERS if prediction.patient else ())
    assert Prediction.from_dict(row) == prediction
    assert "Jane" not in repr(prediction)


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("file", None), ("status", "fine"), ("probability", "0.5"), ("frame", True), ("flags", "none"),
        ("label", 3), ("position", []),
    ],
)  # fmt: skip
def test_a_row_that_cannot_be_a_prediction_is_refused(column: str, value: object) -> None:
    with pytest.raises(ValueError, match=column if column != "status" else "fine"):
        Prediction.from_dict({**PREDICTION.to_dict(), column: value})
    with pytest.raises(ValueError, match="bundle"):
        Prediction.from_dict({name: each for name, each in PREDICTION.to_dict().items() if name != "bundle"})


def test_a_refused_slice_can_be_shown(classifier: Classifier, named: Path) -> None:
    change_dicom(named, ImageOrientationPatient=[1, 0, 0, 0, 0, -1])
    prediction = classifier.predict(named)
    assert prediction.status is Status.REFUSED
    assert prediction.evidence.lesion_map is None
    assert prediction.evidence.slice.pixels.shape == (128, 128)
    assert classifier.predict(named, evidence=False).evidence is None


def test_a_lesion_map_lies_where_the_crop_lay_and_lesions_inside_the_lungs() -> None:
    lungs = np.zeros((10, 16), bool)
    lungs[2:8, 4:12] = True
    # The crop reaches two rows beyond the slice above and below; the lesion is its right half.
    cropped = CroppedSlice(
        np.zeros((4, 4), np.uint8), (1, -2, 15, 12), lungs, True, np.zeros((4, 4), np.uint8)
    )
    lesion_map = np.array([[-3, -3, 3, 3]] * 4, np.float32)
    placed = in_slice(lesion_map, cropped)
    assert np.isneginf(placed[:, [0, 15]]).all()
    np.testing.assert_array_equal(
        placed > 0, np.broadcast_to((np.arange(16) >= 8) & (np.arange(16) < 15), (10, 16))
    )
    np.testing.assert_array_equal(lesion_mask(lesion_map, cropped), lungs & (np.arange(16) >= 8))


def test_the_schema_is_published_and_holds_of_rows() -> None:
    published = Path(__file__).parents[2] / "docs" / "prediction.schema.json"
    assert json.loads(published.read_text(encoding="utf-8")) == row_schema(), "write row_schema() there again"
    check = jsonschema.Draft202012Validator(row_schema())
    made = Prediction(
        Status.OK, "a", "b", None, 0.5, "uncertain", ("COVID", "NonCOVID"), ("one-lung-found",), 3, "1.2"
    )
    named = replace(made, patient=Patient("Doe^Jane", None, None))
    for prediction in (made, named, Prediction(Status.FAILED, "a", "b", "damaged")):
        check.validate(prediction.to_dict())
    for wrong in ({"probability": 1.5}, {"frame": 0.5}, {"status": "fine"}, {"label": "ill"}, {"more": 1}):
        assert not check.is_valid(made.to_dict() | wrong)
