"""Downloading COVID-CT from a server that stalls, breaks off, lies or is not there."""

from __future__ import annotations

import hashlib
import http.server
import os
import shutil
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from groundglass.data.covid_ct import download_covid_ct, entries, load_covid_ct
from groundglass.errors import DataError

COVID_IMAGE, NON_COVID_IMAGE = "kjr-21-e24-p5-29.png", "71%0.jpg"


@dataclass
class Upstream:
    """A web server with the two zips; ``cut`` ends a transfer after so many bytes, ``stall`` lets it hang."""

    folder: Path
    url: str = ""
    requests: list[str] = field(default_factory=list)
    cut: dict[str, int] = field(default_factory=dict)
    stall: dict[str, int] = field(default_factory=dict)
    released: threading.Event = field(default_factory=threading.Event)


@pytest.fixture
def upstream(packed_images: Path, tmp_path: Path) -> Iterator[Upstream]:
    server = Upstream(tmp_path / "served")
    shutil.copytree(packed_images, server.folder, copy_function=os.symlink)

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            name = self.path.removeprefix("/COVID-CT/Images-processed/")
            server.requests.append(name)
            if not (server.folder / name).is_file():
                self.send_error(404)
                return
            content = (server.folder / name).read_bytes()
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(
                content[: min(each.get(name, len(content)) for each in (server.cut, server.stall))]
            )
            if name in server.stall:
                server.released.wait(60)

        def log_message(self, *args: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as listening:
        thread = threading.Thread(target=listening.serve_forever)
        thread.start()
        server.url = f"http://127.0.0.1:{listening.server_port}/COVID-CT"
        yield server
        server.released.set()
        listening.shutdown()
        thread.join()


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
    upstream.stall["CT_NonCOVID.zip"] = 100_000
    command = [
        sys.executable,
        "-m",
        "groundglass.cli.main",
        "data",
        "download",
        "covid-ct",
        "--output",
        output,
    ]
    environment = {**os.environ, "GROUNDGLASS_COVID_CT_URL": upstream.url}
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as running:
        deadline = time.monotonic() + 120
        while "CT_NonCOVID.zip" not in upstream.requests and running.poll() is None:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        running.kill()
        printed, _ = running.communicate()
    assert b"belong to their publishers" in printed
    assert len(list((output / "Images-processed" / "CT_COVID").iterdir())) == 349
    upstream.stall.clear()
    upstream.released.set()
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
