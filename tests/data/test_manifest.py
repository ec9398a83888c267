"""Manifests: what a CSV may say, what is an error and where, and reading the slices that it names."""

from __future__ import annotations

import zipfile
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from groundglass.data.load import load_dataset
from groundglass.data.manifest import (
    Label,
    Manifest,
    Record,
    content_hash,
    iterate_paths,
    join_member,
    label_names,
    read_manifest,
    read_mask,
    read_pixels,
    say,
    write_manifest,
)
from groundglass.data.phantoms import write_series
from groundglass.errors import DataError, ImageError
from groundglass.imaging.read import read_slices
from groundglass.imaging.window import LUNG


def save_image(path: Path, value: int = 90) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((8, 6), value, np.uint8)).save(path)
    return path


def write_csv(folder: Path, text: str) -> Path:
    path = folder / "set.csv"
    path.write_text(text, encoding="utf-8")
    return path


def test_only_path_is_required(tmp_path: Path) -> None:
    save_image(tmp_path / "images" / "a.png")
    save_image(tmp_path / "images" / "b.png")
    manifest = read_manifest(write_csv(tmp_path, "path\nimages/a.png\nimages/b.png\n"))
    first, second = manifest.records
    assert first.path == tmp_path / "images" / "a.png"
    assert (first.label, first.split, first.source) == (None, None, "set")
    assert not first.patient_known
    assert first.patient_id != second.patient_id


@pytest.mark.parametrize(
    ("spelling", "label"),
    [
        ("COVID", Label.COVID),
        ("covid-19", Label.COVID),
        ("CT_COVID", Label.COVID),
        ("NonCOVID", Label.NON_COVID),
        ("non-covid", Label.NON_COVID),
        ("Non COVID", Label.NON_COVID),
    ],
)
def test_label_spellings(tmp_path: Path, spelling: str, label: Label) -> None:
    save_image(tmp_path / "a.png")
    manifest = read_manifest(write_csv(tmp_path, f"path,label,split\na.png,{spelling},Validation\n"))
    assert manifest.records[0].label is label
    assert manifest.records[0].split == "val"


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ("a.png,1,p,s,train", "line 3: label '1'"),
        ("a.png,healthy,p,s,train", "line 3: label 'healthy'"),
        ("a.png,COVID,p,s,held", "line 3: split 'held'"),
        ("a,b.png,COVID,p,s,train", "line 3: has more fields than columns"),
        (",COVID,p,s,train", "line 3: `path` is empty"),
        ("sub/../b.png,COVID,p,s,train", "sub/../b.png is already on line 2"),
    ],
)
def test_bad_rows_are_named_by_file_and_line(tmp_path: Path, row: str, said: str) -> None:
    save_image(tmp_path / "a.png")
    save_image(tmp_path / "b.png")
    (tmp_path / "sub").mkdir()
    path = write_csv(tmp_path, f"path,label,patient_id,source,split\nb.png,COVID,p,s,train\n{row}\n")
    with pytest.raises(DataError) as caught:
        read_manifest(path)
    assert str(path) in str(caught.value)
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("header", "said"),
    [
        ("file,label", "`path`"),
        ("path,patient", "did you mean 'patient_id'"),
        ("path,lable", "did you mean 'label'"),
        ("Path;label", "column 'Path' is not known; did you mean 'path'"),
        ("path, label", "without spaces"),
        ("path,label,label", "unique"),
    ],
)
def test_misspelt_columns_are_errors(tmp_path: Path, header: str, said: str) -> None:
    with pytest.raises(DataError, match=said):
        read_manifest(write_csv(tmp_path, f"{header}\na.png,COVID\n"))


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
@pytest.mark.parametrize("split", ["val", "valid", "Validation", "dev"])
def test_delimiters_and_names_of_the_val_part(tmp_path: Path, delimiter: str, split: str) -> None:
    save_image(tmp_path / "a,b.png" if delimiter != "," else tmp_path / "a.png")
    rows = ["path", "label", "split"], ["a.png" if delimiter == "," else "a,b.png", "covid", split]
    (record,) = read_manifest(write_csv(tmp_path, "\n".join(map(delimiter.join, rows))))
    assert (record.label, record.split) == (Label.COVID, "val")


