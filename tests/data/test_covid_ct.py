"""COVID-CT: the table that the package carries, every form of the images, and servers that stall, break off or lie."""

import csv
import os
import shutil
import sys
import threading
import zipfile
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
from tests.conftest import Asked, Said, Server, make_zip, save_image, stop_when

from groundglass.data.covid_ct import Entry, download_covid_ct, entries, examine, load_covid_ct
from groundglass.data.load import load_dataset
from groundglass.data.manifest import content_hash, read_pixels
from groundglass.errors import DataError

COVID_IMAGE, NON_COVID_IMAGE = "kjr-21-e24-p5-29.png", "71%0.jpg"


def place(entry: Entry) -> str:
    """Where an image lies in an extracted copy."""
    return f"Images-processed/CT_{entry.label.value}/{entry.file}"


@pytest.fixture(scope="module")
def packed_images(covid_ct: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Both classes zipped, with junk that carries the images' names before and after them; not to be written to."""
    folder = tmp_path_factory.mktemp("packed")
    for name in ("CT_COVID", "CT_NonCOVID"):
        images = sorted((covid_ct / "Images-processed" / name).iterdir())
        with zipfile.ZipFile(folder / f"{name}.zip", "w", zipfile.ZIP_STORED) as opened:
            for image in images[:20]:
                opened.writestr(f"{name}/PaxHeader/{image.name}", b"17 gid=1234567890\n")
            for image in images:
                opened.write(image, f"{name}/{image.name}")
            for image in images[:20]:
                opened.writestr(f"__MACOSX/{name}/._{image.name}", b"\x00\x05\x16\x07")
    return folder


@pytest.fixture
def partial(covid_ct: Path, tmp_path: Path) -> Path:
    """An extracted copy, of links, that lacks one image of each class."""
    images = tmp_path / "COVID-CT" / "Images-processed"
    shutil.copytree(covid_ct / "Images-processed", images, copy_function=os.symlink)
    (images / "CT_COVID" / COVID_IMAGE).unlink()
    (images / "CT_NonCOVID" / NON_COVID_IMAGE).unlink()
    return images.parent


def test_the_carried_table_is_the_published_one(covid_ct: Path) -> None:
    columns = "path", "label", "patient_id", "split", "sha256"
    with (covid_ct / "manifest.csv").open(encoding="utf-8") as opened:
        published = {tuple(map(row.get, columns)) for row in csv.DictReader(opened)}
    assert len(published) == len({entry.file for entry in entries()}) == 746
    assert published == {(place(e), e.label.value, e.patient_id, e.split, e.sha256) for e in entries()}


def test_every_form_gives_the_same_slices(covid_ct: Path, packed_images: Path, tmp_path: Path) -> None:
    plain, clone = load_dataset(covid_ct), tmp_path / "COVID-CT-master"
    for folder, name in ((packed_images, "Images-processed"), (covid_ct / "Data-split", "Data-split")):
        shutil.copytree(folder, clone / name, copy_function=os.symlink)
    for path in (covid_ct / "Images-processed", clone, packed_images):
        other = load_dataset(path)
        assert other.name == "COVID-CT"
        for one, same in zip(other, plain, strict=True):
            assert replace(one, path=same.path) == same
            assert one.path.name == same.path.name
        for index in (0, 348, 349, 745):
            one, same = other.records[index], plain.records[index]
            assert content_hash(one) == content_hash(same)
            assert np.array_equal(read_pixels(one), read_pixels(same))


def test_folder_goes_before_zip_and_faults_are_named(partial: Path, packed_images: Path) -> None:
    images, packed = partial / "Images-processed", packed_images / "CT_COVID.zip"
    image, archive = images / "CT_COVID" / COVID_IMAGE, images / "CT_COVID.zip"
    archive.symlink_to(packed)
    save_image(images / "CT_COVID" / "mine.png")
    for _ in range(2):
        found = examine(partial)[1]
        assert [path.name for path in found.values() if "!" in str(path)] == [COVID_IMAGE]
        assert len(found) == 745
        save_image(image)  # not as published, so that of the zip
    archive.unlink()
    content = packed.read_bytes()
    at = content.index(f"CT_COVID/{COVID_IMAGE}".encode()) + 200
    damaged = content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :]
    missing = rf"2 of the 746 .* missing or differ .*{COVID_IMAGE}.*71%0\.jpg"
    for zipped, said in ((b"", missing), (damaged, missing), (content[:-100], r"CT_COVID\.zip: .*zip.*fetch it again")):
        if zipped:
            archive.write_bytes(zipped)
        with pytest.raises(DataError, match=said):
            load_covid_ct(partial)


