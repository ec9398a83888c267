"""Public collections in the layouts of their authors, as tiny trees: labels, slices, masks, and nothing half-written."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import get_args

import nibabel as nib
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from pydicom import dcmread
from tests.conftest import change_dicom
from typer.testing import CliRunner

from groundglass.cli.data import PublicCollection, app
from groundglass.data.collections import COLLECTIONS, import_collection
from groundglass.data.manifest import Label, Record, read_manifest, read_mask, read_pixels
from groundglass.errors import DataError, ImageError
from groundglass.imaging.phantom import make_phantom, make_series, write_dicom
from groundglass.imaging.window import LUNG

Bring = Callable[..., list[Record]]


def volume(depth: int) -> NDArray[np.int16]:
    """Voxels (I, J, K); each axial plane has a value of its own, so that it can be told apart."""
    planes = -1000 + 20 * np.arange(depth, dtype=np.int16)
    return np.broadcast_to(planes, (12, 10, depth)).copy()


def plane(record: Record) -> int:
    """Which plane of `volume` a slice is."""
    greys = LUNG.apply(-1000 + 20 * np.arange(60, dtype=np.float32))
    return int(np.flatnonzero(greys == read_pixels(record)[0, 0])[0])


def mask(depth: int, planes: Sequence[int], value: int = 1) -> NDArray[np.uint8]:
    """Voxels with a mark in the corner that is the patient's right, behind, of some planes."""
    voxels = np.zeros((12, 10, depth), np.uint8)
    voxels[8:, :4, list(planes)] = value
    return voxels


