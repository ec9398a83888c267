"""Reports and heat maps as DICOM objects, read again with other people's tools."""

import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pydicom
import pytest
from pydicom import Dataset
from tests.conftest import accepted_by_others

from groundglass import __version__
from groundglass.inference.bundle import Bundle
from groundglass.inference.calibration import Conformal
from groundglass.inference.dicom_seg import derived_uid, patient_and_study
from groundglass.inference.prediction import Prediction, Status
from groundglass.pacs.client import InstanceEntry
from groundglass.pacs.report import ReportedSlice, SeriesReport, secondary_capture, structured_report

pytestmark = pytest.mark.filterwarnings("ignore")  # what pydicom thinks of odd headers
CT, ENHANCED_CT = "1.2.840.10008.5.1.4.1.1.2", "1.2.840.10008.5.1.4.1.1.2.1"
BUNDLE, SHA, OK = "0123456789ab-int8", "0123456789ab" + "0" * 52, Status.OK
MODEL = cast("Bundle", SimpleNamespace(id=BUNDLE, info=SimpleNamespace(id=SHA, name="tiny")))
IMAGES = tuple(InstanceEntry(CT, f"1.2.3.{number}") for number in range(4))
PREDICTIONS = (
    Prediction(OK, "2", BUNDLE, None, 0.125, "NonCOVID", ("NonCOVID",), ("low-resolution",), position=9.0),
    Prediction(OK, "1", BUNDLE, None, 0.875, "COVID", ("COVID",), position=1.0),
    Prediction(Status.REFUSED, "3", BUNDLE, "blank: nearly all of it is one grey"),
    Prediction(Status.FAILED, "4", BUNDLE, "damaged"),
)
SLICES = tuple(map(ReportedSlice, IMAGES, PREDICTIONS))
REPORT = SeriesReport("1.2.3", derived_uid("1.2.3", "report"), IMAGES, SLICES)
YAMADA = "Yamada^Tarou=山\u3000田^太郎=やまだ^たろう"
ALPHABETS = {"Müller\xa0^Jürgen": "ISO_IR 100", YAMADA: ["", "ISO 2022 IR 87"], "Люкceмбypг": "ISO_IR 144"}
VALUES = {
    "ConceptCodeSequence": "CodeMeaning", "MeasuredValueSequence": "NumericValue",
    "ReferencedSOPSequence": "ReferencedSOPInstanceUID",
}  # fmt: skip


def image(**values: Any) -> Dataset:
    dataset = Dataset()
    known = {"StudyInstanceUID": "1.2", "PatientName": "Doe^Jane", "PatientID": "4711", "PatientSex": "F"}
    known |= {"PatientBirthDate": "19310719", "StudyDate": "20200102", "StudyTime": "120000", "StudyID": "7"}
    for keyword, value in {**known, **values}.items():
        setattr(dataset, keyword, value)
    return dataset


def report_of(report: SeriesReport = REPORT, *, source: Dataset | None = None) -> Dataset:
    return structured_report(report, patient_and_study(source or image()), MODEL)


def heat_map_of(each: ReportedSlice = SLICES[1], *, source: Dataset | None = None) -> Dataset:
    picture = np.full((320, 639, 3), (200, 90, 30), np.uint8)
    header, series = patient_and_study(source or image()), derived_uid("1.2.3", "heat maps")
    return secondary_capture(picture, each, header, MODEL, series=series, number=1)


def words(dataset: Dataset) -> str:
    """The report as a reader sees it."""
    found = []
    for item in dataset.ContentSequence:
        name = item.ConceptNameCodeSequence[0].CodeMeaning if "ConceptNameCodeSequence" in item else ""
        values = [item[sequence][0][keyword].value for sequence, keyword in VALUES.items() if sequence in item]
        found.append(f"{name}={values[0] if values else item.get('TextValue', '')}")
        if "ContentSequence" in item:
            found.append(words(item))
    return "\n".join(found)


