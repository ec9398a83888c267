"""Uploaded files on their way in: which stay in memory, which are written."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.serving.service.conftest import picture

from groundglass.imaging.source import FileFormat, MemorySource
from groundglass.serving.scratch import RequestFolder, Scratch
from groundglass.serving.spool import Spool

ZIP = b"PK\x03\x04" + bytes(26)


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[RequestFolder]:
    with Scratch(tmp_path, 2**20) as scratch, scratch.folder() as folder:
        yield folder


def spooled(folder: RequestFolder, content: bytes, step: int = 7, most_held: int = 2**20) -> Spool:
    spool = Spool(folder, "sub/a", most_held)
    for start in range(0, len(content), step):
        spool.write(memoryview(content)[start : start + step])
    spool.close()
    return spool


def on_disk(folder: RequestFolder) -> list[Path]:
    return [path for path in folder.path.parent.rglob("*") if path.is_file()]


def test_a_small_file_stays_in_memory(folder: RequestFolder) -> None:
    content = picture(1)
    file = spooled(folder, content).finished()
    assert isinstance(file.source, MemorySource)
    assert (file.source.name, file.source.content) == ("sub/a", content)
    assert (file.name, file.size, file.kind) == ("sub/a", len(content), FileFormat.PNG)
    assert on_disk(folder) == []


@pytest.mark.parametrize("step", [1, 4096, 10_000])
def test_a_large_file_is_written_from_its_first_byte(folder: RequestFolder, step: int) -> None:
    content = picture(1)
    file = spooled(folder, content, step, most_held=len(content) - 1).finished()
    assert file.source == folder.path / "sub" / "a"
    assert file.source.read_bytes() == content
    assert (file.size, file.kind) == (len(content), FileFormat.PNG)


def test_an_archive_is_written_however_small(folder: RequestFolder) -> None:
    file = spooled(folder, ZIP).finished()
    assert isinstance(file.source, Path)
    assert file.source.read_bytes() == ZIP
    assert file.heavy


def test_a_file_can_be_laid_down_after_it_was_taken(folder: RequestFolder) -> None:
    spool = spooled(folder, b"content")
    spool.to_disk()
    spool.to_disk()
    spool.close()
    file = spool.finished()
    assert isinstance(file.source, Path)
    assert file.source.read_bytes() == b"content"
    assert file.kind is None


def test_two_files_of_one_name_are_told_apart(folder: RequestFolder) -> None:
    spooled(folder, b"first").to_disk()
    with pytest.raises(FileExistsError):
        spooled(folder, b"second").to_disk()
