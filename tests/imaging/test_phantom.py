"""Phantoms, painted lesions and mimics: what they are called, where they say, the same for the same seed."""

from pathlib import Path

import cv2
import numpy as np
import pydicom
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes
from pydicom.uid import UID, CTImageStorage

from groundglass.imaging.lesions import Kind, Mimic, Painted, paint_lesion, paint_mimic
from groundglass.imaging.phantom import Phantom, make_phantom, write_dicom
from groundglass.imaging.read import read_slice

equal = np.testing.assert_array_equal
SEEDS, SEED = range(8), st.integers(0, 999)
SOLID = (Mimic.NODULE, Mimic.MASS, Mimic.LOBAR_CONSOLIDATION, Mimic.EFFUSION)


def phantom(seed: int = 0, severity: float = 0.0, level: float | None = 0.6, size: int = 256) -> Phantom:
    return make_phantom(np.random.default_rng(seed), severity=severity, level=level, size=size)


PIXELS, LUNGS = phantom(5, level=0.5).slice.pixels, phantom(5, level=0.5).lungs
NEAR = cv2.dilate(LUNGS.astype(np.uint8), np.ones((9, 9), np.uint8)) > 0


def paint(what: Kind | Mimic, seed: int, severity: float = 0.5, pixels=PIXELS, lungs=LUNGS) -> Painted:
    rng = np.random.default_rng(seed)
    if isinstance(what, Kind):
        return paint_lesion(pixels, lungs, what, severity, rng)
    return paint_mimic(pixels, lungs, what, rng)


def rise(painted: Painted) -> np.ndarray:
    return painted.pixels.astype(int) - PIXELS


@pytest.mark.parametrize("level", [0.0, 0.2, 0.4, 0.6, 0.8, 1.0])
def test_tissues_have_their_hounsfield_units(level: float) -> None:
    for seed in range(4):
        made = phantom(seed, level=level)
        values = made.hounsfield
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


@pytest.mark.parametrize("wrong", [{"severity": -0.1}, {"severity": 1.1}, {"level": 1.5}, {"size": 8}])
def test_values_out_of_range_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=r"0\.\.1"):
        phantom(**wrong)


def test_dicom_is_a_complete_ct_image_of_nobody_in_hounsfield_units(tmp_path: Path) -> None:
    made = phantom(severity=0.5, size=128)
    for name in ("a.dcm", "b.dcm"):
        write_dicom(made, tmp_path / name)
    assert (tmp_path / "a.dcm").read_bytes() == (tmp_path / "b.dcm").read_bytes()
    read = read_slice(tmp_path / "a.dcm")
    equal(read.hounsfield, made.hounsfield)
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
    present = """StudyID StudyDate StudyTime AccessionNumber ReferringPhysicianName PatientSex PatientBirthDate KVP
        SeriesNumber PositionReferenceIndicator AcquisitionNumber SliceThickness PatientPosition InstanceNumber"""
    assert [keyword for keyword in present.split() if keyword not in dataset] == []


@pytest.mark.parametrize("what", [*Kind, *Mimic])
def test_paint_stays_in_and_about_the_lungs_and_follows_from_the_seed(what: Kind | Mimic) -> None:
    for seed in SEEDS:
        painted = paint(what, seed)
        assert painted.mask.any()
        assert not (painted.mask & ~NEAR).any()
        equal(painted.pixels[~NEAR], PIXELS[~NEAR])
        equal(painted.pixels, paint(what, seed).pixels)
        assert (painted.pixels != paint(what, seed + 100).pixels).any()
    if what in {*Kind, *SOLID}:
        painted = paint(what, 1)
        assert rise(painted)[painted.mask & LUNGS].mean() > 10, "the mask is where grey rose"
        assert rise(painted)[~painted.mask].mean() < 3


def test_severity_sets_extent_and_zero_leaves_the_slice() -> None:
    painted = [[paint(Kind.GROUND_GLASS, seed, extent) for seed in SEEDS] for extent in (0.0, 0.1, 0.4, 0.9)]
    shares = [np.mean([each.mask.sum() / LUNGS.sum() for each in equally]) for equally in painted]
    assert shares == sorted(shares)
    assert (shares[0] == 0, shares[1] < 0.2, shares[3] > 0.35) == (True, True, True)


def test_signs_of_other_diseases_look_like_themselves() -> None:
    depth = cv2.distanceTransform(LUNGS.astype(np.uint8), cv2.DIST_L2, 3)
    signs = {mimic: [paint(mimic, seed) for seed in SEEDS] for mimic in Mimic}
    for comb in signs[Mimic.HONEYCOMBING]:
        change = rise(comb)[comb.mask & LUNGS]
        assert (change > 20).mean() > 0.05, "walls"
        assert (change < 0).mean() > 0.05, "holes"
        assert depth[comb.mask & LUNGS].mean() < depth[LUNGS].mean(), "below the pleura"
    assert all(rise(each)[each.mask].mean() < -5 for each in signs[Mimic.EMPHYSEMA])
    assert rise(signs[Mimic.EMPHYSEMA][1]).max() <= 1, "nothing is brighter"
    for fluid in signs[Mimic.EFFUSION]:
        assert np.argwhere(fluid.mask)[:, 0].mean() > np.argwhere(LUNGS)[:, 0].mean() + 10, "at the back"


@given(array_shapes(min_dims=2, max_dims=2, max_side=60), st.floats(0, 1), st.sampled_from([*Kind, *Mimic]), SEED)
@settings(max_examples=100, deadline=None)
def test_any_picture_can_be_painted(shape: tuple[int, int], severity: float, what: Kind | Mimic, seed: int) -> None:
    rng = np.random.default_rng(seed)
    pixels, lungs = rng.integers(0, 256, shape, np.uint8), rng.random(shape) < 0.5
    painted = paint(what, seed, severity, pixels, lungs)
    assert painted.pixels.shape == painted.mask.shape == pixels.shape
    painted = paint(what, seed, severity, pixels, np.zeros_like(lungs))
    equal(painted.pixels, pixels, "without lungs nothing is painted")
    assert not painted.mask.any()
