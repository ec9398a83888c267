"""Zip archives are read in place; what cannot be read in one, or is out to do harm, leaves the rest alone."""

from __future__ import annotations

import io
import os
import re
import stat
import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tests.imaging.conftest import GREY

from groundglass.errors import ImageError
from groundglass.imaging.read import read_bytes, read_slice, read_slices
from groundglass.imaging.source import Limits, MemorySource, split_member


def _png() -> bytes:
    stream = io.BytesIO()
    Image.fromarray(GREY).save(stream, "PNG")
    return stream.getvalue()


PNG = _png()


def make_zip(path: Path, members: Mapping[str | zipfile.ZipInfo, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


def read(path: Path | MemorySource) -> tuple[list[str], dict[str, str]]:
    """Members that are read, in their order, and reasons for those that are not."""
    errors: list[ImageError] = []
    files = [item.origin.file.partition("!")[2] for item in read_slices(path, on_error=errors.append)]
    return files, {error.path.partition("!")[2]: error.reason for error in errors}


def assert_left_out(path: Path, odd: str, reason: str) -> None:
    """One member is left out by its name and for a reason, ``good.png`` is read."""
    files, reasons = read(path)
    assert files == ["good.png"]
    assert list(reasons) == [odd]
    assert reason in reasons[odd]
    with pytest.raises(ImageError, match=re.escape(reason)):
        list(read_slices(path))
    assert read_bytes(f"{path}!good.png") == PNG
    with pytest.raises(ImageError, match=re.escape(reason)):
        read_bytes(f"{path}!{odd}")


def test_members_come_in_natural_order_without_junk(tmp_path: Path) -> None:
    names = ["CT/slice10.png", "CT/slice2.png", "CT/readme.txt"]
    junk = [
        "__MACOSX/CT/._slice2.png",
        "PaxHeader/slice2.png",
        "CT/PaxHeaders/x.png",
        "CT/.hidden.png",
        "CT/Thumbs.db",
    ]
    path = make_zip(tmp_path / "a.zip", dict.fromkeys([*names, *junk], PNG) | {"CT/readme.txt": b"text"})
    slices = list(read_slices(path))
    assert [item.origin.file for item in slices] == [f"{path}!CT/slice2.png", f"{path}!CT/slice10.png"]
    np.testing.assert_array_equal(slices[0].pixels, GREY)
    assert list(tmp_path.iterdir()) == [path]


def test_one_member_by_its_path(tmp_path: Path) -> None:
    path = make_zip(tmp_path / "a!b.zip", {"CT/x.png": PNG, "CT/y.png": b"damaged"})
    np.testing.assert_array_equal(read_slice(f"{path}!CT/x.png").pixels, GREY)
    with pytest.raises(ImageError, match=r"!CT/y\.png: not an image"):
        read_slice(f"{path}!CT/y.png")
    for each in (read_slice, read_bytes):
        with pytest.raises(ImageError, match="no such member"):
            each(f"{path}!CT/z.png")
    with pytest.raises(ImageError, match="more than the limit"):
        read_bytes(f"{path}!CT/x.png", Limits(file_bytes=10))


@pytest.mark.parametrize(
    "name",
    [
        *("../evil.png", "/etc/evil.png", "a/../../evil.png", "C:\\evil.png", "..\\evil.png", "\\evil.png"),
        *("CT/../x.png", "c:x.png", "a/b/..", "../readme.txt"),
    ],
)
def test_a_name_that_leads_out_of_the_archive_is_refused_alone(tmp_path: Path, name: str) -> None:
    path = make_zip(tmp_path / "a.zip", {"good.png": PNG, name: PNG})
    assert_left_out(path, name, "leads out of the archive")


def test_a_colon_is_no_reason_not_to_read_an_image(tmp_path: Path) -> None:
    members = {"12:30:05.png": PNG, "12:30/x.png": PNG, "12:30:06": b"text", "y": b"text"}
    files, reasons = read(make_zip(tmp_path / "a.zip", members))
    assert len(files) == 2
    assert list(reasons) == ["12:30:06"]


def test_links_bombs_and_archives_are_refused_alone(tmp_path: Path) -> None:
    link = zipfile.ZipInfo("link.png")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    path = make_zip(tmp_path / "a.zip", {"good.png": PNG, link: b"/etc/passwd"})
    assert_left_out(path, "link.png", "a link; links in archives are not followed")
    path = make_zip(tmp_path / "a.zip", {"good.png": PNG, "bomb.png": bytes(40_000_000)})
    assert_left_out(path, "bomb.png", "taken for a decompression bomb")
    inner = make_zip(tmp_path / "inner.zip", {"x.png": PNG}).read_bytes()
    path = make_zip(tmp_path / "a.zip", {"good.png": PNG, "really.png": inner})
    assert read(path) == (["good.png"], {"really.png": "an archive within an archive; unpack it first"})


def spoil(path: Path, at: int, value: int) -> None:
    """Change a byte of the last member's header, and of its entry in the directory, where it is two later."""
    content = bytearray(path.read_bytes())
    content[content.rindex(b"PK\x03\x04") + at] = content[content.rindex(b"PK\x01\x02") + at + 2] = value
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("at", "value", "reason"),
    [
        (8, 9, "packed by Deflate64, which cannot be read; unpack it first"),
        (8, 93, "packed by Zstandard, which cannot be read; unpack it first"),
        (8, 97, "packed by method 97, which cannot be read; unpack it first"),
        (6, 1, "encrypted; unpack the archive with its password and read the folder"),
    ],
)
def test_a_packing_that_cannot_be_read_says_what_to_do(
    tmp_path: Path, at: int, value: int, reason: str
) -> None:
    path = make_zip(tmp_path / "a.zip", {"good.png": PNG, "big.dcm": PNG})
    spoil(path, at, value)
    assert_left_out(path, "big.dcm", reason)


def test_an_archive_in_memory_and_from_a_pipe(tmp_path: Path) -> None:
    inner = make_zip(tmp_path / "b.zip", {}).read_bytes()
    content = make_zip(tmp_path / "a.zip", {"x.png": PNG, "b.zip": inner}).read_bytes()
    reader, writer = os.pipe()
    os.write(writer, content)
    os.close(writer)
    found = read(Path(f"/dev/fd/{reader}"))
    os.close(reader)
    assert found == (["x.png"], {"b.zip": "an archive within an archive; unpack it first"})
    assert read(MemorySource("a", content)) == found
    with pytest.raises(ImageError, match="bytes are more than the limit"):
        list(read_slices(MemorySource("a", content), Limits(file_bytes=100)))


def test_archives_have_limits(tmp_path: Path) -> None:
    path = make_zip(tmp_path / "a.zip", {f"{index}.png": PNG for index in range(5)})
    with pytest.raises(ImageError, match=r"a\.zip: 5 members"):
        list(read_slices(path, Limits(members=4)))
    with pytest.raises(ImageError, match=r"a\.zip: unpacks to"):
        list(read_slices(path, Limits(archive_bytes=4 * len(PNG))))
    with pytest.raises(ImageError, match="bytes are more than the limit"):
        list(read_slices(path, Limits(file_bytes=10)))


@pytest.mark.parametrize("damage", ["truncated", "flipped", "says too little"])
def test_damaged_archives(tmp_path: Path, damage: str) -> None:
    path = make_zip(tmp_path / "a.zip", {"x.png": PNG + bytes(5000)})
    content = bytearray(path.read_bytes())
    if damage == "truncated":
        del content[-30:]
    elif damage == "flipped":
        content[45] ^= 0xFF
    else:
        for offset in (22, content.index(b"PK\x01\x02") + 24):
            content[offset : offset + 4] = len(PNG).to_bytes(4, "little")
    path.write_bytes(content)
    with pytest.raises(ImageError, match=r"a\.zip" + ("" if damage == "truncated" else r"!x\.png: ")):
        list(read_slices(path))


def test_what_is_a_member_and_what_a_file_follows_from_what_there_is(tmp_path: Path) -> None:
    archive = make_zip(tmp_path / "in!side.zip", {"x.png": PNG})
    make_zip(tmp_path / "disguised.dat", {"x.png": PNG})
    (tmp_path / "a.zip!b.png").write_bytes(PNG)
    assert split_member(f"{archive}!x!y.png") == (archive, "x!y.png")
    assert split_member(tmp_path / "disguised.dat!x.png") == (tmp_path / "disguised.dat", "x.png")
    assert split_member(tmp_path / "a.zip!b.png") is None
    assert split_member(tmp_path / "gone.zip!d/b.png") == (tmp_path / "gone.zip", "d/b.png")
    assert split_member(tmp_path / "wow!.png") is None