@pytest.fixture
def served(server: Server, packed_images: Path, tmp_path: Path) -> Path:
    """A folder with both zips, which the server hands out."""
    folder = shutil.copytree(packed_images, tmp_path / "served", copy_function=os.symlink)

    def answer(asked: Asked) -> Said:
        file = folder / Path(asked.path).name
        return Said(body=file.read_bytes()) if file.is_file() else Said(404)

    server.answer = answer
    return folder


def cut_off(server: Server, size: int, held: threading.Event | None = None) -> None:
    """End the transfer of the second zip after so many bytes, once it is not ``held`` any more."""
    whole = server.answer
    server.answer = lambda asked: replace(whole(asked), cut=size, held=held) if "Non" in asked.path else whole(asked)


def assert_only_published(folder: Path) -> None:
    """Whatever lies among the images is one of those published, whole."""
    expected = {place(entry): entry.sha256 for entry in entries()}
    for file in (path for path in folder.rglob("*") if path.is_file()):
        assert sha256(file.read_bytes()).hexdigest() == expected[file.relative_to(folder).as_posix()]


@pytest.mark.usefixtures("served")
def test_killed_download_goes_on_with_what_is_there(server: Server, tmp_path: Path) -> None:
    output, url, whole, held = tmp_path / "COVID-CT", server.url, server.answer, threading.Event()
    cut_off(server, 100_000, held)
    command = [sys.executable, "-m", "groundglass.cli.main", "data", "download", "covid-ct", "--output", output]
    env = {**os.environ, "GROUNDGLASS_COVID_CT_URL": url}
    assert "belong to their publishers" in stop_when(lambda: len(server.asked) > 1, command, env=env).out
    assert len(list((output / "Images-processed" / "CT_COVID").iterdir())) == 349
    held.set()
    server.answer = whole
    server.asked.clear()
    assert [download_covid_ct(output, url) for _ in range(2)] == [397, 0]
    assert [Path(asked.path).name for asked in server.asked] == ["CT_NonCOVID.zip"]
    assert_only_published(output)
    assert len(load_covid_ct(output)) == 746


def test_tampered_missing_and_damaged_images(partial: Path, server: Server, served: Path) -> None:
    for name, image, content in (("CT_COVID", COVID_IMAGE, b"another"), ("CT_NonCOVID", "other.jpg", b"")):
        (served / f"{name}.zip").rename(served / f"{name}.kept")
        make_zip(served / f"{name}.zip", {f"{name}/{image}": content})
    with pytest.raises(DataError, match=rf"2 images are not at .* as published: {COVID_IMAGE}, {NON_COVID_IMAGE}"):
        download_covid_ct(partial, server.url)
    assert_only_published(partial)
    for kept in served.glob("*.kept"):
        kept.rename(kept.with_suffix(".zip"))
    (partial / "Images-processed" / "CT_COVID" / COVID_IMAGE).write_bytes(b"half of an ima")
    assert download_covid_ct(partial, server.url) == 2
    assert_only_published(partial)


def test_servers_and_places_that_are_none(partial: Path, server: Server, served: Path, tmp_path: Path) -> None:
    def refused(said: str, folder: Path = partial, url: str = server.url) -> None:
        with pytest.raises(DataError, match=said):
            download_covid_ct(folder, url)
        assert_only_published(partial)

    archive, occupied = served / "CT_COVID.zip", tmp_path / "file"
    archive.rename(tmp_path / "kept.zip")
    refused(r"CT_COVID\.zip: cannot be fetched \(the server answers 404")
    archive.write_text("<html>moved</html>")
    refused(r"CT_COVID\.zip: is not a usable zip file")
    (tmp_path / "kept.zip").rename(archive)
    cut_off(server, 1_000_000)
    refused(r"CT_NonCOVID\.zip: cannot be fetched \(no connection, or it broke off\)")
    occupied.touch()
    refused("is not an address", url="nowhere")
    refused("cannot be made a folder", occupied)