def test_labels_are_mapped_as_the_user_says(tmp_path: Path) -> None:
    save_image(tmp_path / "a.png")
    save_image(tmp_path / "b.png")
    path = write_csv(tmp_path, "path,label\na.png,Positive\nb.png,CAP\n")
    with pytest.raises(DataError, match=r"line 2: label 'Positive' .*: --map-label Positive=COVID"):
        read_manifest(path)
    named = ["positive=COVID,CAP=non-covid"]
    assert [record.label for record in load_dataset(path, named)] == [Label.COVID, Label.NON_COVID]
    for folder in ("positive", "cap", "NonCOVID"):
        save_image(tmp_path / "set" / folder / "a.png")
    found = [record.label_name for record in load_dataset(tmp_path / "set", named)]
    assert found == ["NonCOVID", "NonCOVID", "COVID"]
    for wrong, said in (("CAP", "maps no label"), ("a=b", "label 'b'"), ("COVID=NonCOVID", "its opposite")):
        with pytest.raises(DataError, match=said):
            label_names([wrong])


def test_other_columns_are_left_alone(tmp_path: Path) -> None:
    save_image(tmp_path / "a.png")
    assert len(read_manifest(write_csv(tmp_path, "path,sha256,age\na.png,ff,61\n"))) == 1


def test_missing_images_are_counted_and_named(tmp_path: Path) -> None:
    save_image(tmp_path / "a.png")
    path = write_csv(tmp_path, "path\na.png\ngone.png\nlost.png\npacked.zip!x.png\n" + "n" * 300 + ".png\n")
    with pytest.raises(
        DataError, match=r"4 of its files do not exist: .*gone\.png.*lost\.png.*packed\.zip!x"
    ):
        read_manifest(path)


@pytest.mark.parametrize("content", [b"", b"path\n", b"\xff\xfe\x00path"])
def test_files_that_are_no_manifest(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "bad.csv"
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"bad\.csv"):
        read_manifest(path)


def test_written_manifest_reads_back_and_moves_with_its_images(tmp_path: Path) -> None:
    before = tmp_path / "before"
    outside = save_image(tmp_path / "elsewhere" / "c.png")
    records = (
        Record(save_image(before / "x, y" / "ä.png"), Label.COVID, "p-1", "ward", "train"),
        Record(save_image(before / "b.png"), None, "unknown:b.png", "ward", None),
        Record(outside, Label.NON_COVID, "p-2", "ward", "test"),
    )
    write_manifest(Manifest("set", before, records), before / "set.csv")
    assert read_manifest(before / "set.csv").records == records
    after = before.rename(tmp_path / "after")
    moved = read_manifest(after / "set.csv").records
    assert [record.path for record in moved] == [after / "x, y" / "ä.png", after / "b.png", outside]


def test_image_inside_a_zip(tmp_path: Path) -> None:
    image = save_image(tmp_path / "a.png", 123)
    with zipfile.ZipFile(tmp_path / "Packed.ZIP", "w") as archive:
        archive.write(image, "deep/a.png")
        archive.writestr("notes.txt", "no picture")
    manifest = read_manifest(write_csv(tmp_path, "path,label\nPacked.ZIP!deep/a.png,COVID\n"))
    record = manifest.records[0]
    assert record.path == join_member(tmp_path / "Packed.ZIP", "deep/a.png")
    assert content_hash(record) == content_hash(replace(record, path=image))
    assert np.array_equal(read_pixels(record), np.full((8, 6), 123))
    write_manifest(manifest, tmp_path / "again.csv")
    assert [again.path for again in read_manifest(tmp_path / "again.csv")] == [record.path]
    for member in ("notes.txt", "absent.png"):
        lost = Record(join_member(tmp_path / "Packed.ZIP", member), None, "p", "s", None)
        with pytest.raises(ImageError, match=member):
            read_pixels(lost)


