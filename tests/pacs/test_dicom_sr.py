"""Reports and pictures as DICOM objects, read again with other people's tools."""

from __future__ import annotations

import shutil
import subprocess
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from pydicom import Dataset

from groundglass.pacs.report import (
    Algorithm,
    Capture,
    ClassifiedSlice,
    ImageReference,
    LeftOutSlice,
    SeriesReport,
    derived_uid,
    patient_and_study,
    secondary_capture,
    structured_report,
)

CT = "1.2.840.10008.5.1.4.1.1.2"
ENHANCED_CT = "1.2.840.10008.5.1.4.1.1.2.1"
ALGORITHM = Algorithm("1.2.3", "0123456789ab-int8", "0123456789ab" + "0" * 52, "tiny")
IMAGES = tuple(ImageReference(CT, f"1.2.3.{number}") for number in range(4))
REPORT = SeriesReport(
    series="1.2.3",
    report_series=derived_uid("1.2.3", "report"),
    classified=(
        ClassifiedSlice(IMAGES[0], 0.875, "COVID", ("COVID",)),
        ClassifiedSlice(IMAGES[1], 0.125, "NonCOVID", ("NonCOVID",), ("low-resolution",)),
    ),
    left_out=(
        LeftOutSlice(IMAGES[2], "refused", "blank: nearly all of it is one grey"),
        LeftOutSlice(IMAGES[3], "failed", "damaged"),
    ),
    images=IMAGES,
    series_score=0.5,
    slices_in_score=2,
    series_score_note="It is no diagnosis.",
)


def image(**values: Any) -> Dataset:
    dataset = Dataset()
    dataset.StudyInstanceUID = "1.2"
    dataset.PatientName, dataset.PatientID = "Doe^Jane", "4711"
    dataset.PatientSex, dataset.PatientBirthDate = "F", "19310719"
    dataset.StudyDate, dataset.StudyTime, dataset.StudyID = "20200102", "120000", "7"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for keyword, value in values.items():
            setattr(dataset, keyword, value)
    return dataset


def words(dataset: Dataset) -> str:
    """The report as a reader sees it."""
    found = []
    for item in dataset.ContentSequence:
        name = item.ConceptNameCodeSequence[0].CodeMeaning if "ConceptNameCodeSequence" in item else ""
        if "ConceptCodeSequence" in item:
            found.append(f"{name}={item.ConceptCodeSequence[0].CodeMeaning}")
        elif "MeasuredValueSequence" in item:
            found.append(f"{name}={item.MeasuredValueSequence[0].NumericValue}")
        elif "ReferencedSOPSequence" in item:
            found.append(f"{name}={item.ReferencedSOPSequence[0].ReferencedSOPInstanceUID}")
        else:
            found.append(f"{name}={item.get('TextValue', '')}")
        if "ContentSequence" in item:
            found.append(words(item))
    return "\n".join(found)


def complaints(dataset: Dataset, path: Path) -> list[str]:
    """What dciodvfy finds wrong; it knows no private coding scheme."""
    if shutil.which("dciodvfy") is None:
        pytest.skip("dciodvfy is not here: apt-get install dicom3tools")
    dataset.save_as(path, enforce_file_format=True)
    done = subprocess.run(["dciodvfy", str(path)], capture_output=True, text=True, timeout=120, check=False)
    lines = (done.stdout + done.stderr).splitlines()
    return [line for line in lines if "Error" in line or ("Warning" in line and "99GROUNDGLASS" not in line)]


def test_a_report_says_what_was_found_and_of_what() -> None:
    report = structured_report(REPORT, patient_and_study(image()), ALGORITHM)
    assert report.ContentTemplateSequence[0].TemplateIdentifier == "1500"
    told = words(report)
    first, second = told.partition("Tracking Identifier=Slice 1")[2].split("Tracking Identifier=Slice 2")
    assert "Finding=Pneumonia caused by SARS-CoV-2" in first
    assert "Probability of COVID-19 pneumonia, calibrated=0.875" in first
    assert "Source of Measurement=1.2.3.0" in first
    second = second.partition("Left out")[0]
    assert "Finding=Anything but COVID-19 pneumonia" in second
    assert "SARS" not in second
    assert "low-resolution" in second
    assert "Series score: mean of the highest probabilities=0.5" in told
    assert "It is no diagnosis." in told
    for line in ("Algorithm Name=groundglass", "Algorithm Version=1.2.3", f"bundle {ALGORITHM.bundle}"):
        assert line in told
    assert ALGORITHM.bundle_hash in told


def test_what_was_left_out_is_said_with_its_reason() -> None:
    left_out = words(structured_report(REPORT, patient_and_study(image()), ALGORITHM)).partition(
        "Left out 1"
    )[2]
    refused, failed = left_out.split("Left out 2")
    assert "Refused: no axial lung CT slice" in refused
    assert "blank: nearly all of it is one grey" in refused
    assert "1.2.3.2" in refused
    assert "Failed" in failed
    assert "1.2.3.3" in failed


def test_it_is_for_research_and_nobody_has_verified_it() -> None:
    report = structured_report(REPORT, patient_and_study(image()), ALGORITHM)
    assert "Research use only" in words(report)
    assert "Research use only" in report.SeriesDescription
    assert (report.PreliminaryFlag, report.VerificationFlag) == ("PRELIMINARY", "UNVERIFIED")


def test_where_nothing_was_judged_nothing_is_found() -> None:
    left_out = tuple(LeftOutSlice(each, "refused", "a coronal image") for each in IMAGES)
    nothing = replace(REPORT, classified=(), left_out=left_out, series_score=None, slices_in_score=0)
    told = words(structured_report(nothing, patient_and_study(image()), ALGORITHM))
    assert "Finding=" not in told
    assert "Probability" not in told
    assert "Series score" not in told
    assert "Slices refused=4" in told
    assert "No slice could be classified" in told


