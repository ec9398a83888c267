"""Public collections in the layouts of their authors, as tiny trees: labels, slices, masks, and nothing half-written."""

import json
from collections import defaultdict
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import get_args
from unittest.mock import Mock

import nibabel as nib
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from pydicom import dcmread
from tests.conftest import Command, Patch, blank, change_dicom, save_image

from groundglass.cli.data import PublicCollection
from groundglass.data.collections import COLLECTIONS, import_collection
from groundglass.data.manifest import Label, Record, read_manifest, read_mask, read_pixels, read_record
from groundglass.errors import DataError, ImageError
from groundglass.imaging.phantom import make_phantom, make_series, write_dicom
from groundglass.imaging.window import LUNG

Bring = Callable[..., list[Record]]
COVID, OTHER = Label.COVID, Label.NON_COVID
PLANES = -1000 + 20 * np.arange(60, dtype=np.int16)  # of a volume, by which its planes can be told apart


def volume(depth: int) -> NDArray[np.int16]:
    return np.full((12, 10, depth), PLANES[:depth])


def mask(depth: int, planes: Iterable[int], value: int = 1) -> NDArray[np.uint8]:
    """Voxels with a mark in the corner that is the patient's right, behind, of some planes."""
    voxels = np.zeros((12, 10, depth), np.uint8)
    voxels[8:, :4, list(planes)] = value
    return voxels