@pytest.fixture
def series(tmp_path: Path) -> Path:
    """Three DICOM slices in a folder, a zip of them, and a volume of four planes with its lesion mask."""
    (made,) = write_series(tmp_path / "made", [0.5], count=3, size=64)
    made.rename(tmp_path / "series")
    with zipfile.ZipFile(tmp_path / "series.zip", "w") as archive:
        for file in sorted((tmp_path / "series").iterdir()):
            archive.write(file, f"inner/{file.name}")
    planes = np.linspace(-1000, 200, 6 * 5 * 4).reshape(6, 5, 4).astype(np.int16)
    nib.save(nib.Nifti1Image(planes, np.eye(4)), tmp_path / "volume.nii.gz")
    nib.save(nib.Nifti1Image((planes > 0).astype(np.uint8), np.eye(4)), tmp_path / "mask.nii.gz")
    return tmp_path


def test_series_zips_and_slices_of_volumes(series: Path) -> None:
    files = [read_pixels(record) for record in read_manifest(write_csv(series, "path\nseries\n"))]
    assert len(files) == 3
    rows = [
        "series.zip,p1,,",
        "series,p2,2,",
        "volume.nii.gz,p3,1,mask.nii.gz",
        "volume.nii.gz,p3,3,mask.nii.gz",
    ]
    manifest = read_manifest(write_csv(series, "\n".join(["path,patient_id,slice,lesion_mask", *rows])))
    *packed, last, second, fourth = manifest
    assert [record.patient_id for record in manifest] == ["p1", "p1", "p1", "p2", "p3", "p3"]
    assert all(np.array_equal(read_pixels(each), one) for each, one in zip(packed, files, strict=True))
    assert np.array_equal(read_pixels(last), files[2])
    planes = list(read_slices(series / "volume.nii.gz"))
    for record, plane in ((second, planes[1]), (fourth, planes[3])):
        assert np.array_equal(read_pixels(record), plane.pixels)
        assert np.array_equal(read_mask(record.lesion_mask, plane.pixels.shape), plane.hounsfield > 0)
    assert second.suffix == ".gz"
    save_image(series / "a.png")
    assert read_manifest(write_csv(series, "path,slice\na.png,57\n")).records[0].path == series / "a.png"
    assert (
        len({content_hash(record) for record in manifest}) == 5
    )  # one is there in the folder and in the zip
    again = series / "again.csv"
    write_manifest(manifest, again)
    assert read_manifest(again).records == manifest.records
    assert list(iterate_paths(again))[-2:] == [last.path, series / "volume.nii.gz"]


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ("series,3,", "line 2: .*series has no slice 3; the first one is 0"),
        ("series,x,", "line 2: slice 'x' is no number"),
        ("series,,mask.nii.gz", "line 2: .*series holds 3 slices and a mask is of one"),
        ("volume.nii.gz,9,", r"volume\.nii\.gz!9: has no such slice"),
        ("volume.nii.gz,,", r"volume\.nii\.gz: holds several slices"),
        ("none.nii.gz,1,", r"1 of its files do not exist: .*none\.nii\.gz!1"),
        ("empty,,", r"line 2: .*empty: holds no image"),
    ],
)
def test_series_and_volumes_that_do_not_have_the_slice(series: Path, row: str, said: str) -> None:
    (series / "empty").mkdir()
    with pytest.raises((DataError, ImageError), match=said):
        read_pixels(read_manifest(write_csv(series, f"path,slice,lesion_mask\n{row}\n")).records[0])


def test_the_unit_of_deep_pictures_is_as_the_manifest_says_or_guessed_and_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    values = np.array([[0, 24], [1024, 4095]], np.uint16)
    Image.fromarray(values).save(tmp_path / "a.png")
    save_image(tmp_path / "eight.png")
    say.cache_clear()

    def pixels(unit: str, name: str = "a.png") -> list[int]:
        (record,) = read_manifest(write_csv(tmp_path, f"path,unit\n{name},{unit}\n"))
        return read_pixels(record).ravel().tolist()

    assert pixels("HU+1024") == LUNG.apply(values.astype(np.float32) - 1024).ravel().tolist()
    assert pixels("hu") == [230, 234, 255, 255]
    assert pixels("grey/8190") == [0, 1, 32, 128]
    assert not caplog.text
    assert pixels("") == [0, 1, 64, 255]
    assert (
        f"{tmp_path}: numbers of more than 8 bits are taken for grey values, which is a guess" in caplog.text
    )
    with pytest.raises(DataError, match="line 2: unit 'mm' is none of HU"):
        pixels("mm")
    with pytest.raises(ImageError, match=r"eight\.png: has pixels of 8 bits.* cannot be 'HU'"):
        pixels("HU", "eight.png")