def test_frames_are_named_from_one() -> None:
    frame = ImageReference(ENHANCED_CT, "1.2.9", 4)
    one = replace(
        REPORT,
        classified=(ClassifiedSlice(frame, 0.5, "uncertain"),),
        left_out=(),
        images=(replace(frame, frame=None),),
    )
    report = structured_report(one, patient_and_study(image()), ALGORITHM)
    groups = report.ContentSequence[-2].ContentSequence
    references = [
        item.ReferencedSOPSequence[0] for item in groups[1].ContentSequence if item.ValueType == "IMAGE"
    ]
    assert [each.ReferencedFrameNumber for each in references] == [5]


def test_patient_and_study_are_those_of_the_images() -> None:
    header = patient_and_study(image(AccessionNumber="A1", PatientAge="088Y", StudyDescription="CT Thorax"))
    report = structured_report(REPORT, header, ALGORITHM)
    picture = secondary_capture(capture(), header, ALGORITHM)
    for made in (report, picture):
        assert (made.PatientName, made.PatientID, made.PatientSex) == ("Doe^Jane", "4711", "F")
        assert (made.PatientBirthDate, made.StudyDate, made.StudyTime) == ("19310719", "20200102", "120000")
        assert (made.StudyInstanceUID, made.AccessionNumber, made.PatientAge) == ("1.2", "A1", "088Y")
        assert made.StudyDescription == "CT Thorax"


@pytest.mark.parametrize(
    ("name", "charset"),
    [
        ("Müller^Jürgen", "ISO_IR 100"),
        ("Yamada^Tarou=山田^太郎=やまだ^たろう", ["", "ISO 2022 IR 87"]),
        ("Люкceмбypг", "ISO_IR 144"),
    ],
)
def test_names_survive_whatever_their_alphabet(name: str, charset: Any, tmp_path: Path) -> None:
    named = image(SpecificCharacterSet=charset, PatientName=name)
    header = patient_and_study(named)
    for number, made in enumerate(
        (structured_report(REPORT, header, ALGORITHM), secondary_capture(capture(), header, ALGORITHM))
    ):
        path = tmp_path / f"{number}.dcm"
        made.save_as(path, enforce_file_format=True)
        assert str(pydicom.dcmread(path).PatientName) == name


def test_a_damaged_header_costs_no_answer() -> None:
    header = patient_and_study(
        image(
            PatientBirthDate="last century",
            StudyTime="noon",
            PatientSex="female",
            PatientID="7" * 200,
            PatientName="Doe\nJane",
            AccessionNumber=None,
        )
    )
    report = structured_report(REPORT, header, ALGORITHM)
    assert not report.PatientBirthDate
    assert not report.StudyTime
    assert not report.PatientSex
    assert not report.PatientID


def test_dcmtk_reads_the_report(tmp_path: Path) -> None:
    if shutil.which("dsrdump") is None:
        pytest.skip("dsrdump is not here: apt-get install dcmtk")
    path = tmp_path / "report.dcm"
    structured_report(REPORT, patient_and_study(image()), ALGORITHM).save_as(path, enforce_file_format=True)
    done = subprocess.run(["dsrdump", str(path)], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert "Imaging Measurement Report" in done.stdout
    assert '(882784691000119100,SCT,"Pneumonia caused by SARS-CoV-2")' in done.stdout


def test_the_report_keeps_to_the_standard(tmp_path: Path) -> None:
    assert (
        complaints(structured_report(REPORT, patient_and_study(image()), ALGORITHM), tmp_path / "sr.dcm")
        == []
    )


def capture(side: int = 320) -> Capture:
    picture = np.random.default_rng(0).integers(0, 255, (side, 2 * side - 1, 3)).astype(np.uint8)
    return Capture(
        picture, IMAGES[0], derived_uid("1.2.3", "heat maps"), 1, "COVID, probability of COVID 0.88"
    )


def test_the_picture_keeps_to_the_standard(tmp_path: Path) -> None:
    assert (
        complaints(secondary_capture(capture(), patient_and_study(image()), ALGORITHM), tmp_path / "sc.dcm")
        == []
    )


def test_a_picture_shows_what_it_was_given_and_says_of_what() -> None:
    picture = np.full((320, 640, 3), (200, 90, 30), np.uint8)
    made = secondary_capture(replace(capture(), picture=picture), patient_and_study(image()), ALGORITHM)
    pixels = pydicom.pixels.pixel_array(made)
    assert np.abs(pixels[:310].astype(int) - (200, 90, 30)).max() <= 4, "colours survive the compression"
    assert pixels[320:].max() > 128, "there is a caption below"
    assert made.SourceImageSequence[0].ReferencedSOPInstanceUID == "1.2.3.0"
    assert "Research use only" in made.SeriesDescription


def test_the_same_question_gives_the_same_uids() -> None:
    header = patient_and_study(image())
    reports = [structured_report(REPORT, header, ALGORITHM) for _ in range(2)]
    assert reports[0].SOPInstanceUID == reports[1].SOPInstanceUID
    pictures = [secondary_capture(capture(), header, ALGORITHM) for _ in range(2)]
    assert pictures[0].SOPInstanceUID == pictures[1].SOPInstanceUID
    other = secondary_capture(replace(capture(), of=IMAGES[1]), header, ALGORITHM)
    assert other.SOPInstanceUID != pictures[0].SOPInstanceUID
    assert derived_uid("1", "23") != derived_uid("12", "3")
    assert len(derived_uid("1", "23")) <= 64
