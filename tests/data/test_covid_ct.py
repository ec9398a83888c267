"""COVID-CT: the table that the package carries, and every form in which people have the images."""

from __future__ import annotations

import csv
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from groundglass.data.covid_ct import entries, examine, load_covid_ct
from groundglass.data.manifest import content_hash, read_pixels
from groundglass.errors import DataError

from .conftest import save_image

ONE = "kjr-21-e24-p5-29.png"


def test_the_carried_table_is_the_published_one(covid_ct: Path) -> None:
    columns = "path", "label", "patient_id", "split", "sha256"
    with (covid_ct / "manifest.csv").open(encoding="utf-8") as opened:
        published = {tuple(map(row.get, columns)) for row in csv.DictReader(opened)}
    assert published == {
        (str(entry.path), entry.label.value, entry.patient_id, entry.split, entry.sha256)
        for entry in entries()
    }
    assert len({entry.file for entry in entries()}) == len({entry.sha256 for entry in entries()}) == 746
    counts = Counter((entry.split, entry.label.value) for entry in entries())
    parts = {"train": (191, 234), "val": (60, 58), "test": (98, 105)}
    assert {part: (counts[part, "COVID"], counts[part, "NonCOVID"]) for part in parts} == parts
    assert len({(entry.patient_id, entry.split) for entry in entries()}) == 384, "no patient is in two parts"


def test_clone_with_zips_gives_the_same_images(clone: Path, covid_ct: Path) -> None:
    zipped, plain = load_covid_ct(clone), load_covid_ct(covid_ct)
    assert [each.path.name for each in zipped] == [each.path.name for each in plain]
    for inside, outside in zip(zipped, plain, strict=True):
        assert replace(inside, path=outside.path) == outside
    for index in (0, 348, 349, 745):
        assert content_hash(zipped.records[index]) == content_hash(plain.records[index])
        assert np.array_equal(read_pixels(zipped.records[index]), read_pixels(plain.records[index]))


def test_missing_and_different_images_are_counted_and_named(extracted: Path) -> None:
    tampered, gone = (
        extracted / "Images-processed" / name for name in (f"CT_COVID/{ONE}", "CT_NonCOVID/71%0.jpg")
    )
    gone.unlink()
    with pytest.raises(DataError, match=r"1 of the 746 .* missing: 71%0\.jpg"):
        load_covid_ct(extracted)
    tampered.unlink()
    shutil.copyfile(save_image(extracted / "other.png"), tampered)
    copy = examine(extracted)
    named = [[each.file for each in listed] for listed in (copy.different, copy.missing)]
    assert (named, len(copy.found)) == ([[ONE], ["71%0.jpg"]], 744)


def test_folder_goes_before_zip_and_strangers_are_left_out(extracted: Path, packed_images: Path) -> None:
    images = extracted / "Images-processed"
    (images / "CT_COVID" / ONE).unlink()
    save_image(images / "CT_COVID" / "mine.png")
    (images / "CT_COVID.zip").symlink_to(packed_images / "CT_COVID.zip")
    manifest = load_covid_ct(extracted)
    assert [record.path.name for record in manifest if "!" in str(record.path)] == [ONE]
    assert len(manifest) == 746


def test_damaged_zips_are_errors(packed_images: Path, tmp_path: Path) -> None:
    content = (packed_images / "CT_COVID.zip").read_bytes()
    shutil.copyfile(packed_images / "CT_NonCOVID.zip", tmp_path / "CT_NonCOVID.zip")
    (tmp_path / "CT_COVID.zip").write_bytes(content[: len(content) // 2])
    with pytest.raises(DataError, match=r"CT_COVID\.zip: .*zip.*fetch it again"):
        load_covid_ct(tmp_path)
    name = f"CT_COVID/{ONE}".encode()
    at = content.index(name) + len(name) + 100
    assert content[at] != 0x5A
    (tmp_path / "CT_COVID.zip").write_bytes(content[:at] + b"\x5a" + content[at + 1 :])
    with pytest.raises(DataError, match=r"1 images differ .*kjr-21-e24-p5-29\.png"):
        load_covid_ct(tmp_path)


def test_split_files_must_agree(extracted: Path, covid_ct: Path) -> None:
    shutil.copytree(covid_ct / "Data-split", extracted / "Data-split", copy_function=shutil.copyfile)
    file = extracted / "Data-split" / "COVID" / "testCT_COVID.txt"
    names = file.read_text(encoding="utf-8").split("\n")
    file.write_text("\ufeff" + " \r\n".join(names) + "\n\n", encoding="utf-8")
    assert len(load_covid_ct(extracted)) == 746
    file.write_text("\n".join(names[1:]), encoding="utf-8")
    with pytest.raises(DataError, match=rf"testCT_COVID\.txt: differs .* in 1 names: {names[0]}"):
        load_covid_ct(extracted)