def test_dicom_has_a_unit_of_its_own(series: Path) -> None:
    (record, *_) = read_manifest(write_csv(series, "path,unit\nseries,HU\n"))
    with pytest.raises(ImageError, match="is no picture, so its unit cannot be 'HU'"):
        read_pixels(record)


def test_damaged_picture_is_named(tmp_path: Path) -> None:
    path = save_image(tmp_path / "a.png")
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(ImageError, match=r"a\.png"):
        read_pixels(Record(path, None, "p", "s", None))


def test_archives_are_read_within_their_limits(tmp_path: Path) -> None:
    """A bomb of 200 MiB in 200 KiB, and a link: neither may be unpacked by way of a manifest."""
    bomb = tmp_path / "bomb.zip"
    with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as archive, archive.open("a.png", "w") as stream:
        for _ in range(200):
            stream.write(bytes(2**20))
    with pytest.raises(ImageError, match="decompression bomb"):
        content_hash(Record(join_member(bomb, "a.png"), None, "p", "s", None))
    link = zipfile.ZipInfo("a.png")
    link.external_attr = 0o120777 << 16
    with zipfile.ZipFile(tmp_path / "link.zip", "w") as archive:
        archive.writestr(link, "/etc/passwd")
    with pytest.raises(ImageError, match="links in archives are not followed"):
        content_hash(Record(join_member(tmp_path / "link.zip", "a.png"), None, "p", "s", None))


def test_masks_and_grade_travel_with_a_slice(tmp_path):
    mask = np.zeros((40, 30), np.uint8)
    mask[5:20, 4:9] = 255
    for name in ("slice.png", "lung.png", "lesion.png"):
        Image.fromarray(mask).save(tmp_path / name)
    listed = tmp_path / "set.csv"
    listed.write_text("path,label,lung_mask,lesion_mask,grade\nslice.png,COVID,lung.png,lesion.png,CT-2\n")
    (record,) = read_manifest(listed)
    assert (record.lung_mask, record.lesion_mask, record.grade) == (
        tmp_path / "lung.png",
        tmp_path / "lesion.png",
        "CT-2",
    )
    write_manifest(read_manifest(listed), tmp_path / "again.csv")
    assert read_manifest(tmp_path / "again.csv").records == (record,)
    assert np.array_equal(read_mask(record.lung_mask, (40, 30)), mask > 0)
    with pytest.raises(ImageError, match=r"lung\.png: a mask of 30 x 40 pixels for a slice of 40 x 30"):
        read_mask(record.lung_mask, (30, 40))
    (tmp_path / "lesion.png").unlink()
    with pytest.raises(DataError, match=r"1 of its files do not exist: .*lesion\.png"):
        read_manifest(listed)


def test_sources_and_grades_are_left_out_by_name() -> None:
    described = [
        ("moscow", "CT-1", ""),
        ("moscow", "CT-2", ""),
        ("luna", "CT-1", ""),
        ("paper", "", "covid-ct"),
    ]
    records = tuple(
        Record(Path(f"{number}.png"), None, "p", source, None, grade=grade, collection=collection)
        for number, (source, grade, collection) in enumerate(described)
    )
    manifest = Manifest("set", Path(), records)
    for names, kept in (
        ((), (0, 1, 2, 3)),
        (("moscow:CT-1",), (1, 2, 3)),
        (("luna", "covid-ct"), (0, 1)),
        (("paper", "CT-1"), (0, 1, 2, 3)),
    ):
        assert manifest.without(names).records == tuple(records[number] for number in kept)
