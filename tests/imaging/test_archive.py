"""Zip archives are read in place; what cannot be read in one, or is out to do harm, leaves the rest alone."""

from __future__ import annotations

import io
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

PICTURE = io.BytesIO()
Image.fromarray(GREY).save(PICTURE, "PNG")
PNG = PICTURE.getvalue()
LINK = zipfile.ZipInfo("link.png")
LINK.external_attr = (stat.S_IFLNK | 0o777) << 16


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


def test_members_come_in_natural_order_without_junk(tmp_path: Path) -> None:
    names = ["CT/slice10.png", "CT/slice2.png", "__MACOSX/CT/._slice2.png", "PaxHeader/slice2.png"]
    names += ["CT/PaxHeaders/x.png", "CT/.hidden.png", "CT/Thumbs.db"]
    path = make_zip(tmp_path / "a.zip", dict.fromkeys(names, PNG) | {"CT/readme.txt": b"text"})
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


OUT = "leads out of the archive"
UNPACK = "packed by Deflate64 or another method that cannot be read; unpack it first"


@pytest.mark.parametrize(
    ("odd", "content", "header", "reason"),
    [
        *(
            (f"{up}evil.png", PNG, None, OUT)
            for up in ("../", "/etc/", "a/../../", "C:\\", "..\\", "\\", "c:")
        ),
        *((name, PNG, None, OUT) for name in ("CT/../x.png", "a/b/..", "../readme.txt")),
        (LINK, b"/etc/passwd", None, "a link; links in archives are not followed"),
        ("bomb.png", bytes(40_000_000), None, "taken for a decompression bomb"),
        ("big.dcm", PNG, (8, 9), UNPACK),
        ("big.dcm", PNG, (8, 93), UNPACK),
        ("big.dcm", PNG, (6, 1), "encrypted; unpack the archive with its password and read the folder"),
    ],
)
def test_an_odd_member_is_left_out_alone(
    tmp_path: Path, odd: str | zipfile.ZipInfo, content: bytes, header: tuple[int, int] | None, reason: str
) -> None:
    path = make_zip(tmp_path / "a.zip", {"good.png": PNG, odd: content})
    if (
        header is not None
    ):  # a byte of the member's header, and of its entry in the directory, where it is two later
        archive, (at, value) = bytearray(path.read_bytes()), header
        archive[archive.rindex(b"PK\x03\x04") + at] = archive[archive.rindex(b"PK\x01\x02") + at + 2] = value
        path.write_bytes(archive)
    name = odd if isinstance(odd, str) else odd.filename
    files, reasons = read(path)
    assert (files, list(reasons)) == (["good.png"], [name])
    assert reason in reasons[name]
    with pytest.raises(ImageError, match=re.escape(reason)):
        list(read_slices(path))
    assert read_bytes(f"{path}!good.png") == PNG
    with pytest.raises(ImageError, match=re.escape(reason)):
        read_bytes(f"{path}!{name}")


def test_a_colon_is_no_reason_not_to_read_an_image(tmp_path: Path) -> None:
    members = {"12:30:05.png": PNG, "12:30/x.png": PNG, "12:30:06": b"text", "y": b"text"}
    files, reasons = read(make_zip(tmp_path / "a.zip", members))
    assert len(files) == 2
    assert list(reasons) == ["12:30:06"]


def test_an_archive_in_memory_and_one_within_it(tmp_path: Path) -> None:
    inner = make_zip(tmp_path / "b.zip", {}).read_bytes()
    content = make_zip(tmp_path / "a.zip", {"x.png": PNG, "really.png": inner}).read_bytes()
    expected = (["x.png"], {"really.png": "an archive within an archive; unpack it first"})
    assert read(MemorySource("a", content)) == expected
    with pytest.raises(ImageError, match="bytes are more than the limit"):
        list(read_slices(MemorySource("a", content), Limits(file_bytes=100)))


def test_archives_have_limits(tmp_path: Path) -> None:
    path = make_zip(tmp_path / "a.zip", {f"{index}.png": PNG for index in range(5)})
    for limits, reason in (
        (Limits(members=4), r"a\.zip: 5 members"),
        (Limits(archive_bytes=4 * len(PNG)), r"a\.zip: unpacks to"),
        (Limits(file_bytes=10), "bytes are more than the limit"),
    ):
        with pytest.raises(ImageError, match=reason):
            list(read_slices(path, limits))


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
    for name in ("in!side.zip", "disguised.dat", "a.zip!b.png"):
        (tmp_path / name).write_bytes(PNG)
    assert split_member(tmp_path / "in!side.zip!x!y.png") == (tmp_path / "in!side.zip", "x!y.png")
    assert split_member(tmp_path / "disguised.dat!x.png") == (tmp_path / "disguised.dat", "x.png")
    assert split_member(tmp_path / "a.zip!b.png") is None
    assert split_member(tmp_path / "gone.zip!d/b.png") == (tmp_path / "gone.zip", "d/b.png")
    assert split_member(tmp_path / "wow!.png") is None