def nifti(path: Path, voxels: NDArray[np.generic], shift: float = 0.0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    affine = np.diag([1.0, 1.0, 5.0, 1.0])
    affine[0, 3] = shift
    nib.save(nib.Nifti1Image(voxels, affine), path)


def picture(path: Path, pixels: NDArray[np.uint8] | None = None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((8, 8), 90, np.uint8) if pixels is None else pixels).save(path)


def series(folder: Path, count: int, seed: int = 0) -> list[bytes]:
    """Write a DICOM series, its files named in an order of their own; its slices' pixels from head to feet."""
    rng = np.random.default_rng(seed)
    phantoms = list(make_series(rng, count, size=64))
    for name, phantom in zip(rng.permutation(count), phantoms, strict=True):
        file = folder / f"IM{name:04d}.dcm"
        write_dicom(phantom, file)
        change_dicom(file, SliceLocation=phantom.slice.origin.position[2])
    return [LUNG.apply(phantom.hounsfield).tobytes() for phantom in phantoms]


def indices(records: Sequence[Record], order: list[bytes]) -> list[int]:
    return [order.index(read_pixels(record).tobytes()) for record in records]


@pytest.fixture
def bring(tmp_path: Path) -> Bring:
    """Import what lies in ``tmp_path / "tree"`` without an error; every record as its manifest has it."""

    def run(name: str, every: int | None = None) -> list[Record]:
        output = tmp_path / "pool" / f"{name}.csv"
        failed: list[ImageError] = []
        imported = import_collection(name, tmp_path / "tree", output, every, failed.append)
        records = read_manifest(output).records
        assert (len(records), failed) == (len(imported), [])
        for record in records:
            assert record.source == name
            for each in filter(None, (record.lung_mask, record.lesion_mask)):
                read_mask(each, read_pixels(record).shape)
        return list(records)

    return run


def test_mosmeddata(tmp_path: Path, bring: Bring) -> None:
    for study, depth in (("CT-0/study_0001", 40), ("CT-1/study_0255", 40), ("CT-3/study_1000", 50)):
        nifti(tmp_path / "tree" / "studies" / f"{study}.nii.gz", volume(depth))
    nifti(tmp_path / "tree" / "masks" / "study_0255_mask.nii.gz", mask(40, [3, 4]))
    records = bring("mosmeddata")
    studies = ("study_0001", "study_0255", "study_1000")
    healthy, masked, ill = ([each for each in records if each.patient_id == name] for name in studies)
    assert {(record.label, record.grade) for record in healthy} == {(Label.NON_COVID, "CT-0")}
    assert {(record.label, record.grade) for record in ill} == {(Label.COVID, "CT-3")}
    assert [plane(record) for record in healthy] == list(range(10, 30)), "the middle half"
    assert len(ill) == 13
    assert [plane(record) for record in masked] == [3, 4], "slices with lesions alone"
    lesion_mask = masked[0].lesion_mask or Path()
    assert Image.open(lesion_mask).mode == "1"
    lesion = read_mask(lesion_mask, (10, 12))
    assert lesion[6:, :4].all(), "the patient's right is at the left, the back below"
    assert lesion.sum() == 16


def test_zenodo_3757476(tmp_path: Path, bring: Bring) -> None:
    """Slices with lung where it is known; of the third case's masks the lungs lie elsewhere: it is left out."""
    tree, other = tmp_path / "tree", "radiopaedia_org_covid-19-pneumonia-14_85914_0-dcm.nii"
    for name, mask_name, depth, lungs, lesions in (
        ("coronacases_001.nii.gz", "coronacases_001.nii.gz", 50, range(5, 45), [10, 11]),
        (other, "radiopaedia_14_85914_0.nii", 10, [2], [2]),
    ):
        nifti(tree / "COVID-19-CT-Seg_20cases" / name, volume(depth))
        nifti(tree / "Lung_Mask" / mask_name, mask(depth, lungs, 2))
        nifti(tree / "Infection_Mask" / mask_name, mask(depth, lesions))
    records = bring("zenodo-3757476", every=4)
    assert [plane(record) for record in records] == [*range(7, 45, 4), 2]
    assert {(record.patient_id, record.label) for record in records} == {
        ("001", Label.COVID),
        ("14_85914_0", Label.COVID),
    }
    lesions = [read_mask(record.lesion_mask, (10, 12)).any() for record in records if record.lesion_mask]
    assert lesions == [False, True, *[False] * 8, True]
    nifti(tree / "COVID-19-CT-Seg_20cases" / "coronacases_002.nii.gz", volume(10))
    nifti(tree / "Lung_Mask" / "coronacases_002.nii.gz", mask(10, range(10)), 40.0)
    failed: list[ImageError] = []
    imported = import_collection("zenodo-3757476", tree, tmp_path / "out.csv", on_error=failed.append)
    assert "002" not in {record.patient_id for record in imported}
    (error,) = failed
    assert error.path.endswith("Lung_Mask/coronacases_002.nii.gz")
    assert "does not lie where" in error.reason


def test_luna16(tmp_path: Path, bring: Bring) -> None:
    sitk = pytest.importorskip("SimpleITK")
    lungs = mask(10, [4, 5], 3) + mask(10, [8], 5)
    for folder, voxels in (("subset0", volume(10)), ("seg-lungs-LUNA16", lungs)):
        (tmp_path / "tree" / folder).mkdir(parents=True)
        sitk.WriteImage(sitk.GetImageFromArray(voxels.T), str(tmp_path / "tree" / folder / "1.3.6.1.mhd"))
    records = bring("luna16")
    assert [plane(record) for record in records] == [4, 5], "the trachea, 5, is no lung"
    assert {(record.label, record.patient_id) for record in records} == {(Label.NON_COVID, "1.3.6.1")}


def test_finding_lungs_and_iq_oth_nccd(tmp_path: Path, bring: Bring) -> None:
    """Pictures stay where they are."""
    lungs = np.zeros((8, 8), np.uint8)
    lungs[2:4] = 255
    slice_file, mask_file = (
        tmp_path / "tree" / f"2d_{kind}" / "ID_0007_Z_0142.tif" for kind in ("images", "masks")
    )
    picture(slice_file)
    picture(mask_file, lungs)
    (record,) = bring("finding-lungs")
    assert record == Record(slice_file, Label.NON_COVID, "ID_0007", "finding-lungs", None, mask_file)
    np.testing.assert_array_equal(read_mask(mask_file, (8, 8)), lungs > 0)
    for kind in ("Bengin", "Malignant", "Normal", "Test"):
        picture(tmp_path / "tree" / f"{kind} cases" / f"{kind} case (1).jpg")
    records = [(record.grade, record.label, record.patient_known) for record in bring("iq-oth-nccd")]
    assert records == [(grade, Label.NON_COVID, False) for grade in ("benign", "malignant", "normal")]


@pytest.mark.parametrize("indexed", [True, False])
def test_covid_ct_md(tmp_path: Path, bring: Bring, indexed: bool) -> None:
    """Rows are in the order of the index, columns from head to feet."""
    tree = tmp_path / "tree"
    order = series(tree / "COVID-19 Cases" / "P002", 6, seed=1)
    for number, case in enumerate(("COVID-19 Cases/P010", "Cap Cases/cap001", "Normal Cases/normal001")):
        series(tree / case, 6, seed=number + 2)
    labels = np.zeros((3, 8))
    labels[0, [0, 1, 4]] = labels[2, 5] = 1
    if indexed:
        rows = ["P002,0,COVID-19", "cap001,44,CAP", "P010,42,COVID-19"]
        (tree / "Index.csv").write_text("\n".join(["Folder/ID,Label Index,Diagnosis", *rows]))
    np.save(tree / "Slice-level-labels.npy", labels)
    records = bring("covid-ct-md")
    ours = [record for record in records if record.patient_id == "P002"]
    assert indices(ours, order) == [0, 1, 4]
    counts = {name: sum(r.patient_id == name for r in records) for name in ("P010", "cap001", "normal001")}
    assert counts == {"P010": 0, "cap001": 1, "normal001": 4}
    assert all((record.label is Label.COVID) is record.patient_id.startswith("P") for record in records)


@pytest.mark.parametrize("labels", [np.zeros((7, 8)), np.array([{"a": 1}], object), np.zeros(3)])
def test_slice_labels_that_fit_no_case(tmp_path: Path, bring: Bring, labels: NDArray[np.generic]) -> None:
    series(tmp_path / "tree" / "COVID-19 Cases" / "P002", 4)
    np.save(tmp_path / "tree" / "Slice-level-labels.npy", labels, allow_pickle=True)
    with pytest.raises(DataError, match=r"Slice-level-labels.npy: .*Index.csv"):
        bring("covid-ct-md")
    assert list((tmp_path / "pool").iterdir()) == []


@pytest.mark.parametrize("outlined", [True, False])
def test_ricord_1a(tmp_path: Path, bring: Bring, outlined: bool) -> None:
    folder = tmp_path / "tree" / "MIDRC-RICORD-1A" / "MIDRC-RICORD-1A-419639-000025" / "study" / "1-series"
    order = series(folder, 8)
    files = (dcmread(path) for path in folder.iterdir())
    drawn_on = next(file for file in files if LUNG.apply(file.pixel_array - 1024.0).tobytes() == order[1])
    if outlined:
        square, other = [[10, 20], [19, 20], [19, 24], [10, 24]], [[0, 0], [5, 9]]
        drawn = [
            {"labelId": "i", "data": {"vertices": square}},
            {"labelId": "a", "data": {"vertices": other}},
        ]
        for each in (*drawn, empty := {"labelId": "i", "data": None}):
            each["SOPInstanceUID"] = str(drawn_on.SOPInstanceUID)
        names = [{"id": "i", "name": "Infectious opacity"}, {"id": "a", "name": "Atelectasis"}]
        content = {"labelGroups": [{"labels": names}], "datasets": [{"annotations": [*drawn, empty]}]}
        file = tmp_path / "tree" / "MIDRC-RICORD-1a_annotations_labelgroup_all_2020-Dec-8.json"
        file.write_text(json.dumps(content))
    records = bring("ricord-1a")
    assert indices(records, order) == ([1] if outlined else [2, 3, 4, 5])
    assert {record.patient_id for record in records} == {"MIDRC-RICORD-1A-419639-000025"}
    if outlined:
        lesion = read_mask(records[0].lesion_mask or Path(), (64, 64))
        assert lesion[20:25, 10:20].all(), "x comes before y"
        assert lesion.sum() == 50


@pytest.mark.parametrize("listed", [True, False])
def test_cc_ccii(tmp_path: Path, bring: Bring, listed: bool) -> None:
    tree = tmp_path / "tree"
    for number in range(24):
        picture(tree / ("NCP/96/1328", "CP/7/11", "Normal/7/12")[number % 3] / f"{number // 3:04d}.jpg")
    if listed:
        (tree / "lesions_slices.csv").write_text("imgpath\nNCP/96/1328/0007.jpg\nCP/7/11/0001.jpg\n")
    records = bring("cc-ccii")
    taken = {kind: [int(r.path.stem) for r in records if r.grade == kind] for kind in ("NCP", "CP", "Normal")}
    middle = [2, 3, 4, 5]
    assert taken == {"NCP": [7] if listed else middle, "CP": [1] if listed else middle, "Normal": middle}
    assert {record.patient_id for record in records} == {"NCP-96", "CP-7", "Normal-7"}
    assert all((record.label is Label.COVID) is (record.grade == "NCP") for record in records)


def test_covidx_ct(tmp_path: Path, bring: Bring) -> None:
    tree = tmp_path / "tree"
    train = [f"NCP_96_1328_{index:04d}.png" for index in range(30)]
    test = ["Normal_3_4_0001.png", "CP_8_9_0001.png", "COVIDCTMD-P001-IM0001.png"]
    for name in (*train, *test):
        picture(tree / "2A_images" / name)
    (tree / "train_COVIDx_CT-2A.txt").write_text("".join(f"{name} 2 0 0 7 7\n" for name in train))
    lines = (f"{name} {kind} 0 0 7 7\n" for kind, name in enumerate(test))
    (tree / "test_COVIDx_CT-2A.txt").write_text("".join(lines))
    records = bring("covidx-ct")
    ours = [record for record in records if record.patient_id == "NCP_96"]
    assert len(ours) == 15
    assert {(record.label, record.split) for record in ours} == {(Label.COVID, "train")}
    rest = [(r.patient_id, r.label, r.grade) for r in records if r.split == "test"]
    assert rest == [
        ("COVIDCTMD-P001", Label.COVID, "COVID-19"),
        ("CP_8", Label.NON_COVID, "pneumonia"),
        ("Normal_3", Label.NON_COVID, "normal"),
    ]


@pytest.mark.parametrize("line", ["NCP_1_1_0001.png 3 0 0 7 7", "gone.png 2 0 0 7 7", "NCP_1_1_0001.png"])
def test_covidx_ct_lists_that_do_not_fit(tmp_path: Path, bring: Bring, line: str) -> None:
    picture(tmp_path / "tree" / "2A_images" / "NCP_1_1_0001.png")
    (tmp_path / "tree" / "val_COVIDx_CT-2A.txt").write_text(f"{line}\n")
    with pytest.raises(DataError, match=r"val_COVIDx_CT-2A.txt: .*0 to 2"):
        bring("covidx-ct")


@pytest.mark.parametrize("lying", [True, False])
def test_covid_semiseg(tmp_path: Path, bring: Bring, lying: bool) -> None:
    tree = tmp_path / "tree" / "Dataset"
    train = "TrainingSet/LungInfection-Train"
    copies = f"{train}/Pseudo-label", "TestingSet/MultiClassInfection-Test"
    upright = make_phantom(np.random.default_rng(5), severity=0.6, size=96)
    pixels, lesions = upright.slice.pixels, upright.lesions.astype(np.uint8) * 255
    for folder in (f"{train}/Doctor-label", "TestingSet/LungInfection-Test", *copies):
        picture(tree / folder / "Imgs" / "1.jpg", pixels.T.copy() if lying else pixels)
        picture(tree / folder / "GT" / "1.png", lesions.T.copy() if lying else lesions)
    records = bring("covid-semiseg")
    assert [record.split for record in records] == ["test", "train"]
    assert {record.label for record in records} == {Label.COVID}
    for record in records:
        assert np.abs(read_pixels(record).astype(np.int16) - pixels).mean() < 8, "JPEG is not exact"
        np.testing.assert_array_equal(read_mask(record.lesion_mask or Path(), pixels.shape), lesions > 0)
    assert all((record.path.name == "1.jpg") is not lying for record in records)


def test_the_command(tmp_path: Path) -> None:
    study = tmp_path / "studies" / "CT-2" / "study_0939.nii.gz"
    nifti(study, volume(8))
    (study.parent / "study_0940.nii.gz").write_bytes(study.read_bytes()[:90])
    output = tmp_path / "out" / "moscow.csv"
    command = ["import", "mosmeddata", str(tmp_path), "--output", str(output)]
    done, again = (CliRunner().invoke(app, command) for _ in range(2))
    assert done.exit_code == 3, "something was left out"
    assert "4 slices (0 with lung masks, 0 with lesion masks) written" in done.stdout
    assert "study_0940.nii.gz" in done.stderr
    assert sorted(path.name for path in output.parent.iterdir()) == ["moscow-slices", "moscow.csv"]
    assert "exists already" in str(again.exception)


@pytest.mark.parametrize("name", sorted(COLLECTIONS))
def test_other_layouts_are_refused_in_one_line(tmp_path: Path, name: str) -> None:
    picture(tmp_path / "tree" / "slice.png")
    output = tmp_path / "pool" / "manifest.csv"
    with pytest.raises(DataError) as refused:
        import_collection(name, tmp_path / "tree", output)
    assert str(refused.value).startswith(f"{tmp_path / 'tree'}: holds no slices of {name}; expected ")
    assert "\n" not in str(refused.value)
    assert list(output.parent.iterdir()) == []
    assert name in get_args(PublicCollection)


def test_nothing_is_left_of_an_import_that_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nifti(tmp_path / "studies" / "CT-2" / "study_0939.nii.gz", volume(8))

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("groundglass.data.collections.write_manifest", full)
    with pytest.raises(OSError, match="No space"):
        import_collection("mosmeddata", tmp_path, tmp_path / "pool" / "moscow.csv")
    assert list((tmp_path / "pool").iterdir()) == []
