"""COVID-CT: the table that the package carries, and every form in which people have the images."""

from __future__ import annotations

import csv
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from groundglass.data.covid_ct import Entry, entries, examine, load_covid_ct
from groundglass.data.manifest import Label, content_hash, read_pixels
from groundglass.errors import DataError

SPREAD_SOURCES = {"2020.03.12.20034686", "2020.03.13.20035212", "2020.03.22.20040782"}


def test_carried_table() -> None:
    table = entries()
    assert len({entry.file for entry in table}) == len({entry.sha256 for entry in table}) == 746
    assert Counter(entry.label for entry in table) == {Label.COVID: 349, Label.NON_COVID: 397}
    assert Counter((entry.split, entry.label.value) for entry in table) == {
        ("train", "COVID"): 191,
        ("train", "NonCOVID"): 234,
        ("val", "COVID"): 60,
        ("val", "NonCOVID"): 58,
        ("test", "COVID"): 98,
        ("test", "NonCOVID"): 105,
    }
    parts: dict[str, set[str]] = {}
    for entry in table:
        parts.setdefault(entry.patient_id, set()).add(entry.split)
    assert len(parts) == 384
    assert all(len(seen) == 1 for seen in parts.values())


def test_carried_table_is_the_published_one(covid_ct: Path) -> None:
    with (covid_ct / "manifest.csv").open(encoding="utf-8") as opened:
        published = {
            (row["path"], row["label"], row["patient_id"], row["split"], row["sha256"])
            for row in csv.DictReader(opened)
        }
    assert published == {
        (str(entry.path), entry.label.value, entry.patient_id, entry.split, entry.sha256)
        for entry in entries()
    }


@pytest.mark.parametrize(
    ("file", "label", "source"),
    [
        ("2020.03.12.20034686-p17-91-1.png", Label.COVID, "2020.03.12.20034686"),
        ("2020.01.24.919183-p27-132.png", Label.COVID, "2020.01.24.919183"),
        ("2020.03.01.20029769-p21-73_1%0.png", Label.COVID, "2020.03.01.20029769"),
        ("kjr-21-e24-p5-29.png", Label.COVID, "kjr-21-e24"),
        ("PIIS0140673620303603%8.png", Label.COVID, "PIIS0140673620303603"),
        ("bmj.m606.full-p4-22%0.png", Label.COVID, "bmj.m606.full"),
        ("med-9780198814924-chapter-17-p10-515.png", Label.COVID, "med-9780198814924-chapter-17"),
        ("1046.png", Label.NON_COVID, "medpix"),
        ("71%0.jpg", Label.NON_COVID, "crawled"),
    ],
)
def test_source_from_file_name(file: str, label: Label, source: str) -> None:
    assert Entry(file, label, "p", "train", "").source == source


def test_every_source_is_known_and_three_preprints_feed_several_parts() -> None:
    parts: dict[str, set[str]] = {}
    for entry in entries():
        parts.setdefault(entry.source, set()).add(entry.split)
        if entry.label is Label.NON_COVID:
            # The meta files, from which the patient ids come, tell the same two collections.
            assert f"noncovid-{entry.source}_patient_" in entry.patient_id
    assert "unknown" not in parts
    assert {source for source, seen in parts.items() if len(seen) > 1} == SPREAD_SOURCES | {
        "medpix",
        "crawled",
    }


def test_clone_with_zips_gives_the_same_images(clone: Path, covid_ct: Path) -> None:
    zipped, plain = load_covid_ct(clone), load_covid_ct(covid_ct)
    for inside, outside in zip(zipped, plain, strict=True):
        assert inside.path.name == outside.path.name
        assert (inside.label, inside.patient_id, inside.source, inside.split) == (
            outside.label,
            outside.patient_id,
            outside.source,
            outside.split,
        )
    for index in (0, 348, 349, 745):
        assert content_hash(zipped.records[index]) == content_hash(plain.records[index])
        assert np.array_equal(read_pixels(zipped.records[index]), read_pixels(plain.records[index]))


def test_missing_images_are_counted_and_named(extracted: Path) -> None:
    for name in ("CT_COVID/kjr-21-e24-p5-29.png", "CT_NonCOVID/71%0.jpg"):
        (extracted / "Images-processed" / name).unlink()
    with pytest.raises(DataError, match=r"2 of the 746 .* missing: kjr-21-e24-p5-29\.png, 71%0\.jpg"):
        load_covid_ct(extracted)


def test_image_that_differs_is_named(extracted: Path) -> None:
    tampered = extracted / "Images-processed" / "CT_COVID" / "kjr-21-e24-p5-29.png"
    tampered.unlink()
    Image.new("L", (40, 30)).save(tampered)
    with pytest.raises(DataError, match=r"1 images differ .*kjr-21-e24-p5-29\.png"):
        load_covid_ct(extracted)
    copy = examine(extracted)
    assert [entry.file for entry in copy.different] == ["kjr-21-e24-p5-29.png"]
    assert len(copy.found) == 745
    assert not copy.missing


def test_folder_goes_before_zip_and_strangers_are_left_out(extracted: Path, packed_images: Path) -> None:
    images = extracted / "Images-processed"
    (images / "CT_COVID" / "kjr-21-e24-p5-29.png").unlink()
    Image.new("L", (40, 30)).save(images / "CT_COVID" / "mine.png")
    (images / "CT_COVID.zip").symlink_to(packed_images / "CT_COVID.zip")
    manifest = load_covid_ct(extracted)
    in_zip = [record.path.name for record in manifest if "!" in str(record.path)]
    assert in_zip == ["kjr-21-e24-p5-29.png"]
    assert len(manifest) == 746


def test_damaged_zips_are_errors(packed_images: Path, tmp_path: Path) -> None:
    content = (packed_images / "CT_COVID.zip").read_bytes()
    shutil.copyfile(packed_images / "CT_NonCOVID.zip", tmp_path / "CT_NonCOVID.zip")
    (tmp_path / "CT_COVID.zip").write_bytes(content[: len(content) // 2])
    with pytest.raises(DataError, match=r"CT_COVID\.zip: .*zip.*fetch it again"):
        load_covid_ct(tmp_path)
    name = b"CT_COVID/kjr-21-e24-p5-29.png"
    at = content.index(name) + len(name) + 100
    assert content[at] != 0x5A
    (tmp_path / "CT_COVID.zip").write_bytes(content[:at] + b"\x5a" + content[at + 1 :])
    with pytest.raises(DataError, match=r"1 images differ .*kjr-21-e24-p5-29\.png"):
        load_covid_ct(tmp_path)


def test_split_files_must_agree(extracted: Path, covid_ct: Path) -> None:
    split = extracted / "Data-split"
    shutil.copytree(covid_ct / "Data-split", split, copy_function=shutil.copyfile)
    file = split / "COVID" / "testCT_COVID.txt"
    names = file.read_text(encoding="utf-8").split("\n")
    file.write_text("\ufeff" + " \r\n".join(names) + "\n\n", encoding="utf-8")
    assert len(load_covid_ct(extracted)) == 746
    file.write_text("\n".join(names[1:]), encoding="utf-8")
    with pytest.raises(DataError, match=rf"testCT_COVID\.txt: differs .* in 1 names: {names[0]}"):
        load_covid_ct(extracted)
