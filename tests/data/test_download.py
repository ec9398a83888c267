"""Downloading COVID-CT from a server that stalls, breaks off, lies or is not there."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import threading
import zipfile
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from tests.conftest import Asked, Said, Server, wait_for

from groundglass.data.covid_ct import download_covid_ct, entries, load_covid_ct
from groundglass.errors import DataError

COVID_IMAGE, NON_COVID_IMAGE = "kjr-21-e24-p5-29.png", "71%0.jpg"


@dataclass
class Upstream:
    """A web server with the two zips; ``cut`` ends a transfer after so many bytes, once it is not ``held``."""

    folder: Path
    url: str
    requests: list[str] = field(default_factory=list)
    cut: dict[str, int] = field(default_factory=dict)
    held: threading.Event | None = None


@pytest.fixture
def upstream(server: Server, packed_images: Path, tmp_path: Path) -> Upstream:
    upstream = Upstream(tmp_path / "served", server.url.replace("dicom-web", "COVID-CT"))
    shutil.copytree(packed_images, upstream.folder, copy_function=os.symlink)

    def answer(asked: Asked) -> Said:
        name = asked.path.removeprefix("/COVID-CT/Images-processed/")
        upstream.requests.append(name)
        if not (upstream.folder / name).is_file():
            return Said(404)
        cut = upstream.cut.get(name)
        return Said(200, (upstream.folder / name).read_bytes(), {}, cut, upstream.held if cut else None)

    server.answer = answer
    return upstream


@pytest.fixture
def partial(extracted: Path) -> Path:
    """A copy that lacks one image of each class."""
    (extracted / "Images-processed" / "CT_COVID" / COVID_IMAGE).unlink()
    (extracted / "Images-processed" / "CT_NonCOVID" / NON_COVID_IMAGE).unlink()
    return extracted


def assert_only_published(folder: Path) -> None:
    """Whatever lies among the images is one of those published, whole."""
    expected = {entry.path.as_posix(): entry.sha256 for entry in entries()}
    for file in folder.rglob("*"):
        if file.is_file():
            assert (
                hashlib.sha256(file.read_bytes()).hexdigest() == expected[file.relative_to(folder).as_posix()]
            )


def test_killed_download_goes_on_with_what_is_there(upstream: Upstream, tmp_path: Path) -> None:
    output = tmp_path / "COVID-CT"
    upstream.cut["CT_NonCOVID.zip"], upstream.held = 100_000, threading.Event()
    words = ["data", "download", "covid-ct", "--output", output]
    command = [sys.executable, "-m", "groundglass.cli.main", *words]
    environment = {**os.environ, "GROUNDGLASS_COVID_CT_URL": upstream.url}
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as running:
        wait_for(lambda: "CT_NonCOVID.zip" in upstream.requests or running.poll() is not None, 120)
        running.kill()
        printed, _ = running.communicate()
    assert b"belong to their publishers" in printed
    assert len(list((output / "Images-processed" / "CT_COVID").iterdir())) == 349
    upstream.held.set()
    upstream.cut.clear()
    upstream.requests.clear()
    assert download_covid_ct(output, upstream.url) == 397
    assert upstream.requests == ["CT_NonCOVID.zip"]
    assert_only_published(output)
    assert len(load_covid_ct(output)) == 746


def test_transfer_cut_off_and_whole_copies_ask_for_nothing(partial: Path, upstream: Upstream) -> None:
    upstream.cut["CT_NonCOVID.zip"] = 1_000_000
    with pytest.raises(DataError, match=r"CT_NonCOVID\.zip: cannot be fetched \(the connection broke off\)"):
        download_covid_ct(partial, upstream.url)
    assert_only_published(partial)
    upstream.cut.clear()
    upstream.requests.clear()
    assert download_covid_ct(partial, upstream.url) == 1
    assert download_covid_ct(partial, upstream.url) == 0
    assert upstream.requests == ["CT_NonCOVID.zip"]
    assert_only_published(partial)


def test_tampered_missing_and_damaged_images(partial: Path, upstream: Upstream) -> None:
    for name, image, content in (("CT_COVID", COVID_IMAGE, b"another"), ("CT_NonCOVID", "other.jpg", b"")):
        (upstream.folder / f"{name}.zip").rename(upstream.folder / f"{name}.kept")
        with zipfile.ZipFile(upstream.folder / f"{name}.zip", "w") as archive:
            archive.writestr(f"{name}/{image}", content)
    with pytest.raises(DataError) as caught:
        download_covid_ct(partial, upstream.url)
    assert f"{COVID_IMAGE} (not the image published)" in str(caught.value)
    assert f"{NON_COVID_IMAGE} (not in the zip)" in str(caught.value)
    assert_only_published(partial)
    for kept in upstream.folder.glob("*.kept"):
        kept.rename(kept.with_suffix(".zip"))
    (partial / "Images-processed" / "CT_COVID" / COVID_IMAGE).write_bytes(b"half of an ima")
    assert download_covid_ct(partial, upstream.url) == 2
    assert_only_published(partial)


def test_servers_and_places_that_are_none(partial: Path, upstream: Upstream, tmp_path: Path) -> None:
    served = upstream.folder / "CT_COVID.zip"
    served.unlink()
    with pytest.raises(DataError, match=r"CT_COVID\.zip: cannot be fetched \(the server answers 404"):
        download_covid_ct(partial, upstream.url)
    served.write_text("<html>moved</html>")
    with pytest.raises(DataError, match=r"CT_COVID\.zip: is not a usable zip file"):
        download_covid_ct(partial, upstream.url)
    assert_only_published(partial)
    with pytest.raises(DataError, match="is not an address"):
        download_covid_ct(partial, "nowhere")
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(DataError, match="cannot be made a folder"):
        download_covid_ct(tmp_path / "file")
