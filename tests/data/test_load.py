"""One way in: COVID-CT in all its forms, manifests, folders with labels and without."""

from __future__ import annotations

from pathlib import Path

import pytest

from groundglass.data.load import load_dataset, load_pool
from groundglass.data.manifest import Label, say
from groundglass.errors import DataError

from .conftest import save_image


def test_every_form_of_covid_ct(covid_ct: Path, clone: Path, packed_images: Path) -> None:
    for path in (covid_ct, covid_ct / "Images-processed", clone, packed_images):
        manifest = load_dataset(path)
        assert (manifest.name, len(manifest)) == ("COVID-CT", 746)
        assert all(record.label for record in manifest)
    manifest = load_dataset(covid_ct / "manifest.csv")
    assert (manifest.name, len(manifest)) == ("manifest", 746)
    assert len({record.patient_id for record in manifest}) == 384


@pytest.mark.parametrize(
    ("positive", "negative"), [("COVID", "NonCOVID"), ("covid", "non-covid"), ("CT_COVID", "CT_NonCOVID")]
)
def test_two_folders(tmp_path: Path, positive: str, negative: str) -> None:
    root = tmp_path / "ward-7"
    for name in (f"{positive}/a.png", f"{negative}/b.JPG", f"{negative}/.hidden.png"):
        save_image(root / name)
    (root / negative / "notes.txt").write_text("no slice")
    manifest = load_dataset(root)
    labels = {record.path.name: record.label for record in manifest}
    assert labels == {"a.png": Label.COVID, "b.JPG": Label.NON_COVID}
    assert {record.source for record in manifest} == {"ward-7"}
    assert not any(record.patient_known or record.split for record in manifest)


def test_sub_folders_are_patients_and_names_give_the_order(tmp_path: Path) -> None:
    for name in ("COVID/p1/10.png", "COVID/p1/series/2.png", "COVID/c.png"):
        save_image(tmp_path / name)
    for name in ("NonCOVID/c.png", "NonCOVID/p2/10.png", "NonCOVID/p2/2.png"):
        save_image(tmp_path / name)
    patients = {r.path.relative_to(tmp_path).as_posix(): r.patient_id for r in load_dataset(tmp_path)}
    assert patients["COVID/p1/10.png"] == patients["COVID/p1/series/2.png"] == "p1"
    assert patients["COVID/c.png"] != patients["NonCOVID/c.png"]
    assert list(patients)[-2:] == ["NonCOVID/p2/2.png", "NonCOVID/p2/10.png"]


def test_unlabelled(luna_slices: Path) -> None:
    manifest = load_dataset(luna_slices)
    assert (manifest.name, {record.label for record in manifest}) == ("luna-slices", {None})
    assert len({record.patient_id for record in manifest}) == 1000


def test_a_folder_is_read_by_the_manifest_in_it(tmp_path: Path) -> None:
    save_image(tmp_path / "COVID" / "a.png")
    (tmp_path / "manifest.csv").write_text("path,label,patient_id,split\nCOVID/a.png,COVID,p7,test\n")
    (record,) = load_dataset(tmp_path)
    assert (record.patient_id, record.split) == ("p7", "test")


@pytest.mark.parametrize(
    ("files", "said"),
    [
        (["COVID/a.png", "healthy/b.png"], "no sub-folders for NonCOVID"),
        (["COVID/a.png", "CT_COVID/a.png", "NonCOVID/b.png"], "too many sub-folders for COVID"),
        (["COVID/a.png", "NonCOVID/sub/b.txt"], "NonCOVID: holds no slices"),
        (["train/COVID/a.png", "train/NonCOVID/b.png"], "deeper, in .*train"),
        (["notes/a.txt"], "holds no slices"),
    ],
)
def test_folders_that_are_no_data_set(tmp_path: Path, files: list[str], said: str) -> None:
    for name in files:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("text")
    with pytest.raises(DataError, match=said):
        load_dataset(tmp_path)


def test_paths_that_are_no_data_set(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such folder or file"):
        load_dataset(tmp_path / "absent")
    with pytest.raises(DataError, match=r"a\.png: a data set is a folder or a manifest CSV"):
        load_dataset(save_image(tmp_path / "a.png"))


def test_several_data_sets_are_one(tmp_path: Path) -> None:
    for name in ("a/COVID", "a/NonCOVID", "b/COVID", "b/NonCOVID"):
        save_image(tmp_path / name / "1.png")
    one, other = tmp_path / "a", tmp_path / "b"
    pool = load_pool([one, other])
    assert (pool.name, pool.root, str(pool)) == ("a+b", tmp_path, f"{one}, {other}")
    assert [record.source for record in pool] == ["a", "a", "b", "b"]
    assert len({record.patient_id for record in pool}) == 4
    assert load_pool([one]) == load_dataset(one)
    with pytest.raises(DataError, match=r"1\.png: is in two of the data sets"):
        load_pool([one, other, one])
    with pytest.raises(DataError, match="name a data set with --data"):
        load_pool([])


@pytest.mark.parametrize(
    ("sources", "expected", "same"),
    [
        (("", ""), [("a/own", "7"), ("b/own", "7")], True),
        (("rome", ""), [("rome", "7"), ("b/own", "7")], True),
        (("rome", "rome"), [("rome", "7"), ("rome", "7")], True),
        (("rome", "oslo"), [("rome", "rome/7"), ("oslo", "oslo/7")], False),
    ],
)
def test_sources_and_patients_of_several_data_sets_are_kept_apart(
    tmp_path: Path,
    sources: tuple[str, str],
    expected: list[tuple[str, str]],
    same: bool,
    caplog: pytest.LogCaptureFixture,
) -> None:
    say.cache_clear()
    for name, source in zip("ab", sources, strict=True):
        save_image(tmp_path / name / "1.png")
        (tmp_path / name / "own.csv").write_text(f"path,patient_id,source\n1.png,7,{source}\n")
    pool = load_pool([tmp_path / name / "own.csv" for name in "ab"])
    assert [(record.source, record.patient_id) for record in pool] == expected
    assert ("7: patients of several data sets, taken for the same people" in caplog.text) is same