def test_a_report_says_what_was_predicted_of_which_image() -> None:
    report = report_of()
    assert report.ContentTemplateSequence[0].TemplateIdentifier == "1500"
    assert (report.PreliminaryFlag, report.VerificationFlag) == ("PRELIMINARY", "UNVERIFIED")
    assert "Research use only" in report.SeriesDescription
    algorithm = (f"Algorithm Version={__version__}", f"bundle {BUNDLE}")
    probability = "Probability of COVID-19 pneumonia, calibrated=0.875"
    expected = [
        (*algorithm, SHA, "Series score: mean of the highest probabilities=0.5"),
        # Slices are in their order along the body.
        ("Finding=Pneumonia caused by SARS-CoV-2", probability, "Source of Measurement=1.2.3.1", *algorithm),
        ("Finding=Anything but COVID-19 pneumonia", "low-resolution"),
        ("Refused: no axial lung CT slice", "blank: nearly all", "1.2.3.2"),
        ("Failed", "1.2.3.3", "Research use only", "it is no diagnosis"),
    ]
    parts = re.split(r"Tracking Identifier=(?:Slice|Left out) \d", words(report))
    for part, lines in zip(parts, expected, strict=True):
        assert [line for line in lines if line not in part] == []
    assert "SARS" not in parts[2]
    assert "Finding=" not in parts[0]


@pytest.mark.parametrize(("quantile", "finding"), [(0.6, "Anything but COVID-19"), (0.4, "Uncertain")])
def test_the_label_of_the_series_is_its_finding(quantile: float, finding: str) -> None:
    rule = Conformal(coverage=0.9, quantiles={"COVID": 0.4, "NonCOVID": quantile})
    series = words(report_of(replace(REPORT, rule=rule))).split("Tracking Identifier=Slice 1")[0]
    assert f"Finding={finding}" in series, "the score is 0.5"
    assert "95 % interval over its slices 0.125 to 0.875" in series


def test_frames_are_numbered_from_one() -> None:
    volume = InstanceEntry(ENHANCED_CT, "1.2.9")
    frame = ReportedSlice(volume, Prediction(OK, "1", BUNDLE, None, 0.5, "uncertain", frame=4))
    groups = report_of(replace(REPORT, slices=(frame,), images=(volume,))).ContentSequence[-2].ContentSequence
    (reference,) = (item for item in groups[1].ContentSequence if item.ValueType == "IMAGE")
    assert reference.ReferencedSOPSequence[0].ReferencedFrameNumber == 5
    assert heat_map_of(frame).SourceImageSequence[0].ReferencedFrameNumber == 5


@pytest.mark.parametrize("made", [report_of, heat_map_of])
@pytest.mark.parametrize("name", ALPHABETS)
def test_the_patient_is_that_of_the_images(made: Any, name: str, tmp_path: Path) -> None:
    several = {"PatientID": r"12\34", "StudyDescription": ["a", "b"], "DeidentificationMethod": ["c" * 64, "d", "e"]}
    source = image(SpecificCharacterSet=ALPHABETS[name], PatientName=name, PatientAge="088Y", **several)
    made(source=source).save_as(tmp_path / "made.dcm", enforce_file_format=True)
    read = pydicom.dcmread(tmp_path / "made.dcm")
    del source.SpecificCharacterSet  # may be another one
    assert [read[element.keyword].value for element in source] == [each.value for each in source]


def test_a_damaged_header_costs_no_report() -> None:
    damaged = {"PatientBirthDate": "last century", "StudyTime": "noon", "PatientSex": "female"}
    damaged |= {"PatientID": "7" * 200, "PatientName": "Doe\nJane", "PatientAge": "45 years"}
    report = report_of(source=image(**damaged, AccessionNumber=None, ReferringPhysicianName=r"Roe\Poe"))
    assert not any(str(report.get(keyword, "")) for keyword in damaged)
    assert report.ReferringPhysicianName == "Roe Poe"
    assert report.SpecificCharacterSet == patient_and_study(image()).SpecificCharacterSet == "ISO_IR 192"


@pytest.mark.parametrize("made", [report_of, heat_map_of])
def test_other_peoples_tools_accept_it(made: Any, tmp_path: Path) -> None:
    told = accepted_by_others(made(), tmp_path)
    # It knows no private coding scheme.
    assert not [line for line in told.splitlines() if "Warning" in line and "99GROUNDGLASS" not in line]
    assert ('(882784691000119100,SCT,"Pneumonia caused by SARS-CoV-2")' in told) == (made is report_of)


def test_a_heat_map_shows_its_picture_and_names_its_image() -> None:
    made = heat_map_of()
    pixels = pydicom.pixels.pixel_array(made)
    assert np.abs(pixels[:310, :630].astype(int) - (200, 90, 30)).max() <= 4, "colours survive the compression"
    assert pixels[320:].max() > 128, "there is a caption below"
    assert made.SourceImageSequence[0].ReferencedSOPInstanceUID == "1.2.3.1"
    assert derived_uid("1", "23") != derived_uid("12", "3")
    assert len(derived_uid("1", "23")) <= 64
    assert "Research use only" in made.SeriesDescription
