"""One way in: manifests and what their CSV may say, folders, several data sets together; and what they hold."""

import json
from pathlib import Path
from unittest.mock import Mock

import nibabel as nib
import numpy as np
import pytest
from PIL import Image
from tests.conftest import Command, Patch, blank, make_zip, save_image

from groundglass.data import manifest
from groundglass.data.load import load_dataset, load_pool
from groundglass.data.manifest import Label, Manifest, Record, content_hash, read_manifest, read_mask, read_pixels
from groundglass.data.phantoms import write_series
from groundglass.errors import DataError, ImageError
from groundglass.imaging.read import read_slices
from groundglass.imaging.window import LUNG

HEADER = "path,label,patient_id,source,split\nb.png,COVID,p,s,train\n"


def read(folder: Path, *rows: str) -> Manifest:
    path = folder / "set.csv"
    path.write_text("\n".join(rows), encoding="utf-8")
    return read_manifest(path)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in "ab":
        save_image(tmp_path / f"{name}.png")
    return tmp_path


def test_only_path_is_required_and_likely_columns_are_told(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    first, second = read(folder, "path,sha256,patient_id", "a.png,ff,", "b.png,ee,")
    assert first == Record(folder / "a.png", None, "unknown:a.png", "set", None)
    assert (first.patient_known, first.patient_id == second.patient_id) == (False, False)
    (folder / "set.csv").write_text(";path;diagnosis;subject\n0;a.png;positive;17\n")
    assert list(manifest.iterate_paths(folder / "set.csv")) == [folder / "a.png"]
    assert "subject" not in caplog.text
    assert read_manifest(folder / "set.csv").records[0].label is None
    assert read(folder, 'path;label;"note, free, text"', "a.png;COVID;x").records[0].label is Label.COVID
    said = "has no column label and no column patient_id; if one of diagnosis, subject holds it, rename that"
    assert said in caplog.text


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
@pytest.mark.parametrize(
    "spelt", ["val COVID NonCOVID", "valid covid-19 non-covid", "Validation CT_COVID NONCOVID", "dev Covid CT_NonCOVID"]
)
def test_spellings(tmp_path: Path, delimiter: str, spelt: str) -> None:
    split, *labels = spelt.split()
    names = [save_image(tmp_path / f"{part}a{'b' if delimiter == ',' else ',b'}.png").name for part in "xy"]
    rows = ("path", "label", "split"), *((*given, split) for given in zip(names, labels, strict=True))
    records = read(tmp_path, *map(delimiter.join, rows)).records
    assert [(record.label, record.split) for record in records] == [(label, "val") for label in Label]


def test_what_is_wrong_is_named_with_file_and_line(folder: Path) -> None:
    for content, said in (
        *((f"{HEADER}a.png,{label},p,s,train", f"line 3: label '{label}'") for label in ("1", "COVID-", "Covid −")),
        (f'{HEADER}a.png,COVID,"p,s,train\nc.png,COVID,q,s,train', "unexpected end of data"),
        (f"{HEADER}a.png,healthy,p,s,train", "line 3: label 'healthy' .*: --map-label healthy=COVID"),
        (f"{HEADER}a.png,COVID,p,s,held", "line 3: split 'held'"),
        (f"{HEADER}a,b.png,COVID,p,s,train", "line 3: has more fields than columns"),
        (f"{HEADER},COVID,p,s,train", "line 3: `path` is empty"),
        (f"{HEADER}sub/../b.png,COVID,p,s,train", "sub/../b.png is already on line 2"),
        ("file,label\na.png,COVID", "has no column `path`, only file, label; give its columns the names"),
        ("path,patient\na.png,p", "did you mean 'patient_id'"),
        ("Path;label\na.png;COVID", "column 'Path' is not known; did you mean 'path'"),
        ("path\n\n", "has no rows"),
        (f"path,{200_000 * 'n'}\na.png,", "field larger than field limit"),
        ("path\n\udcff", "is not UTF-8 text"),
        ("path,unit\na.png,mm", "line 2: unit 'mm' is none of HU"),
        ("path,lesion_mask\na.png,gone.png", r"1 of its files do not exist: .*gone\.png"),
        (f"path\na.png\ngone.png\np.zip!x.png\n{300 * 'n'}.png", r"3 of its .*gone\.png.*p\.zip!x"),
    ):
        (folder / "set.csv").write_text(content, encoding="utf-8", errors="surrogateescape")
        with pytest.raises(DataError, match=rf"{folder}/set\.csv: .*{said}"):
            read_manifest(folder / "set.csv")


def test_labels_are_mapped_as_the_user_says(folder: Path) -> None:
    named = ["positive=COVID,pneumonia, bacterial=non-covid", "COVID?=NonCOVID"]
    (folder / "set.csv").write_text('path,label\na.png,Positive\nb.png,"Pneumonia, bacterial"\n')
    assert [record.label for record in load_dataset(folder / "set.csv", named)] == list(Label)
    for name in ("positive", "pneumonia, bacterial", "NonCOVID"):
        save_image(folder / "set" / name / "a.png")
    assert [each.label_name for each in load_dataset(folder / "set", named)] == ["NonCOVID", "NonCOVID", "COVID"]
    for wrong, said in (("a=COVID,b", "'b' maps no label"), ("a=b", "label 'b'"), ("COVID=NonCOVID", "its opposite")):
        with pytest.raises(DataError, match=said):
            load_dataset(folder, [wrong])


def test_written_manifest_reads_back_and_moves_with_its_images(tmp_path: Path) -> None:
    before, outside = tmp_path / "before", save_image(tmp_path / "elsewhere" / "c.png")
    slices = [save_image(before / name) for name in ("x, y/ä.png", "b.png")]
    records = (
        Record(slices[0], Label.COVID, "p-1", "ward", "train", save_image(before / "mask.png"), outside, "CT-2"),
        Record(slices[1], None, "unknown:b.png", "ward", None, unit="HU+1024"),
        Record(outside, Label.NON_COVID, "p-2", "ward", "test", collection="COVID-CT"),
    )
    manifest.write_manifest(Manifest("set", before, records), before / "set.csv")
    assert read_manifest(before / "set.csv").records == records
    after = before.rename(tmp_path / "after")
    moved = read_manifest(after / "set.csv").records
    assert [record.path for record in moved] == [after / "x, y" / "ä.png", after / "b.png", outside]
    assert moved[0].lung_mask == after / "mask.png"


@pytest.fixture
def series(tmp_path: Path) -> Path:
    """Three DICOM slices in a folder, a zip of them, and a volume of four planes with its lesion mask."""
    (made,) = write_series(tmp_path / "made", [0.5], count=3, size=64)
    made.rename(tmp_path / "series")
    files = sorted((tmp_path / "series").iterdir())
    make_zip(tmp_path / "series.zip", {f"inner/{file.name}": file.read_bytes() for file in files})
    planes = np.linspace(-1000, 200, 6 * 5 * 4).reshape(6, 5, 4).astype(np.int16)
    nib.save(nib.Nifti1Image(planes, np.eye(4)), tmp_path / "volume.nii.gz")
    nib.save(nib.Nifti1Image((planes > 0).astype(np.uint8), np.eye(4)), tmp_path / "mask.nii.gz")
    return tmp_path


def test_series_zips_and_slices_of_volumes(series: Path) -> None:
    files = [read_pixels(record) for record in read(series, "path", "series")]
    assert len(files) == 3
    rows = ("series.zip,p1,,", "series,p2,2,", *(f"volume.nii.gz,p3,{n},mask.nii.gz" for n in (1, 3)))
    found = read(series, "path,patient_id,slice,lesion_mask", *rows)
    *packed, last, second, fourth = found
    assert [record.patient_id for record in found] == ["p1", "p1", "p1", "p2", "p3", "p3"]
    assert all(np.array_equal(read_pixels(each), one) for each, one in zip(packed, files, strict=True))
    assert np.array_equal(read_pixels(last), files[2])
    planes = list(read_slices(series / "volume.nii.gz"))
    for record, plane in ((second, planes[1]), (fourth, planes[3])):
        assert np.array_equal(read_pixels(record), plane.pixels)
        assert np.array_equal(read_mask(record.lesion_mask, plane), plane.hounsfield > 0)
    assert second.suffix == ".gz"
    assert len({content_hash(each) for each in found}) == 5, "one is in the folder and in the zip"
    again = series / "again.csv"
    manifest.write_manifest(found, again)
    assert read_manifest(again).records == found.records
    assert list(manifest.iterate_paths(again))[-2:] == [last.path, series / "volume.nii.gz"]
    again.write_text("path,label,slice\nvolume.nii.gz,CT-2,1\nseries,CT-2,2\nvolume.nii.gz,CT-2,3\nseries,CT-2,\n")
    # Labels of other names are no matter of who predicts, and a volume is read once.
    assert list(manifest.iterate_paths(again)) == [series / "volume.nii.gz", last.path, series / "series"]
    unnamed = read(series, "path,slice", "series,", "series.zip,1", "volume.nii.gz,1", "./volume.nii.gz!3,")
    assert {each.patient_id for each in unnamed} == {"series", "series.zip", "volume.nii.gz"}, "each is of one person"
    for shift, factor in ((4.0, 1.0), (0.0, 0.5)):
        affine = np.diag([1.0, 1.0, factor, 1.0]) + shift * np.eye(4, k=3)
        nib.save(nib.Nifti1Image(np.zeros((6, 5, 4), np.uint8), affine), series / "mask.nii.gz")
        with pytest.raises(ImageError, match=r"mask\.nii\.gz!3: lies elsewhere than .*volume\.nii\.gz"):
            read_mask(fourth.lesion_mask, planes[3])
    picture = save_image(series / "a.png")
    assert [record.path for record in read(series, "path,slice", "a.png,57")] == [picture]


def test_series_and_volumes_that_do_not_have_the_slice_and_masks_of_another_size(series: Path) -> None:
    for row, said in (
        ("series,3,,", "line 2: .*series has no slice 3; the first one is 0"),
        ("series,,mask.nii.gz,", "line 2: .*series holds 3 slices and a mask is of one"),
        ("series,,,HU", "is no picture of more than 8 bits, so its unit cannot be 'HU'"),
        ("volume.nii.gz,9,,", r"volume\.nii\.gz!9: has no such slice"),
        ("volume.nii.gz,,,", r"volume\.nii\.gz: holds several slices"),
        ("none.nii.gz,1,,", r"1 of its files do not exist: .*none\.nii\.gz!1"),
    ):
        with pytest.raises((DataError, ImageError), match=said):
            read_pixels(read(series, "path,slice,lesion_mask,unit", row).records[0])
    with pytest.raises(ImageError, match=r"mask\.png: a mask of 6 x 8 pixels for a slice of 40 x 30"):
        read_mask(save_image(series / "mask.png"), blank(30, 40))


def test_a_volume_is_read_once_for_its_slices_and_again_when_it_changed(series: Path, monkeypatch: Patch) -> None:
    records = read(series, "path,slice,lesion_mask", *(f"volume.nii.gz,{n},mask.nii.gz" for n in range(4))).records
    reading = Mock(wraps=read_slices)
    monkeypatch.setattr(manifest, "read_slices", reading)
    before = [read_pixels(each) for each in records]
    hashes = {content_hash(each) for each in records}
    assert any(read_mask(each.lesion_mask, blank(*one.shape)).any() for each, one in zip(records, before, strict=True))
    assert reading.call_count == 2
    volume = nib.load(series / "volume.nii.gz")
    nib.save(nib.Nifti1Image(np.asarray(volume.dataobj)[::-1], np.eye(4)), series / "volume.nii.gz")
    assert not any(np.array_equal(read_pixels(each), one) for each, one in zip(records, before, strict=True))
    assert hashes.isdisjoint(content_hash(each) for each in records)


def test_units_of_deep_pictures(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    values = np.array([[0, 24], [1024, 4095]], np.uint16)
    Image.fromarray(values).save(tmp_path / "a.png")
    save_image(tmp_path / "eight.png")
    manifest.say.cache_clear()

    def pixels(unit: str, name: str = "a.png") -> list[int]:
        (record,) = read(tmp_path, "path,unit", f"{name},{unit}")
        return read_pixels(record).ravel().tolist()

    assert pixels("HU+1024") == LUNG.apply(values.astype(np.float32) - 1024).ravel().tolist()
    assert pixels("hu") == [230, 234, 255, 255]
    assert pixels("grey/8190") == [0, 1, 32, 128]
    assert not caplog.text
    assert pixels("") == [0, 1, 64, 255]
    assert f"{tmp_path}: numbers of more than 8 bits are taken for grey values, which is" in caplog.text
    with pytest.raises(ImageError, match=r"eight\.png: is no picture of more than 8 bits.* cannot be 'HU'"):
        pixels("HU", "eight.png")


def test_sources_and_grades_are_left_out_by_name() -> None:
    about = ("moscow", "CT-1", ""), ("moscow", "CT-2", ""), ("luna", "CT-1", ""), ("paper", "", "covid-ct")
    records = tuple(
        Record(Path(name), None, "p", source, None, grade=grade, collection=collection)
        for name, (source, grade, collection) in zip("abcd", about, strict=True)
    )
    for names, kept in (("", "abcd"), ("moscow:CT-1", "bcd"), ("luna covid-ct", "ab"), ("paper CT-1", "abcd")):
        assert "".join(str(each.path) for each in Manifest("set", Path(), records).without(names.split())) == kept


@pytest.mark.parametrize(("positive", "negative"), [("covid", "non-covid"), ("CT_COVID", "CT_NonCOVID")])
def test_folders_say_labels(tmp_path: Path, positive: str, negative: str, caplog: pytest.LogCaptureFixture) -> None:
    root = tmp_path / "ward-7"
    for name in ("p1/10.png", "p1/series/2.png", "c.JPG"):
        save_image(root / positive / name)
    for name in ("c.png", "p2/10.png", "p2/2.png", ".hidden.png"):
        save_image(root / negative / name)
    (root / negative / "scan.nii.gz").write_bytes(b"\x1f\x8b\x08")
    records = load_dataset(root).records
    assert [each.split(": ", 1)[1][:22] for each in caplog.messages] == ["scan.nii.gz: left out;"]
    assert " ".join(record.path.name for record in records) == "c.JPG 10.png 2.png c.png 2.png 10.png"
    assert [record.label for record in records] == [Label.COVID] * 3 + [Label.NON_COVID] * 3
    alone, *first, other, second, last = [record.patient_id for record in records]
    assert (first, second, last, alone == other) == (["p1", "p1"], "p2", "p2", False)
    assert [record.patient_known for record in records] == [False, True, True] * 2
    assert {(record.source, record.split) for record in records} == {("ward-7", None)}
    assert [record.label for record in load_dataset(root / positive)] == [None] * 3
    (root / negative / "gone.png").symlink_to("nowhere")
    with pytest.raises(ImageError, match=r"gone\.png: a link to nothing"):
        load_dataset(root)


@pytest.mark.parametrize(
    ("files", "path", "said"),
    [
        ("COVID/a.png healthy/b.png", "", "no sub-folders for NonCOVID"),
        ("COVID/a.png CT_COVID/a.png NonCOVID/b.png", "", "too many sub-folders for COVID"),
        ("COVID/a.png NonCOVID/sub/b.txt", "", "NonCOVID: holds no slices"),
        ("train/COVID/a.png train/NonCOVID/b.png", "", "deeper, in .*train"),
        ("", "absent", "absent: no such folder or file"),
        ("", 300 * "n", r"n: cannot be read \(File name too long"),
        ("a.png", "a.png", r"a\.png: a data set is a folder or a manifest CSV"),
    ],
)
def test_what_is_no_data_set(tmp_path: Path, files: str, path: str, said: str) -> None:
    for name in files.split():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("text")
    with pytest.raises(DataError, match=said):
        load_dataset(tmp_path / path)


def test_several_data_sets_are_one(tmp_path: Path) -> None:
    for name in ("a.1/COVID", "a.1/NonCOVID", "a.2/COVID", "a.2/NonCOVID"):
        save_image(tmp_path / name / "1.png")
    one, other = tmp_path / "a.1", tmp_path / "a.2"
    pool = load_pool([one, other])
    assert (pool.name, pool.root, str(pool)) == ("a.1+a.2", tmp_path, f"{one}, {other}")
    assert [record.source for record in pool] == ["a.1", "a.1", "a.2", "a.2"]
    assert len({record.patient_id for record in pool}) == 4
    assert load_pool([one]) == load_dataset(one)
    with pytest.raises(DataError, match=r"1\.png: is in two of the data sets"):
        load_pool([one, other, other / ".." / one.name])
    for folder in (one, other):
        (folder / "manifest.csv").write_text("path\nCOVID/1.png\n")
    assert [record.source for record in load_pool([one, other])] == ["a.1", "a.2"]


@pytest.mark.parametrize(
    ("sources", "expected", "same"),
    [
        (",", "a/own:7 b/own:7", True),
        ("rome,", "rome:7 b/own:7", True),
        ("rome,rome", "rome:7 rome:7", True),
        ("rome,oslo", "rome:rome/7 oslo:oslo/7", False),
        ("x+y,y,w", "x:x/7 y:x/7 y:x/7 w:w/7", False),  # those that two data sets share link a patient
    ],
)
def test_sources_and_patients_of_several_data_sets_are_kept_apart(
    tmp_path: Path, sources: str, expected: str, same: bool, caplog: pytest.LogCaptureFixture
) -> None:
    manifest.say.cache_clear()
    for name, several in zip("abc", sources.split(","), strict=False):
        rows = [f"{save_image(tmp_path / name / f'1{source}.png')},7,{source}" for source in several.split("+")]
        (tmp_path / name / "own.csv").write_text("\n".join(["path,patient_id,source", *rows]))
    pool = load_pool(sorted(tmp_path.glob("*/own.csv")))
    assert " ".join(f"{record.source}:{record.patient_id}" for record in pool) == expected
    assert ("7: patients of several data sets, taken for the same people" in caplog.text) is same


def test_described(tmp_path: Path, run_command: Command) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (2, 20, 30), np.uint8)
    for name, picture in (("[bold]", pixels[0]), ("1", pixels[1]), ("grey", 7), ("broken", 0)):
        save_image(tmp_path / f"{name}.png", picture)
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    own, long = tmp_path / "own.csv", "a-" + "long-" * 30 + "name"
    rows = "[bold].png;positive;p;train", "1.png;CAP;q;train", "grey.png;;;", "broken.png;;p;test"
    own.write_text("\n".join(["path;label;patient_id;split", *rows]))
    words = "data", "describe", own, "--map-label", "positive=COVID,CAP=COVID"
    status, out, _ = run_command(*words)
    assert status == 0
    for said in ("own: 4 slices", "PNG L", "COVID", "1 file cannot be read", "1 patient in several parts"):
        assert said in out
    save_image(tmp_path / long / "a.png", 7)
    found = json.loads(run_command(*words, "--json", tmp_path / long)[1])
    covid, unlabelled = found["grey"]["COVID"], found["grey"]["unlabelled"]
    assert (covid["mean"], covid["std"]) == (pytest.approx(pixels.mean()), pytest.approx(pixels.std()))
    assert (unlabelled["mean"], unlabelled["std"]) == (7, 0)
    assert (found["width"], found["total"]["labels"]) == ({"min": 6, "max": 30}, {"COVID": 2, "unlabelled": 3})
    assert (found["patients_in_several_parts"], found["splits"][1]["labels"]) == (["p"], {"unlabelled": 1})
    assert [source["name"] for source in found["sources"]] == [long, "own"]
    out = run_command("data", "describe", tmp_path / long)[1]
    assert "1 slice of unknown patients" in out
    assert out.count("a-long-l…-long-long-name") == 2, "in the title and among the sources"
    assert max(map(len, out.splitlines())) <= 80
    save_image(tmp_path / "caf\udce9" / "a.png", 7)
    assert json.loads(run_command("data", "describe", tmp_path / "caf\udce9", "--json")[1])["name"] == "caf\udce9"