def nifti(path: Path, voxels: NDArray[np.generic], shift: float = 0.0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    affine = np.diag([1.0, 1.0, 5.0, 1.0])
    affine[0, 3] = shift
    nib.save(nib.Nifti1Image(voxels, affine), path)


def series(folder: Path, length: int, seed: int = 0) -> list[bytes]:
    """Write a DICOM series, its files named in an order of their own; its slices' pixels from head to feet."""
    rng = np.random.default_rng(seed)
    phantoms = list(make_series(rng, length, size=64))
    for name, phantom in zip(rng.permutation(length), phantoms, strict=True):
        file = folder / f"IM{name:04d}.dcm"
        write_dicom(phantom, file)
        change_dicom(file, SliceLocation=phantom.slice.origin.position[2])
    return [LUNG.apply(phantom.hounsfield).tobytes() for phantom in phantoms]


def taken(records: Iterable[Record], orders: dict[str, list[bytes]] | None = None) -> dict[str, list[int]]:
    """The numbers of each patient's slices: in the order of its series, else in a `volume`."""
    found: dict[str, list[int]] = defaultdict(list)
    planes = LUNG.apply(PLANES.astype(np.float32)).tolist()
    for record in records:
        pixels, patient = read_pixels(record), record.patient_id
        order = orders and orders[patient]
        found[patient].append(order.index(pixels.tobytes()) if order else planes.index(pixels[0, 0]))
    return found


def about(records: Iterable[Record]) -> set[tuple[str, Label | None, str]]:
    return {(record.patient_id, record.label, record.grade) for record in records}


@pytest.fixture
def bring(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Bring:
    """Import what lies in ``tmp_path``, but for one file that is ``left_out``; every record as its manifest has it."""

    def run(name: str, left_out: str = "") -> list[Record]:
        output = tmp_path_factory.mktemp("pool") / "manifest.csv"
        failed: list[ImageError] = []
        imported = import_collection(name, tmp_path, output, failed.append)
        records = read_manifest(output).records
        assert (len(records), len(failed)) == (len(imported), bool(left_out))
        assert left_out in "".join(map(str, failed))
        for record in records:
            assert record.source == name
            for each in filter(None, (record.lung_mask, record.lesion_mask)):
                read_mask(each, read_record(record))
        return list(records)

    return run


def test_mosmeddata(tmp_path: Path, bring: Bring) -> None:
    for study, depth in (("CT-0/study_0001", 40), ("CT-1/study_0255", 40), ("CT-3/study_1000", 50)):
        nifti(tmp_path / "studies" / f"{study}.nii.gz", volume(depth))
    nifti(tmp_path / "masks" / "study_0255_mask.nii.gz", mask(40, [3, 4]))
    records = bring("mosmeddata")
    grades = ("study_0001", OTHER, "CT-0"), ("study_0255", COVID, "CT-1"), ("study_1000", COVID, "CT-3")
    assert about(records) == {*grades}
    # The middle half, at most twenty; with a mask, slices with lesions alone.
    assert list(taken(records).values()) == [[*range(10, 30)], [3, 4], [*range(13, 38, 2)]]
    (lesion_mask, _) = filter(None, (record.lesion_mask for record in records))
    assert Image.open(lesion_mask).mode == "1"
    lesion = read_mask(lesion_mask, blank(10, 12))
    assert lesion[6:, :4].all(), "the patient's right is at the left, the back below"
    assert lesion.sum() == 16


def test_zenodo_3757476(tmp_path: Path, bring: Bring) -> None:
    """Slices with lung where it is known; of the third case's masks the lungs lie elsewhere: it is left out."""
    other = "radiopaedia_org_covid-19-pneumonia-14_85914_0-dcm.nii"
    for name, mask_name, depth, lungs, lesions, shift in (
        ("coronacases_001.nii.gz", "coronacases_001.nii.gz", 50, range(5, 45), [10, 11], 0.0),
        (other, "radiopaedia_14_85914_0.nii", 10, [2], [2], 0.0),
        ("coronacases_002.nii.gz", "coronacases_002.nii.gz", 10, range(10), [2], 40.0),
    ):
        nifti(tmp_path / "COVID-19-CT-Seg_20cases" / name, volume(depth))
        nifti(tmp_path / "Lung_Mask" / mask_name, mask(depth, lungs, 2), shift)
        nifti(tmp_path / "Infection_Mask" / mask_name, mask(depth, lesions))
    records = bring("zenodo-3757476", left_out="Lung_Mask/coronacases_002.nii.gz: does not lie where")
    assert taken(records) == {"001": [*range(6, 45, 2)], "radiopaedia-14": [2]}
    assert {record.label for record in records} == {COVID}
    lesions = [read_mask(record.lesion_mask, blank(10, 12)).any() for record in records if record.lesion_mask]
    assert lesions == [False, False, True, *[False] * 17, True]


def test_luna16(tmp_path: Path, bring: Bring) -> None:
    sitk = pytest.importorskip("SimpleITK")
    for folder, voxels in (("subset0", volume(10)), ("seg-lungs-LUNA16", mask(10, [4, 5], 3) + mask(10, [8], 5))):
        (tmp_path / folder).mkdir(parents=True)
        sitk.WriteImage(sitk.GetImageFromArray(voxels.T), str(tmp_path / folder / "1.3.6.1.mhd"))
    records = bring("luna16")
    assert taken(records) == {"1.3.6.1": [4, 5]}, "the trachea, 5, is no lung"
    assert {record.label for record in records} == {OTHER}


def test_finding_lungs_and_iq_oth_nccd(tmp_path: Path, bring: Bring) -> None:
    """Pictures stay where they are."""
    name = "ID_0007_Z_0142.tif"
    file, mask_file = save_image(tmp_path / "2d_images" / name), save_image(tmp_path / "2d_masks" / name, 255)
    wrong, _ = (save_image(tmp_path / folder / "ID_0052_Z_0001.tif") for folder in ("2d_images", "2d_masks"))
    known = Record(file, OTHER, "ID_0007", "finding-lungs", None, mask_file)
    assert bring("finding-lungs") == [known, Record(wrong, OTHER, "ID_0052", "finding-lungs", None)]
    for kind in ("Bengin", "Malignant", "Normal", "Test"):
        save_image(tmp_path / f"{kind} cases" / f"{kind} case (1).jpg")
    save_image(tmp_path / "Normal cases" / "caf\udce9.jpg")
    found = bring("iq-oth-nccd", left_out="caf\udce9.jpg: its name is not UTF-8")
    records = [(record.grade, record.label, record.patient_known) for record in found]
    assert records == [(grade, OTHER, False) for grade in ("benign", "malignant", "normal")]


def test_covid_ct_md(tmp_path: Path, bring: Bring) -> None:
    """Rows are of the cases in the order of the index, columns from head to feet."""
    cases = ("COVID-19 Cases/P002", "COVID-19 Cases/P010", "Cap Cases/cap001", "Normal Cases/normal001")
    orders = {case.partition("/")[2]: series(tmp_path / case, 6, seed) for seed, case in enumerate(cases)}
    labels, file = np.zeros((3, 8)), tmp_path / "Slice-level-labels.npy"
    labels[0, [0, 1, 4]] = labels[2, 5] = 1
    np.save(file, labels)
    with pytest.raises(DataError, match=r"Slice-level-labels.npy: .*Index.csv"):
        bring("covid-ct-md")
    rows = ["P002,0,COVID-19", "P010,44,COVID-19", "cap001,42,CAP"]
    (tmp_path / "Index.csv").write_text("\n".join(["Folder/ID,Label Index,Diagnosis", *rows]))
    records = bring("covid-ct-md")
    assert taken(records, orders) == {"P002": [0, 1, 4], "P010": [5], "normal001": [1, 2, 3, 4]}
    assert all((record.label is COVID) is record.patient_id.startswith("P") for record in records)
    for wrong in (np.zeros((7, 8)), np.array([{"a": 1}], object), np.zeros(3)):
        np.save(file, wrong, allow_pickle=True)
        with pytest.raises(DataError, match=r"Slice-level-labels.npy: .*Index.csv"):
            bring("covid-ct-md")


def test_ricord_1a(tmp_path: Path, bring: Bring) -> None:
    patient = "MIDRC-RICORD-1A-419639-000025"
    folder = tmp_path / "MIDRC-RICORD-1A" / patient / "study" / "1-series"
    orders = {patient: series(folder, 8)}
    assert taken(bring("ricord-1a"), orders) == {patient: [2, 3, 4, 5]}
    files = (dcmread(path) for path in folder.iterdir())
    on = next(file for file in files if LUNG.apply(file.pixel_array - 1024.0).tobytes() == orders[patient][1])
    square, beside, other = *([[x, 20], [x + 9, 20], [x + 9, 24], [x, 24]] for x in (10, 15)), [[0, 0], [5, 9]]
    drawn = [
        {"labelId": name, "data": vertices and {"vertices": vertices}, "SOPInstanceUID": on.SOPInstanceUID}
        for name, vertices in (("i", square), ("i", beside), ("a", other), ("i", None))
    ]
    names = [{"id": "i", "name": "Infectious opacity"}, {"id": "a", "name": "Atelectasis"}]
    content = {"labelGroups": [{"labels": names}], "datasets": [{"annotations": drawn}]}
    (tmp_path / "MIDRC-RICORD-1a_annotations_labelgroup_all.json").write_text(json.dumps(content))
    (record,) = bring("ricord-1a")
    assert taken([record], orders) == {patient: [1]}
    lesion = read_mask(record.lesion_mask or Path(), blank(64, 64))
    assert lesion[20:25, 10:25].all(), "x comes before y, and there is no hole where two outlines overlap"
    assert lesion.sum() == 75


def test_cc_ccii(tmp_path: Path, bring: Bring) -> None:
    scans = "NCP/96/1328", "CP/7/11", "Normal/7/12"
    for scan in scans:
        for number in range(8):
            save_image(tmp_path / scan / f"{number:04d}.jpg")

    def numbers() -> dict[str, list[int]]:
        records = bring("cc-ccii")
        assert about(records) == {("NCP-96", COVID, "NCP"), ("CP-7", OTHER, "CP"), ("Normal-7", OTHER, "Normal")}
        return {scan: [int(each.path.stem) for each in records if scan in str(each.path)] for scan in scans}

    middle = [2, 3, 4, 5]
    assert list(numbers().values()) == [middle] * 3
    (tmp_path / "lesions_slices.csv").write_bytes(b"caf\xe9\nNCP/96/1328/0007.jpg\nCP/7/11/0001.jpg\n")
    assert list(numbers().values()) == [[7], [1], middle]


def test_covidx_ct(tmp_path: Path, bring: Bring) -> None:
    train = [f"NCP_96_1328_{index:04d}.png" for index in range(30)]
    test = ["Normal_3_4_0001.png", "CP_8_9_0001.png", "radiopaedia-10-85902-1-0004.png", "A002304-5-0017.png"]
    for name in (*train, *test):
        save_image(tmp_path / "2A_images" / name)
    (tmp_path / "train_COVIDx_CT-2A.txt").write_text("".join(f"{name} 2 0 0 7 7\n" for name in train))
    lines = (f"{name} {kind} 0 0 7 7\n" for kind, name in zip((0, 1, 2, 2), test, strict=True))
    (tmp_path / "test_COVIDx_CT-2A.txt").write_text("".join(lines))
    (tmp_path / "train_COVIDx_CT-2B.txt").write_text("".join(f"{name} 2 0 0 7 7\n" for name in train))
    ours, others = ([each for each in bring("covidx-ct") if each.split == part] for part in ("train", "test"))
    assert (len(ours), about(ours)) == (15, {("NCP_96", COVID, "COVID-19")})
    pneumonia, normal = ("CP_8", OTHER, "pneumonia"), ("Normal_3", OTHER, "normal")
    assert about(others) == {*((name, COVID, "COVID-19") for name in ("radiopaedia-10", "A002304")), pneumonia, normal}
    for line in (b"CP_8_9_0001.png 3 0 0 7 7", b"caf\xe9.png 2 0 0 7 7", b"CP_8_9_0001.png"):
        (tmp_path / "val_COVIDx_CT-2A.txt").write_bytes(line)
        with pytest.raises(DataError, match=r"val_COVIDx_CT-2A.txt: .*0 to 2"):
            bring("covidx-ct")


@pytest.mark.parametrize("lying", [True, False])
def test_covid_semiseg(tmp_path: Path, bring: Bring, lying: bool) -> None:
    train = "TrainingSet/LungInfection-Train"
    copies = f"{train}/Pseudo-label", "TestingSet/MultiClassInfection-Test"
    upright = make_phantom(np.random.default_rng(5), severity=0.6, size=96)
    pixels, lesions = upright.slice.pixels, upright.lesions.astype(np.uint8) * 255
    for folder in (f"{train}/Doctor-label", "TestingSet/LungInfection-Test", *copies):
        for name, picture in (("Imgs/1.jpg", pixels), ("GT/1.png", lesions)):
            save_image(tmp_path / "Dataset" / folder / name, picture.T.copy() if lying else picture)
    for name in ("Imgs/2.jpg", "GT/2.png"):
        save_image(tmp_path / "Dataset" / train / "Doctor-label" / name, pixels)
    damaged = "Imgs/2.jpg" if lying else "GT/2.png"
    (tmp_path / "Dataset" / train / "Doctor-label" / damaged).write_bytes(b"no picture")
    records = bring("covid-semiseg", left_out=damaged)
    assert [(record.split, record.label) for record in records] == [("test", COVID), ("train", COVID)]
    for record in records:
        assert np.abs(read_pixels(record).astype(np.int16) - pixels).mean() < 8, "JPEG is not exact"
        np.testing.assert_array_equal(read_mask(record.lesion_mask or Path(), blank(*pixels.shape)), lesions > 0)
    assert all((record.path.name == "1.jpg") is not lying for record in records)


def test_the_command_leaves_nothing_half_done(tmp_path: Path, monkeypatch: Patch, run_command: Command) -> None:
    study, output = tmp_path / "studies" / "CT-2" / "study_0939.nii.gz", tmp_path / "out" / "moscow.csv"
    nifti(study, volume(8))
    (study.parent / "study_0940.nii.gz").write_bytes(study.read_bytes()[:90])
    with monkeypatch.context() as patch:
        full = Mock(side_effect=OSError(28, "No space left on device"))
        patch.setattr("groundglass.data.collections.write_manifest", full)
        with pytest.raises(OSError, match="No space"):
            import_collection("mosmeddata", tmp_path, output)
    assert list(output.parent.iterdir()) == []
    words = "data", "import", "mosmeddata", tmp_path, "--output"
    (status, out, err), *again = (run_command(*words, path) for path in (output, output, ".", output.parent / "pool"))
    assert (status, "study_0940.nii.gz" in err) == (3, True), "it was left out"
    assert "4 slices (0 with lung masks, 0 with lesion masks) written" in out
    assert sorted(path.name for path in output.parent.iterdir()) == ["moscow-slices", "moscow.csv"]
    assert [(each.status, "exists already" in each.err) for each in again] == [(2, True), (2, True), (2, False)]
    study.unlink()
    assert "study_0940.nii.gz" in run_command(*words, output.with_name("none.csv")).err, "why there is nothing"


@pytest.mark.parametrize("name", sorted(COLLECTIONS))
def test_other_layouts_are_refused_in_one_line(tmp_path: Path, name: str) -> None:
    save_image(tmp_path / "slice.png")
    with pytest.raises(DataError, match=rf"^{tmp_path}: holds no slices of {name}; expected .+$"):
        import_collection(name, tmp_path, tmp_path / "pool" / "manifest.csv")
    assert list((tmp_path / "pool").iterdir()) == []
    assert name in get_args(PublicCollection)
