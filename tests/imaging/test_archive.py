"""Zip archives are read in place; what cannot be read in one, or is out to do harm, leaves the rest alone."""

from __future__ import annotations

import io
import os
import re
import stat
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from groundglass.errors import ImageError
from groundglass.imaging.read import read_slice, read_slices
from groundglass.imaging.source import Limits, MemorySource, read_bytes, split_member


@pytest.fixture(scope="module")
def png() -> bytes:
    stream = io.BytesIO()
    Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8)).save(stream, "PNG")
    return stream.getvalue()


def _zip(path: Path, members: dict[str, bytes], compression: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


def test_members_come_in_natural_order_without_junk(tmp_path: Path, png: bytes) -> None:
    names = ["CT/slice10.png", "CT/slice2.png", "CT/readme.txt"]
    junk = [
        "__MACOSX/CT/._slice2.png",
        "PaxHeader/slice2.png",
        "CT/PaxHeaders/x.png",
        "CT/.hidden.png",
        "CT/Thumbs.db",
    ]
    path = _zip(tmp_path / "a.zip", dict.fromkeys([*names, *junk], png) | {"CT/readme.txt": b"text"})
    read = list(read_slices(path))
    assert [item.origin.file for item in read] == [f"{path}!CT/slice2.png", f"{path}!CT/slice10.png"]
    np.testing.assert_array_equal(read[0].pixels, np.arange(64).reshape(8, 8))
    assert list(tmp_path.iterdir()) == [path]


def test_one_member_by_its_path(tmp_path: Path, png: bytes) -> None:
    path = _zip(tmp_path / "a!b.zip", {"CT/x.png": png, "CT/y.png": b"damaged"})
    np.testing.assert_array_equal(read_slice(f"{path}!CT/x.png").pixels, np.arange(64).reshape(8, 8))
    with pytest.raises(ImageError, match="no such member"):
        read_slice(f"{path}!CT/z.png")
    with pytest.raises(ImageError, match=r"!CT/y\.png: not an image"):
        read_slice(f"{path}!CT/y.png")


def test_series_and_volumes_in_an_archive(
    tmp_path: Path,
    chest: NDArray[np.int16],
    write_dicom: Callable[..., Path],
    write_metaimage: Callable[..., Path],
) -> None:
    files = []
    for index in range(3):
        place = {"ImageOrientationPatient": [1, 0, 0, 0, 1, 0], "ImagePositionPatient": [0, 0, -index]}
        files.append(write_dicom(tmp_path / f"{index}.dcm", chest, **place))
    header = write_metaimage(tmp_path / "v.mhd", chest[:, :, None], compressed=True)
    files += [header, header.with_suffix(".zraw")]
    path = _zip(tmp_path / "a.zip", {f"study/{file.name}": file.read_bytes() for file in files})
    read = [item.origin.file.split("/")[-1] for item in read_slices(path)]
    assert read == ["v.mhd", "2.dcm", "1.dcm", "0.dcm"]


def test_a_folder_of_archives(tmp_path: Path, png: bytes) -> None:
    _zip(tmp_path / "a.zip", {"x.png": png})
    (tmp_path / "sub").mkdir()
    _zip(tmp_path / "sub" / "b.zip", {"y.png": png})
    assert [Path(item.origin.file).name for item in read_slices(tmp_path)] == ["a.zip!x.png", "b.zip!y.png"]


def alone(path: Path, odd: str, reason: str, good: str = "good.png") -> None:
    """One member is left out by its name and for a reason, the good one is read."""
    errors: list[ImageError] = []
    read = [image.origin.file for image in read_slices(path, on_error=errors.append)]
    assert read == [f"{path}!{good}"]
    ((member, said),) = [(error.path, error.reason) for error in errors]
    assert member == f"{path}!{odd}"
    assert reason in said
    with pytest.raises(ImageError, match=re.escape(reason)):
        list(read_slices(path))
    assert read_bytes(f"{path}!{good}")
    with pytest.raises(ImageError, match=re.escape(reason)):
        read_bytes(f"{path}!{odd}")


@pytest.mark.parametrize(
    "name",
    [
        *("../evil.png", "/etc/evil.png", "a/../../evil.png", "C:\\evil.png", "..\\evil.png", "\\evil.png"),
        *("CT/../x.png", "c:x.png", "a/b/..", "../readme.txt"),
    ],
)
def test_a_name_that_leads_out_of_the_archive_is_refused_alone(tmp_path: Path, png: bytes, name: str) -> None:
    alone(_zip(tmp_path / "a.zip", {"good.png": png, name: png}), name, "leads out of the archive")


def test_a_colon_is_no_reason_not_to_read_an_image(tmp_path: Path, png: bytes) -> None:
    path = _zip(
        tmp_path / "a.zip", {"12:30:05.png": png, "12:30/x.png": png, "12:30:06": b"text", "y": b"text"}
    )
    errors: list[ImageError] = []
    assert len(list(read_slices(path, on_error=errors.append))) == 2
    assert [error.path for error in errors] == [f"{path}!12:30:06"]


def test_a_link_is_refused_alone(tmp_path: Path, png: bytes) -> None:
    link = zipfile.ZipInfo("link.png")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("good.png", png)
        archive.writestr(link, "/etc/passwd")
    alone(tmp_path / "a.zip", "link.png", "a link; links in archives are not followed")


@pytest.mark.parametrize(("method", "name"), [(9, "Deflate64"), (93, "Zstandard"), (97, "method 97")])
def test_a_packing_that_cannot_be_read_says_what_to_do(
    tmp_path: Path, png: bytes, method: int, name: str
) -> None:
    path = _zip(tmp_path / "a.zip", {"good.png": png, "big.dcm": png})
    content = bytearray(path.read_bytes())
    content[content.rindex(b"PK\x03\x04") + 8] = method
    content[content.rindex(b"PK\x01\x02") + 10] = method
    path.write_bytes(content)
    alone(path, "big.dcm", f"packed by {name}, which cannot be read; unpack it first")


def test_an_archive_in_memory_and_from_a_pipe(tmp_path: Path, png: bytes) -> None:
    path = _zip(tmp_path / "a.zip", {"x.png": png, "b.zip": _zip(tmp_path / "b.zip", {}).read_bytes()})
    read, write = os.pipe()
    os.write(write, path.read_bytes())
    os.close(write)
    errors: list[ImageError] = []
    (image,) = read_slices(f"/dev/fd/{read}", on_error=errors.append)
    os.close(read)
    np.testing.assert_array_equal(image.pixels, np.arange(64).reshape(8, 8))
    assert [error.reason for error in errors] == ["an archive within an archive; unpack it first"]
    errors.clear()
    assert len(list(read_slices(MemorySource("a", path.read_bytes()), on_error=errors.append))) == 1
    assert len(errors) == 1


def test_an_archive_within_an_archive_is_refused(tmp_path: Path, png: bytes) -> None:
    inner = _zip(tmp_path / "inner.zip", {"x.png": png}).read_bytes()
    path = _zip(tmp_path / "a.zip", {"really.png": inner})
    with pytest.raises(ImageError, match=r"!really\.png: an archive within an archive"):
        list(read_slices(path))


def test_an_encrypted_member_is_refused(tmp_path: Path, png: bytes) -> None:
    path = _zip(tmp_path / "a.zip", {"x.png": png})
    content = bytearray(path.read_bytes())
    content[6] |= 1
    content[content.index(b"PK\x01\x02") + 8] |= 1
    path.write_bytes(content)
    with pytest.raises(ImageError, match=r"!x\.png: encrypted"):
        list(read_slices(path))


def test_bombs_are_refused_before_they_are_unpacked(tmp_path: Path, png: bytes) -> None:
    path = _zip(tmp_path / "a.zip", {"bomb.png": bytes(40_000_000)})
    with pytest.raises(ImageError, match=r"!bomb\.png: .*decompression bomb"):
        list(read_slices(path))
    path = _zip(tmp_path / "b.zip", {f"{index}.png": png for index in range(5)})
    with pytest.raises(ImageError, match=r"b\.zip: 5 members"):
        list(read_slices(path, Limits(members=4)))
    with pytest.raises(ImageError, match=r"b\.zip: unpacks to"):
        list(read_slices(path, Limits(archive_bytes=4 * len(png))))
    with pytest.raises(ImageError, match="bytes are more than the limit"):
        list(read_slices(path, Limits(file_bytes=10)))


def test_a_member_that_unpacks_to_more_than_it_says_is_an_error(tmp_path: Path, png: bytes) -> None:
    path = _zip(tmp_path / "a.zip", {"x.png": png + bytes(5000)})
    content = bytearray(path.read_bytes())
    for offset in (22, content.index(b"PK\x01\x02") + 24):
        content[offset : offset + 4] = len(png).to_bytes(4, "little")
    path.write_bytes(content)
    with pytest.raises(ImageError, match=r"!x\.png: "):
        list(read_slices(path))


@pytest.mark.parametrize("damage", ["truncated", "flipped", "method"])
def test_damaged_archives(tmp_path: Path, png: bytes, damage: str) -> None:
    path = _zip(tmp_path / "a.zip", {"x.png": png * 20})
    content = bytearray(path.read_bytes())
    if damage == "truncated":
        del content[-30:]
    elif damage == "flipped":
        content[45] ^= 0xFF
    else:
        content[8] = content[content.index(b"PK\x01\x02") + 10] = 99
    path.write_bytes(content)
    with pytest.raises(ImageError, match=r"a\.zip"):
        list(read_slices(path))


def test_an_archive_without_images(tmp_path: Path) -> None:
    path = _zip(tmp_path / "a.zip", {"notes.txt": b"nothing here"})
    with pytest.raises(ImageError, match="holds no image"):
        list(read_slices(path))


def test_bad_members_can_be_left_out(tmp_path: Path, png: bytes) -> None:
    damaged = png[:40] + zlib.compress(b"") + png[50:]
    path = _zip(tmp_path / "a.zip", {"1.png": png, "2.png": damaged, "3.png": b"", "4.png": png})
    errors: list[ImageError] = []
    read = [item.origin.file[-5:] for item in read_slices(path, on_error=errors.append)]
    assert read == ["1.png", "4.png"]
    assert [error.path[-5:] for error in errors] == ["2.png", "3.png"]


def test_the_content_of_a_member_passes_the_same_guards(tmp_path: Path, png: bytes) -> None:
    path = _zip(tmp_path / "a.zip", {"x.png": png, "bomb.png": bytes(40_000_000)})
    alone(path, "bomb.png", "taken for a decompression bomb", "x.png")
    path = _zip(tmp_path / "c.zip", {"x.png": png})
    assert read_bytes(f"{path}!x.png") == png
    with pytest.raises(ImageError, match="more than the limit"):
        read_bytes(f"{path}!x.png", Limits(file_bytes=10))
    with pytest.raises(ImageError, match="no such member"):
        read_bytes(f"{path}!y.png")


def test_what_is_a_member_and_what_a_file_follows_from_what_there_is(tmp_path: Path, png: bytes) -> None:
    archive = _zip(tmp_path / "in!side.zip", {"x.png": png})
    _zip(tmp_path / "disguised.dat", {"x.png": png})
    (tmp_path / "a.zip!b.png").write_bytes(png)
    assert split_member(f"{archive}!x!y.png") == (archive, "x!y.png")
    assert split_member(tmp_path / "disguised.dat!x.png") == (tmp_path / "disguised.dat", "x.png")
    assert split_member(tmp_path / "a.zip!b.png") is None
    assert split_member(tmp_path / "gone.zip!d/b.png") == (tmp_path / "gone.zip", "d/b.png")
    assert split_member(tmp_path / "wow!.png") is None
