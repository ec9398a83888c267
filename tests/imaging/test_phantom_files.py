from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pydicom
from pydicom.uid import UID, CTImageStorage

from groundglass.imaging.phantom import make_phantom, make_series, write_dicom, write_png
from groundglass.imaging.read import read_slice, read_slices


def test_png_holds_the_grey_values(tmp_path: Path) -> None:
    made = make_phantom(np.random.default_rng(0), size=128)
    write_png(made, tmp_path / "a.png")
    assert np.array_equal(cv2.imread(str(tmp_path / "a.png"), cv2.IMREAD_UNCHANGED), made.slice.pixels)
    assert np.array_equal(read_slice(tmp_path / "a.png").pixels, made.slice.pixels)


def test_dicom_reads_back_in_hounsfield_units_with_its_place(tmp_path: Path) -> None:
    made = make_phantom(np.random.default_rng(0), severity=0.5, size=128)
    write_dicom(made, tmp_path / "a.dcm")
    read = read_slice(tmp_path / "a.dcm")
    assert read.hounsfield is not None
    assert np.array_equal(read.hounsfield, made.hounsfield)
    assert read.origin.series == made.slice.origin.series
    assert made.slice.origin.position is not None
    assert read.origin.position is not None
    assert np.allclose(read.origin.position, made.slice.origin.position, atol=1e-5)


def test_dicom_is_a_complete_ct_image_of_nobody(tmp_path: Path) -> None:
    made = make_phantom(np.random.default_rng(0), size=128)
    write_dicom(made, tmp_path / "a.dcm")
    dataset = pydicom.dcmread(tmp_path / "a.dcm")
    assert dataset.SOPClassUID == dataset.file_meta.MediaStorageSOPClassUID == CTImageStorage
    assert dataset.SOPInstanceUID == dataset.file_meta.MediaStorageSOPInstanceUID
    uids = [
        dataset.SOPInstanceUID,
        dataset.SeriesInstanceUID,
        dataset.StudyInstanceUID,
        dataset.FrameOfReferenceUID,
    ]
    assert len(set(uids)) == 4
    assert all(UID(uid).is_valid for uid in uids)
    assert str(dataset.PatientName) == "PHANTOM"
    assert dataset.PatientIdentityRemoved == "YES"
    # Required in the CT image's modules (DICOM PS3.3 A.3): type 1 with a value, type 2 at least present.
    for keyword in (
        "Modality",
        "PixelSpacing",
        "RescaleSlope",
        "RescaleIntercept",
        "ImageType",
        "BitsStored",
    ):
        assert dataset[keyword].value not in (None, ""), keyword
    for keyword in (
        "StudyID",
        "ReferringPhysicianName",
        "PatientSex",
        "KVP",
        "AcquisitionNumber",
        "SliceThickness",
    ):
        assert keyword in dataset, keyword


def test_the_same_phantom_gives_the_same_file(tmp_path: Path) -> None:
    for name in ("a.dcm", "b.dcm"):
        write_dicom(make_phantom(np.random.default_rng(9), size=128), tmp_path / name)
    assert (tmp_path / "a.dcm").read_bytes() == (tmp_path / "b.dcm").read_bytes()


def test_a_series_of_files_is_sorted_by_place_whatever_the_names(tmp_path: Path) -> None:
    series = list(make_series(np.random.default_rng(2), count=4, size=128))
    for name, made in zip("cadb", series, strict=True):
        write_dicom(made, tmp_path / f"{name}.dcm")
    heights = [read.origin.position[2] for read in read_slices(tmp_path) if read.origin.position]
    assert len(heights) == 4
    assert heights in (sorted(heights), sorted(heights, reverse=True))
    files = [pydicom.dcmread(path) for path in tmp_path.iterdir()]
    assert len({dataset.SOPInstanceUID for dataset in files}) == 4
    assert len({dataset.SeriesInstanceUID for dataset in files}) == 1
