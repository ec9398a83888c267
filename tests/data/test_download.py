"""Downloading COVID-CT from a server that stalls, breaks off, lies or is not there."""

from __future__ import annotations

import hashlib
import http.server
import os
import shutil
import signal
import socket
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

    def serve(self, handler: http.server.BaseHTTPRequestHandler) -> None:
        name = handler.path.rsplit("/", 1)[-1]
        self.requests.append(name)
        file = self.folder / name
        if not handler.path.startswith("/COVID-CT/Images-processed/") or not file.is_file():
            handler.send_error(404)
            return
        content = file.read_bytes()
        handler.send_response(200)
        handler.send_header("Content-Length", str(len(content)))
        handler.end_headers()
        limit = min(self.cut.get(name, len(content)), self.stall.get(name, len(content)))
        handler.wfile.write(content[:limit])
        if name in self.stall:
            self.released.wait(60)
        handler.close_connection = True


@pytest.fixture
def upstream(packed_images: Path, tmp_path: Path) -> Iterator[Upstream]:
    folder = tmp_path / "served"
    folder.mkdir()
    for archive in packed_images.iterdir():
        (folder / archive.name).symlink_to(archive)
    server = Upstream(folder)

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            server.serve(self)

        def log_message(self, *args: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as listening:
        listening.daemon_threads = True
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


def repack(archive: Path, change: dict[str, bytes | None]) -> None:
    """Replace a served zip by one in which some images are others, or absent."""
    with zipfile.ZipFile(archive) as opened:
        members = {name: opened.read(name) for name in opened.namelist()}
    archive.unlink()
    with zipfile.ZipFile(archive, "w") as opened:
        for name, content in members.items():
            replaced = change.get(name, content)
            if replaced is not None:
                opened.writestr(name, replaced)


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
        str(output),
    ]
    environment = {**os.environ, "GROUNDGLASS_COVID_CT_URL": upstream.url}
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as running:
        deadline = time.monotonic() + 120
        while "CT_NonCOVID.zip" not in upstream.requests and running.poll() is None:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        running.send_signal(signal.SIGKILL)
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


def test_whole_copy_asks_the_server_for_nothing(extracted: Path, upstream: Upstream) -> None:
    assert download_covid_ct(extracted, upstream.url) == 0
    assert upstream.requests == []


def test_transfer_cut_off(partial: Path, upstream: Upstream) -> None:
    upstream.cut["CT_NonCOVID.zip"] = 1_000_000
    with pytest.raises(DataError, match=r"CT_NonCOVID\.zip: cannot be fetched \(the connection broke off\)"):
        download_covid_ct(partial, upstream.url)
    assert_only_published(partial)
    upstream.cut.clear()
    upstream.requests.clear()
    assert download_covid_ct(partial, upstream.url) == 1
    assert upstream.requests == ["CT_NonCOVID.zip"]
    assert_only_published(partial)


def test_tampered_and_missing_images_are_named_and_not_written(partial: Path, upstream: Upstream) -> None:
    repack(upstream.folder / "CT_COVID.zip", {f"CT_COVID/{COVID_IMAGE}": b"another picture"})
    repack(upstream.folder / "CT_NonCOVID.zip", {f"CT_NonCOVID/{NON_COVID_IMAGE}": None})
    with pytest.raises(DataError) as caught:
        download_covid_ct(partial, upstream.url)
    assert f"{COVID_IMAGE} (not the image published)" in str(caught.value)
    assert f"{NON_COVID_IMAGE} (not in the zip)" in str(caught.value)
    assert_only_published(partial)
    assert not (partial / "Images-processed" / "CT_COVID" / COVID_IMAGE).exists()


def test_damaged_image_is_replaced(partial: Path, upstream: Upstream) -> None:
    damaged = partial / "Images-processed" / "CT_COVID" / COVID_IMAGE
    damaged.write_bytes(b"half of an ima")
    assert download_covid_ct(partial, upstream.url) == 2
    assert_only_published(partial)


def test_clone_that_lacks_a_zip(clone: Path, upstream: Upstream, tmp_path: Path) -> None:
    folder = tmp_path / "clone"
    shutil.copytree(clone, folder, copy_function=os.link)
    (folder / "Images-processed" / "CT_COVID.zip").unlink()
    assert download_covid_ct(folder, upstream.url) == 349
    assert upstream.requests == ["CT_COVID.zip"]
    assert len(load_covid_ct(folder)) == 746


def test_answers_that_are_no_zip(partial: Path, upstream: Upstream) -> None:
    served = upstream.folder / "CT_COVID.zip"
    served.unlink()
    served.write_text("<html>moved</html>")
    with pytest.raises(DataError, match=r"CT_COVID\.zip: is not a usable zip file"):
        download_covid_ct(partial, upstream.url)
    served.unlink()
    with pytest.raises(DataError, match=r"CT_COVID\.zip: cannot be fetched \(the server answers 404"):
        download_covid_ct(partial, upstream.url)
    assert_only_published(partial)


def test_no_connection_is_one_line(tmp_path: Path) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}"
    with pytest.raises(DataError, match="no connection to the server") as caught:
        download_covid_ct(tmp_path / "out", url)
    assert "\n" not in str(caught.value)


def test_places_that_cannot_be_written_to_and_addresses_that_are_none(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(DataError, match="cannot be made a folder"):
        download_covid_ct(tmp_path / "file")
    with pytest.raises(DataError, match="is not an address"):
        download_covid_ct(tmp_path / "out", "nowhere")
