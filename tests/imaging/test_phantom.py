"""Phantoms: tissues and lungs as they should be, the truth about lesions, and files that readers take for CT."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pydicom
import pytest
from pydicom.uid import UID, CTImageStorage

from groundglass.imaging.phantom import Phantom, make_phantom, make_series, write_dicom
from groundglass.imaging.read import read_slice, read_slices


def phantom(seed: int = 0, severity: float = 0.0, level: float | None = 0.6, size: int = 256) -> Phantom:
    return make_phantom(np.random.default_rng(seed), severity=severity, level=level, size=size)


@pytest.mark.parametrize("level", [0.0, 0.2, 0.4, 0.6, 0.8, 1.0])
def test_tissues_have_their_hounsfield_units(level: float) -> None:
    for seed in range(4):
        made = phantom(seed, level=level)
        values = made.hounsfield
        assert values.dtype == np.float32
        assert values.shape == made.lungs.shape == made.slice.pixels.shape == (256, 256)
        assert -1024 <= values.min() < -900, "air around the body"
        assert values.max() > 300, "bone"
        assert -930 < np.median(values[made.lungs]) < -740, "aerated lung"
        assert ((values > 0) & (values < 100)).mean() > 0.05, "muscle and organs"
        left, right = made.lungs[:, :128].sum(), made.lungs[:, 128:].sum()
        assert 0.4 < left / right < 2.5, "a lung on each side of the middle"


def test_healthy_and_diseased_differ_in_the_lesions_alone() -> None:
    healthy, diseased = phantom(5), phantom(5, severity=0.6)
    assert not healthy.lesions.any()
    assert not (diseased.lesions & ~diseased.lungs).any(), "lesions only inside the lungs"
    change = np.abs(diseased.hounsfield - healthy.hounsfield)
    far = cv2.dilate(diseased.lungs.astype(np.uint8), np.ones((9, 9), np.uint8)) == 0
    assert change[far].max() < 30
    assert change[diseased.lesions].mean() > 100
    shares = [phantom(6, severity=severity).lesions.mean() for severity in (0.2, 0.5, 0.9)]
    assert 0 < shares[0] < shares[1] < shares[2]


@pytest.mark.parametrize(
    "wrong", [{"severity": -0.1}, {"severity": 1.1}, {"severity": 0, "level": 1.5}, {"size": 8}]
)
def test_values_out_of_range_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=r"0\.\.1"):
        phantom(**wrong)


def test_a_series_is_one_patient_from_apex_to_base_in_files_of_any_name(tmp_path: Path) -> None:
    series = list(make_series(np.random.default_rng(1), count=4, severity=0.4, size=128))
    assert [made.instance for made in series] == [1, 2, 3, 4]
    assert len({(made.patient_id, made.slice.origin.series) for made in series}) == 1
    heights = [made.slice.origin.position[2] for made in series]
    steps = np.diff(heights)
    assert steps == pytest.approx([steps[0]] * 3)
    assert steps[0] < 0, "towards the feet"
    for name, made in zip("cadb", series, strict=True):
        write_dicom(made, tmp_path / f"{name}.dcm")
    read = [piece.origin.position[2] for piece in read_slices(tmp_path)]
    assert read == pytest.approx(heights[::-1], abs=1e-5)


def test_dicom_is_a_complete_ct_image_of_nobody_in_hounsfield_units(tmp_path: Path) -> None:
    made = phantom(severity=0.5, size=128)
    for name in ("a.dcm", "b.dcm"):
        write_dicom(made, tmp_path / name)
    assert (tmp_path / "a.dcm").read_bytes() == (tmp_path / "b.dcm").read_bytes()
    read = read_slice(tmp_path / "a.dcm")
    np.testing.assert_array_equal(read.hounsfield, made.hounsfield)
    assert read.origin.series == made.slice.origin.series
    assert read.origin.position == pytest.approx(made.slice.origin.position, abs=1e-5)
    dataset = pydicom.dcmread(tmp_path / "a.dcm")
    assert dataset.SOPClassUID == dataset.file_meta.MediaStorageSOPClassUID == CTImageStorage
    assert dataset.SOPInstanceUID == dataset.file_meta.MediaStorageSOPInstanceUID
    kinds = ("SOPInstance", "SeriesInstance", "StudyInstance", "FrameOfReference")
    assert len({uid for kind in kinds if UID(uid := dataset[f"{kind}UID"].value).is_valid}) == 4
    assert (str(dataset.PatientName), dataset.PatientIdentityRemoved) == ("PHANTOM", "YES")
    # Required in the CT image's modules (DICOM PS3.3 A.3): type 1 with a value, type 2 at least present.
    valued = "Modality PixelSpacing RescaleSlope RescaleIntercept ImageType BitsStored"
    assert all(dataset[keyword].value not in (None, "") for keyword in valued.split())
    present = """StudyID StudyDate StudyTime AccessionNumber ReferringPhysicianName PatientSex PatientBirthDate
                 SeriesNumber PositionReferenceIndicator KVP AcquisitionNumber SliceThickness PatientPosition
                 InstanceNumber"""
    assert [keyword for keyword in present.split() if keyword not in dataset] == []
